"""What the harness asks for, as tokens and settings: needs no harness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_helpers import write_run

from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import ByteLevelTokenizer, train_byte_level
from xlstm_jax.evaluation.lm_eval import suite
from xlstm_jax.evaluation.lm_eval.local import NAMES, local_task
from xlstm_jax.evaluation.lm_eval.requests import cut_to, encode_pair, sampling, windows
from xlstm_jax.inference.sampling import Sampling
from xlstm_jax.scoring.continuations import Continuation

TEXT = "the cat sat on the mat while the other cats were at the theatre, where they chattered.\n" * 3
TOKENIZER: ByteLevelTokenizer = train_byte_level([TEXT.encode()], 300)
BOS = 7


@given(cut=st.integers(0, len(TEXT)), end=st.integers(0, 40))
@settings(max_examples=200)
def test_a_pair_spells_its_text_wherever_it_is_cut(cut: int, end: int) -> None:
    context, continuation = TEXT[:cut], TEXT[cut : cut + end]
    found = encode_pair(TOKENIZER, BOS, context, continuation)
    assert found.context[0] == BOS
    assert TOKENIZER.decode([*found.context[1:], *found.tokens]) == (context + continuation).encode()
    # The text is read as in training, and all of the continuation is scored.
    np.testing.assert_array_equal([*found.context[1:], *found.tokens], TOKENIZER.encode(context + continuation))
    assert len(TOKENIZER.decode(found.tokens)) >= len(continuation)


def test_cutting_where_a_token_would_reach_across_scores_that_token() -> None:
    whole = TOKENIZER.encode(" theatre")
    assert len(whole) < len(TOKENIZER.encode(" th")) + len(TOKENIZER.encode("eatre"))
    found = encode_pair(TOKENIZER, BOS, " th", "eatre")
    assert TOKENIZER.decode(found.tokens) == b" theatre"


def test_spaces_at_the_end_of_a_context_are_read_with_the_word_behind_them() -> None:
    for context, continuation in (("the cat ", "sat"), ("the cat", " sat")):
        found = encode_pair(TOKENIZER, BOS, context, continuation)
        assert TOKENIZER.decode(found.context[1:]) == b"the cat"
        assert TOKENIZER.decode(found.tokens) == b" sat"


def test_a_text_opens_with_the_start_token_once_whatever_it_says() -> None:
    eod = TOKENIZER.eod_id
    for context in ("", " ", "the", TOKENIZER.eod_text, TOKENIZER.eod_text + "the"):
        found = encode_pair(TOKENIZER, eod, context, " cat")
        assert found.context[0] == eod
        assert eod not in [*found.context[1:], *found.tokens]


def test_a_limit_cuts_contexts_from_the_left_and_refuses_what_cannot_be_scored() -> None:
    text = Continuation(np.arange(10, dtype=np.int32), np.array([10, 11, 12], np.int32))
    for limit, first in ((20, 0), (12, 0), (11, 1), (4, 8), (3, 9)):
        # The last token is only a target, so that a model that reads `limit` tokens sees `limit` + 1.
        np.testing.assert_array_equal(cut_to(text, limit).context, np.arange(first, 10))
        np.testing.assert_array_equal(cut_to(text, limit).tokens, text.tokens)
    with pytest.raises(ConfigError, match="continuation of 3 tokens, but the model reads 2 at most"):
        cut_to(text, 2)


def test_windows_are_those_of_the_harness_by_hand() -> None:
    # Its own documentation has the example of ten tokens and a length of four.
    found = [(a.tolist(), b.tolist()) for a, b in windows(np.arange(10, dtype=np.int32), 99, 4)]
    assert found == [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert [(a.tolist(), b.tolist()) for a, b in windows(np.arange(2, dtype=np.int32), 99, 4)] == [([99], [0, 1])]
    assert list(windows(np.arange(0, dtype=np.int32), 99, 4)) == []


def test_a_task_generates_greedily_without_healing_unless_it_asks_for_a_temperature() -> None:
    plain = Sampling(max_tokens=256, temperature=0, heal=False)
    assert sampling({}, 256) == sampling({"until": [], "do_sample": False, "temperature": 0.7}, 256) == plain
    assert sampling({"until": "\n"}, 9) == Sampling(max_tokens=9, temperature=0, stop=("\n",), heal=False)
    given = {"until": ["a", "", "bc"], "max_gen_toks": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "num_beams": 1}
    assert sampling({**given, "do_sample": True}, 256) == Sampling(
        max_tokens=5, temperature=0.5, top_k=3, top_p=0.9, stop=("a", "bc"), heal=False
    )
    assert sampling({"max_new_tokens": 4, "top_k": 0, "until": None}, 256).max_tokens == 4
    with pytest.raises(ConfigError, match="no setting 'num_beams' of generation"):
        sampling({"num_beams": 4}, 256)


def test_tasks_of_a_text_are_made_of_its_words(tmp_path: Path) -> None:
    text = " ".join(f"word{'' if n % 9 else ' Alice'} is {n}" for n in range(200))
    (tmp_path / "book.txt").write_text(text)
    files = [str(tmp_path / "book.txt")]
    made = {name: local_task(name, files) for name in NAMES}
    assert made["text_perplexity"]["output_type"] == "loglikelihood_rolling"
    assert made["phone_book"]["generation_kwargs"]["until"] == ["\n"]
    with pytest.raises(ConfigError, match=r"last_word is made from texts of yours; --text FILE names them"):
        local_task("last_word", [])
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ConfigError, match=r"last_word finds nothing to ask in .*short.txt: it takes 80 words"):
        local_task("last_word", [str(tmp_path / "short.txt")])
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, message in (("bytes", "is no text in UTF-8"), ("none", "cannot be read: No such file")):
        with pytest.raises(ConfigError, match=message):
            local_task("text_perplexity", [str(tmp_path / name)])


def test_the_command_says_how_to_install_the_harness_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "tiny", step=None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "PACKAGE", "a_package_that_is_not_there")
    for words, sentence in (
        ([], "the lm-evaluation-harness is not installed; it comes with: pip install '.[lm-eval]' (in a clone)"),
        (["--limit", "0"], "--limit is 0, but must be above 0"),
        (["--batch-size", "0"], "--batch-size is 0, but must be a whole number >= 1"),
        (["--include-path", "none"], "--include-path is none, but there is no such folder"),
    ):
        assert main(["eval", "lm-eval", "./tiny", "--tasks", "a,b", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not Path("runs").exists()
