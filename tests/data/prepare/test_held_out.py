"""What is held out: whole documents, the end of a single one, or files of one's own; never anything that is learnt."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.cli import main
from xlstm_jax.data.errors import PrepareError, SourceError
from xlstm_jax.data.prepare import prepare, stages
from xlstm_jax.data.prepare.order import REQUEST_VERSION
from xlstm_jax.data.store import INDEX_FILE, open_store
from xlstm_jax.data.store.store import index_checksum
from xlstm_jax.data.tokenizers import train_byte_level

QUIET = {"progress": False, "workers": 1}
PLAY = "".join(f"{n}: {'words and more ' * (n % 5)}\n" for n in range(500)).encode()


def sides(store):
    return tuple(
        [split.document_bytes(i) for i in range(split.num_documents)]
        for split in map(store.split, ("train", "validation"))
    )


@given(st.binary(min_size=0, max_size=300), st.floats(0.001, 0.999))
def test_a_tail_is_the_rest_of_its_document(content, fraction):
    head, tail = stages.cut_tail(content, fraction)
    assert head + tail == content
    assert head or not content
    if len(content) > 4:
        assert tail or fraction > 0.5 or content[1:].translate(None, bytes(range(0x80, 0xC0))) == b""


def test_a_tail_begins_a_line_or_at_least_a_character():
    head, tail = stages.cut_tail(PLAY, 0.1)
    assert head.endswith(b"\n")
    assert 0.1 * len(PLAY) <= len(tail) < 0.2 * len(PLAY)
    for text in ("日本語" * 100, "🎉" * 50, "é" * 99):
        head, tail = stages.cut_tail(text.encode(), 0.07)
        assert head.decode() + tail.decode() == text
        assert 0.07 <= len(tail) / len(text.encode()) < 0.12


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_end_of_a_single_document_is_held_out_and_not_learnt_from(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "play.txt"
    source.write_bytes(PLAY)
    (tmp_path / "in" / "empty.txt").write_text("")
    vocab_size = 300 if tokenizer == "bpe" else None
    settings = {"tokenizer": tokenizer, "vocab_size": vocab_size, "validation_fraction": 0.1} | QUIET
    store = prepare(source, tmp_path / "one", **settings)
    (head,), (tail,) = sides(store)
    assert (head, tail) == stages.cut_tail(PLAY, 0.1)
    store.verify()
    if tokenizer == "bpe":
        assert store.tokenizer.fingerprint == train_byte_level([head], 300).fingerprint
    # Other files beside it that hold nothing, several processes, several orders: the same store.
    settings |= {"workers": 2}
    assert prepare(source.parent, tmp_path / "two", task_bytes=100, **settings).fingerprint == store.fingerprint
    assert prepare(source, tmp_path / "one", **settings).fingerprint == store.fingerprint
    assert sides(prepare(source, tmp_path / "none", **settings | {"validation_fraction": 0})) == (
        [PLAY],
        [],
    )


def test_a_named_tail_is_cut_from_every_document_to_the_byte_and_not_learnt_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = PLAY[:1003], "é".encode() * 50 + b"x"
    (tmp_path / "a.txt").write_bytes(a)
    (tmp_path / "b.txt").write_bytes(b)
    tail = ["--validation-tail", "0.1", "--quiet"]
    assert (
        main(["data", "prepare", "a.txt", "b.txt", "--out", "out", "--tokenizer", "bpe", "--vocab-size", "270", *tail])
        == 0
    )
    store = open_store("out")
    heads, tails = sides(store)
    assert sorted(heads) == sorted([a[:902], b[:90]])
    assert sorted(tails) == sorted([a[902:], b[90:]])  # 101 of 1003 bytes, 11 of 101, in the midst of a character
    assert store.tokenizer.fingerprint == train_byte_level(heads, 270).fingerprint
    assert "held out, because" not in capsys.readouterr().err
    # The store is another one without it, and the other way round.
    for words, sentence in ((tail[2:], "asked for None, there 0.1"), (["--validation-tail", "0.2"], "asked for 0.2")):
        assert (
            main(
                [
                    "data",
                    "prepare",
                    "a.txt",
                    "b.txt",
                    "--out",
                    "out",
                    "--tokenizer",
                    "bpe",
                    "--vocab-size",
                    "270",
                    *words,
                ]
            )
            == 2
        )
        assert sentence in capsys.readouterr().err
    assert main(["data", "prepare", "a.txt", "--out", "other", "--validation", "b.txt", *tail]) == 2
    assert "validation names what is held out" in capsys.readouterr().err
    assert main(["data", "prepare", "corpora/enwik8", "--out", "other", *tail]) == 1
    assert "mattmahoney.net" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "fraction", "tail"), [(1115394, 0.1, 111540), (100_000_000, 0.1, 10_000_000), (10, 0, 0)]
)
def test_the_usual_splits_come_out_to_the_byte(size, fraction, tail):
    assert len(stages.cut_tail(bytes(size), fraction, to_the_byte=True)[1]) == tail


def test_of_copies_of_one_document_the_same_end_is_held_out(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(PLAY)
    head, tail = stages.cut_tail(PLAY, 0.02)
    assert sides(prepare(tmp_path, tmp_path / "out", **QUIET)) == ([head] * 3, [tail] * 3)


def test_a_document_larger_than_what_a_tokenizer_is_trained_on_still_trains_it(tmp_path):
    (tmp_path / "a.txt").write_bytes(PLAY)
    (tmp_path / "b.txt").write_bytes(PLAY.upper())
    settings = {"tokenizer": "bpe", "vocab_size": 270, "training_bytes": 500}
    for sources in (tmp_path / "a.txt", [tmp_path / "a.txt", tmp_path / "b.txt"]):
        store = prepare(sources, tmp_path / f"out{isinstance(sources, list)}", **settings, **QUIET)
        assert store.vocab_size == 270


def test_much_held_out_text_is_told(tmp_path):
    (tmp_path / "a.txt").write_bytes(PLAY)
    (tmp_path / "b.txt").write_bytes(PLAY.upper())
    said: list[str] = []
    for number, fields in enumerate(({}, {"validation_fraction": 0.4}, {"validation": [tmp_path / "b.txt"]})):
        prepare(f"{tmp_path}/*.txt", tmp_path / f"out{number}", say=said.append, **fields, **QUIET)
    (note,) = said
    assert note.startswith("note: 50% of the text is held out, because documents are held out whole")


@pytest.fixture
def texts(tmp_path):
    rng = random.Random(0)
    for folder, count in (("in", 30), ("held", 5)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}.txt").write_text(f"{folder} {number} " * rng.randrange(1, 20))
    (tmp_path / "in" / "copy.txt").write_text((tmp_path / "held" / "3.txt").read_text())
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": "a line"}) + "\n")
    return tmp_path


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_files_of_ones_own_are_held_out_all_of_them_and_nothing_else(texts, tokenizer):
    held = sorted(path.read_bytes() for path in (texts / "held").iterdir())
    learnt = sorted(path.read_bytes() for path in (texts / "in").iterdir() if path.name != "copy.txt")
    settings = {"tokenizer": tokenizer, "vocab_size": 290 if tokenizer == "bpe" else None, "progress": False}
    stores = [
        prepare(
            texts / "in",
            texts / f"out{workers}",
            validation=[texts / "held", texts / "held.jsonl"],
            workers=workers,
            task_bytes=200,
            **settings,
        )
        for workers in (1, 2)
    ]
    assert stores[0].fingerprint == stores[1].fingerprint
    train, validation = sides(stores[0])
    assert sorted(train) == learnt
    assert sorted(validation) == sorted([*held, b"a line"])
    if tokenizer == "bpe":
        assert stores[0].tokenizer.fingerprint == train_byte_level(learnt, 290).fingerprint


def test_a_file_in_both_is_held_out_and_a_folder_may_hold_both(texts):
    for source in (texts, f"{texts}/**/*.txt"):
        out = texts.with_name(f"out{isinstance(source, str)}")
        train, validation = sides(prepare(source, out, validation=str(texts / "held"), **QUIET))
        assert len(validation) == 5
        assert not set(train) & set(validation)
        assert len(train) == 30 + (not isinstance(source, str))
    with pytest.raises(SourceError, match="no file is left to learn from: all of them are held out by name"):
        prepare(texts / "held", texts / "x", validation=[f"{texts}/held/*"], **QUIET)
    with pytest.raises(SourceError, match="no document is left to learn from: all of them are held out"):
        prepare(texts / "in" / "copy.txt", texts / "y", validation=[texts / "held"], **QUIET)
    (texts / "empty.txt").write_text("")
    with pytest.raises(SourceError, match="the sources of validation hold no text"):
        prepare(texts / "in", texts / "z", validation=[texts / "empty.txt"], **QUIET)
    with pytest.raises(SourceError, match=r"there is no file or folder '.*gone'"):
        prepare(texts / "in", texts / "z", validation=[texts / "gone"], **QUIET)


def test_the_command_takes_files_to_hold_out(texts, capsys):
    out = str(texts / "out")
    words = ["data", "prepare", str(texts / "in"), "--out", out, "--quiet"]
    assert main([*words, "--validation", str(texts / "held" / "1.txt"), str(texts / "held" / "2.txt")]) == 0
    assert open_store(out).split("validation").num_documents == 2
    # Others are another store.
    assert main(words) == 2
    assert "which differs in documents" in capsys.readouterr().err


def test_a_store_from_before_tails_were_held_out_is_read_but_not_taken_for_one_with_a_tail(tmp_path):
    (tmp_path / "play.txt").write_bytes(PLAY)
    prepare(tmp_path / "play.txt", tmp_path / "out", validation_fraction=0, **QUIET)
    file = tmp_path / "out" / INDEX_FILE
    index = json.loads(file.read_text())
    del index["checksum"], index["request"]["version"]
    assert REQUEST_VERSION == 2
    index["request"]["settings"]["validation_fraction"] = 0.02
    file.write_text(json.dumps(index | {"checksum": index_checksum(index)}))
    assert open_store(tmp_path / "out").split("train").num_documents == 1
    with pytest.raises(PrepareError, match="differs in held-out text"):
        prepare(tmp_path / "play.txt", tmp_path / "out", **QUIET)
