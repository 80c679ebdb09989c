"""Tokenizers: bytes come back, the EOD is never text, and what cannot hold that is refused by name."""

import json
import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from xlstm_jax.data.errors import PrepareError, TokenizerError
from xlstm_jax.data.tokenizers import (
    EOD_TEXT,
    ByteLevelTokenizer,
    ByteTokenizer,
    byte_level,
    first_difference,
    load_tokenizer,
    train_byte_level,
)

TEXT = [
    "def f(x):\n    return x + 1\n",
    "Größe und naïve Ideen 日本語\n",
    "for i in range(10):\n        print(i)\n",
] * 20
TRAINED = train_byte_level([t.encode() for t in TEXT], 400)


def library_json(special=(EOD_TEXT,), prefix_space=False, **changes):
    """A `tokenizer.json` as other programs write it, with parts replaced by `changes`."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXT, trainer)
    for part, value in changes.items():
        setattr(library, part, value)
    return library


@given(st.binary(max_size=200))
def test_any_bytes_come_back(data):
    for tokenizer in (ByteTokenizer(), TRAINED):
        ids = tokenizer.encode_array(data)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == data
        assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(data)) == data
        assert tokenizer.eod_id not in ids


@given(st.text(max_size=100))
def test_any_text_comes_back(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text.encode()


def test_valid_text_gets_the_ids_of_the_library():
    library = library_json()
    ours = ByteLevelTokenizer(library.to_str())
    for text in TEXT[:3]:
        assert ours.encode(text) == library.encode(text).ids


def test_the_name_of_the_eod_is_ordinary_text_inside_a_document():
    for text in (EOD_TEXT, f"a{EOD_TEXT}b", f"{EOD_TEXT} "):
        ids = TRAINED.encode(text)
        assert TRAINED.eod_id not in ids
        assert TRAINED.decode(ids) == text.encode()
    assert TRAINED.token_bytes(TRAINED.eod_id) == b""


def test_an_eod_that_is_not_marked_special_is_still_never_text():
    data = json.loads(library_json().to_str())
    data["added_tokens"][0]["special"] = False
    ours = ByteLevelTokenizer(json.dumps(data))
    assert ours.eod_id not in ours.encode(f"x{EOD_TEXT}y")


def test_long_text_is_cut_into_slices_that_join(monkeypatch):
    whole = "".join(TEXT)
    expected = TRAINED.encode(whole)
    monkeypatch.setattr(byte_level, "SLICE_CHARACTERS", 100)
    assert TRAINED.encode(whole) == expected
    unbroken = "x" * 1000 + "é" * 500
    assert TRAINED.decode(TRAINED.encode(unbroken)) == unbroken.encode()


def test_training_is_the_same_in_any_order_and_learns_words():
    again = train_byte_level([t.encode() for t in TEXT[::-1]], 400)
    assert again.fingerprint == TRAINED.fingerprint
    assert 257 < TRAINED.vocab_size <= 400
    assert len(TRAINED.encode(" return")) < 7
    assert train_byte_level([b"\xff\xfeabc"], 257).vocab_size == 257


@pytest.mark.parametrize("run", [" ", "ab", "\n", "7", "{};", "é", "日本", "ACGGTCA"])
def test_what_has_no_border_is_trained_on_in_a_time_that_grows_with_its_length(run):
    begin = time.process_time()
    trained = train_byte_level([(run * 500_000)[:500_000].encode() + b"x"], 300)
    # In one piece, its pairs alone take minutes.
    assert time.process_time() - begin < 20
    assert 257 < trained.vocab_size <= 300
    assert json.loads(trained.text)["pre_tokenizer"] == json.loads(TRAINED.text)["pre_tokenizer"]


def test_words_of_ordinary_length_are_trained_on_as_they_are(monkeypatch):
    library = tokenizers.Tokenizer.from_str(TRAINED.text)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOD_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXT, trainer)
    assert json.loads(library.to_str())["model"] == json.loads(TRAINED.text)["model"]


def test_a_vocabulary_too_small_for_bytes_is_refused():
    with pytest.raises(PrepareError, match=r"vocab_size is 256.*>= 257"):
        train_byte_level([b"x"], 256)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TRAINED], ids=["bytes", "bpe"])
def test_a_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    assert (again.fingerprint, again.vocab_size, again.eod_id) == (
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        tokenizer.eod_id,
    )
    assert again.encode(TEXT[1]) == tokenizer.encode(TEXT[1])


def test_a_saved_tokenizer_that_was_changed_is_named(tmp_path):
    TRAINED.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_text("utf-8"))
    data["model"]["merges"].pop()
    file.write_text(json.dumps(data), "utf-8")
    with pytest.raises(TokenizerError, match="not the one that was saved"):
        load_tokenizer(tmp_path)


def test_fingerprint_is_of_the_content_not_its_formatting(tmp_path):
    text = library_json().to_str()
    compact = json.dumps(json.loads(text), separators=(",", ":"))
    assert ByteLevelTokenizer(text).fingerprint == ByteLevelTokenizer(compact).fingerprint


def test_templates_truncation_and_padding_of_a_tokenizer_json_are_left_aside():
    library = library_json(special=[EOD_TEXT, "<s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.enable_truncation(5)
    library.enable_padding(length=50)
    ours = ByteLevelTokenizer(library.to_str())
    assert ours.decode(ours.encode(TEXT[0])) == TEXT[0].encode()
    assert 1 not in ours.encode(TEXT[0])


def test_ordinary_added_tokens_keep_their_ids_and_bytes():
    library = library_json()
    library.add_special_tokens(["<pad>"])
    library.add_tokens(["        "])
    ours = ByteLevelTokenizer(library.to_str())
    ids = ours.encode("x        y")
    assert library.token_to_id("        ") in ids
    assert ours.decode(ids) == b"x        y"
    assert ours.vocab_size == library.get_vocab_size()


def test_the_eod_is_found_asked_for_or_read_beside(tmp_path):
    assert ByteLevelTokenizer(library_json(["</s>"]).to_str()).eod_text == "</s>"
    assert ByteLevelTokenizer(library_json(["<fin>"]).to_str(), eod="<fin>").eod_text == "<fin>"
    with pytest.raises(TokenizerError, match=r"no evident end-of-document token.*--eod"):
        ByteLevelTokenizer(library_json(["<fin>"]).to_str())
    with pytest.raises(TokenizerError, match=r"several tokens.*<\|endoftext\|>, </s>"):
        ByteLevelTokenizer(library_json(["</s>", EOD_TEXT]).to_str())
    with pytest.raises(TokenizerError, match=r"no token '<fim>'.*did you mean '<fin>'"):
        ByteLevelTokenizer(library_json(["<fin>"]).to_str(), eod="<fim>")
    (tmp_path / "tokenizer.json").write_text(library_json(["</s>", EOD_TEXT]).to_str(), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}', "utf-8")
    assert load_tokenizer(tmp_path).eod_text == "</s>"


def test_an_eod_that_text_can_give_is_refused():
    with pytest.raises(TokenizerError, match="for ordinary text"):
        ByteLevelTokenizer(library_json().to_str(), eod="x")


def unigram():
    library = tokenizers.Tokenizer(models.Unigram([("a", -1.0), (EOD_TEXT, -2.0)]))
    library.decoder = decoders.Metaspace()
    return library


def word_level():
    library = tokenizers.Tokenizer(models.BPE({"a": 0, EOD_TEXT: 1}, []))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return library


def cutting(*steps):
    """With other steps before its text becomes letters of bytes."""
    return library_json(
        pre_tokenizer=pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    )


def adding(content, **changes):
    """With one more token, of which every other thirteenth text would tell."""
    library = library_json()
    library.add_tokens([tokenizers.AddedToken(f"word{n}") for n in range(120)])
    library.add_tokens([tokenizers.AddedToken(content, **changes)])
    return library


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (unigram, "Unigram tokenizer, which does not give bytes back"),
        (word_level, "not byte-level"),
        (lambda: library_json(normalizer=normalizers.Lowercase()), "normalises its text .Lowercase."),
        (lambda: library_json(normalizer=normalizers.NFC()), "--drop-normalizer"),
        (lambda: library_json(prefix_space=True), "add_prefix_space"),
        (lambda: cutting(pre_tokenizers.Split("§", "removed")), r"pre-tokenizer Split with behavior Removed"),
        (
            lambda: cutting(pre_tokenizers.Sequence([pre_tokenizers.Split("xyzzy", "removed")])),
            r"pre-tokenizer Split with behavior Removed",
        ),
        (lambda: cutting(pre_tokenizers.Punctuation("removed")), "pre-tokenizer Punctuation with behavior Removed"),
        (lambda: cutting(pre_tokenizers.CharDelimiterSplit("~")), r"pre-tokenizer CharDelimiterSplit\)"),
        (lambda: cutting(pre_tokenizers.WhitespaceSplit()), r"pre-tokenizer WhitespaceSplit\)"),
        (lambda: cutting(pre_tokenizers.UnicodeScripts()), r"pre-tokenizer UnicodeScripts\)"),
        (lambda: cutting(pre_tokenizers.Whitespace()), r"pre-tokenizer Whitespace\)"),
        (lambda: cutting(pre_tokenizers.BertPreTokenizer()), r"pre-tokenizer BertPreTokenizer\)"),
        (lambda: cutting(pre_tokenizers.Metaspace("x", "never")), r"pre-tokenizer Metaspace\)"),
        (lambda: cutting(pre_tokenizers.Split("§", "removed", invert=True)), "drops what its pre-tokenizer does not"),
        (lambda: adding("<t>", lstrip=True), r"drops the spaces beside its token '<t>' \(lstrip\)"),
        (lambda: adding("\x0b", rstrip=True), r"drops the spaces beside its token .* \(rstrip\)"),
        (
            lambda: library_json(normalizer=normalizers.Sequence([normalizers.Sequence([]), normalizers.NFC()])),
            "normalises its text .NFC.",
        ),
    ],
)
def test_a_tokenizer_that_loses_bytes_is_refused_by_reason(make, says):
    with pytest.raises(TokenizerError, match=says):
        ByteLevelTokenizer(make().to_str())


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.Split("§", behavior)]
        for behavior in ("isolated", "merged_with_previous", "merged_with_next", "contiguous")
    ]
    + [
        [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(True)],
        # As the tokenizers of GPT-4, Phi-4 and OLMo 2 are written: what they match is all that there is.
        [pre_tokenizers.Split(tokenizers.Regex(byte_level.WORD_PATTERN), "removed", invert=True)],
    ],
)
def test_what_keeps_every_character_is_taken_with_the_ids_of_the_library(steps):
    library = cutting(*steps)
    ours = ByteLevelTokenizer(library.to_str())
    for text in (*TEXT[:3], "law § 12, §§ 3~4"):
        assert ours.encode(text) == library.encode(text).ids
        assert ours.decode(ours.encode(text)) == text.encode()


def test_what_a_published_pattern_does_not_match_is_kept_too():
    # Letters, marks and spaces, but no numbers outside of ASCII.
    pattern = r"[^\p{N}]+|[0-9]+|[½¼１２]+"
    library = cutting(pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True))
    ours = ByteLevelTokenizer(library.to_str())
    assert ours.decode(ours.encode("五 ٣ 3")) == "五 ٣ 3".encode()


@pytest.mark.parametrize("normalizer", [[], [normalizers.Sequence([])]])
def test_a_normalizer_that_does_nothing_is_none(normalizer):
    ours = ByteLevelTokenizer(library_json(normalizer=normalizers.Sequence(normalizer)).to_str())
    assert ours.encode(TEXT[1]) == ByteLevelTokenizer(library_json().to_str()).encode(TEXT[1])


def test_special_tokens_may_drop_spaces_for_they_are_never_looked_for():
    library = library_json()
    library.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, rstrip=True)])
    ours = ByteLevelTokenizer(library.to_str())
    assert ours.decode(ours.encode("a <mask> b")) == b"a <mask> b"


@pytest.mark.parametrize(
    ("text", "back", "says"),
    [
        ("law § 12", "law  12", "at byte 4, 'law § 12' returned as 'law  12'"),
        ("same and more", "same", "at byte 4, 'same and more' returned as 'same'"),
        ("a" * 100 + "x", "a" * 100 + "y", "at byte 100, 'aaaaaaaaaax' returned as 'aaaaaaaaaay'"),
    ],
)
def test_the_first_difference_is_shown(text, back, says):
    assert first_difference(text.encode(), back.encode()) == says


def test_a_vocabulary_without_every_byte_is_refused():
    data = json.loads(library_json().to_str())
    del data["model"]["vocab"]["é"]
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "é" not in "".join(m)]
    with pytest.raises(TokenizerError, match="no token for byte 0xe9"):
        ByteLevelTokenizer(json.dumps(data))


def test_a_normalizer_can_be_dropped():
    decomposed = "cafe\u0301"
    ours = ByteLevelTokenizer(library_json(normalizer=normalizers.NFC()).to_str(), drop_normalizer=True)
    assert ours.decode(ours.encode(decomposed)) == decomposed.encode()


def test_files_that_are_no_tokenizers_are_named(tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "missing.json")
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    whole = json.loads(library_json().to_str())
    damaged = [
        whole | {"added_tokens": "x"},
        whole | {"added_tokens": [{"content": EOD_TEXT}]},
        whole | {"added_tokens": [whole["added_tokens"][0] | {"id": None}]},
        whole | {"added_tokens": [whole["added_tokens"][0] | {"id": 10**18}]},
        whole | {"added_tokens": [whole["added_tokens"][0] | {"content": 3}]},
        whole | {"model": whole["model"] | {"vocab": whole["model"]["vocab"] | {"é": "7"}}},
        whole | {"model": whole["model"] | {"merges": 3}},
        whole | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}},
    ]
    for content in (
        "{",
        "[]",
        "[" * 100_000,
        '{"model": {}}',
        '{"model": {"type": "BPE", "vocab": 3}}',
        *map(json.dumps, damaged),
    ):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json") as caught:
            load_tokenizer(tmp_path)
        assert len(str(caught.value)) < 500
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": ["</s>"]}}')
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json gives .* as its eos_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_info.json").write_text('{"kind": "words", "fingerprint": ""}')
    with pytest.raises(TokenizerError, match="kind 'words'"):
        load_tokenizer(tmp_path)


def test_ids_outside_of_the_vocabulary_are_named():
    for tokenizer in (ByteTokenizer(), TRAINED):
        with pytest.raises(TokenizerError, match="outside of the vocabulary"):
            tokenizer.token_bytes(tokenizer.vocab_size)
        with pytest.raises(TokenizerError, match="outside of the vocabulary"):
            tokenizer.decode([-1])
