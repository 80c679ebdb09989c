"""Rows end at every token that ends a text, and a model of NaN says so rather than nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference_helpers import model_config, write_run

import xlstm_jax
from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.inference.generate import Generator
from xlstm_jax.inference.run import Run
from xlstm_jax.inference.sampling import ELSEWHERE, Sampling
from xlstm_jax.models.language_model import param_shapes
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel
from xlstm_jax.runs.folder import RunFolder, TokenizerInfo
from xlstm_jax.scoring.finite import NotFiniteError

CONFIG = model_config(num_blocks=1)
MODEL = xLSTMLMModel(CONFIG)
GREEDY = Sampling(max_tokens=40, temperature=0, heal=False)


def counting() -> Any:
    """Parameters of a model that says the letter after the last one, whatever came before."""
    params: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), param_shapes(CONFIG))
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((CONFIG.vocab_size, CONFIG.embedding_dim)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    params["token_embedding"]["embedding"] = embedding
    params["xlstm_block_stack"]["post_blocks_norm"]["scale"][:] = 1
    params["lm_head"]["kernel"][:, 1:] = embedding[:-1].T
    return params


PARAMS = counting()


@pytest.fixture(scope="module")
def ending() -> Generator:
    """298 is a token of the model that the tokenizer lacks."""
    return Generator(MODEL, PARAMS, ByteTokenizer(), stop_ids=(ord("f"), 298, ord("x")))


def test_a_row_ends_at_any_of_its_end_tokens_which_are_no_text(ending: Generator) -> None:
    assert ending.generate(["a", "b", "e", "t"], GREEDY) == ["bcde", "cde", "", "uvw"]
    last = {delta.row: delta for delta in ending.stream(["a", "b", "e", "t"], GREEDY) if delta.finish}
    assert [(last[row].finish, last[row].tokens) for row in range(4)] == [("end", n) for n in (4, 3, 0, 3)]


def test_an_end_token_beyond_the_tokenizer_can_come(ending: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published models have such that their tokenizer.json lacks."""
    further = {"lm_head": {"kernel": np.roll(PARAMS["lm_head"]["kernel"], 200, axis=1)}}
    monkeypatch.setattr(ending, "params", PARAMS | further)
    (*_, delta) = ending.stream(["a", "a", "a"], GREEDY)
    assert (delta.text, delta.finish, delta.tokens) == ("", "end", 0)


def test_a_run_keeps_its_end_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "r", CONFIG, step=None)
    folder = RunFolder(path)
    with folder.checkpoints() as checkpoints:
        checkpoints.save(3, {"params": jax.tree.map(jnp.asarray, PARAMS)}, {})
    folder.write_tokenizer_info(TokenizerInfo(stop_ids=(ord("d"),)))
    run = xlstm_jax.load(path)
    assert "".join(run.stream("a", GREEDY)) == "bc"
    options = ["--temperature", "0", "--no-heal", "--json"]
    assert main(["generate", str(path), "--prompt", "a", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["finish"], record["tokens"]) == ("bc", "end", 2)


# -- NaN --------------------------------------------------------------------------------------------------------------


def damaged(value: float) -> Any:
    params = jax.tree.map(np.array, PARAMS)
    params["xlstm_block_stack"]["post_blocks_norm"]["scale"][3] = value
    return params


@pytest.fixture
def broken(ending: Generator, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Run]:
    """A run with other parameters, whose programs are compiled already."""

    def with_params(params: Any) -> Run:
        monkeypatch.setattr(ending, "params", params)
        run = Run(Path("r"), 3, MODEL, params, ByteTokenizer())
        vars(run)["generator"] = ending
        return run

    return with_params


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_of_nan_names_the_parameter_in_a_stream_a_batch_and_a_score(
    broken: Callable[[Any], Run], value: float, temperature: float
) -> None:
    run = broken(damaged(value))
    message = r"NaN or infinite.*parameter xlstm_block_stack\.post_blocks_norm\.scale holds such values"
    with pytest.raises(NotFiniteError, match=message):
        run.generate(["abc", "", "x"], max_tokens=5, temperature=temperature)
    with pytest.raises(NotFiniteError, match=message):
        list(run.stream("abc", max_tokens=5, temperature=temperature))
    if temperature and value is np.nan:
        with pytest.raises(NotFiniteError, match=message):
            run.score("abc")


def test_a_row_that_becomes_nan_on_the_way_says_where(broken: Callable[[Any], Run]) -> None:
    params = jax.tree.map(np.array, PARAMS)
    params["token_embedding"]["embedding"][ord("d")] = np.nan
    run = broken(params)
    assert run.generate(["a", "A"], max_tokens=3, temperature=0, heal=False) == ["bcd", "BCD"]
    with pytest.raises(NotFiniteError, match="logits of row 1 after 3 tokens"):
        run.generate(["A", "a"], GREEDY)


def test_activations_that_overflow_are_told_from_damaged_parameters(broken: Callable[[Any], Run]) -> None:
    params = jax.tree.map(np.array, PARAMS)
    params["lm_head"]["kernel"] *= 1e38
    params["xlstm_block_stack"]["post_blocks_norm"]["scale"] *= 1e30
    with pytest.raises(NotFiniteError, match="all its parameters are finite, so that it overflows"):
        broken(params).generate(["a", "b"], max_tokens=2)


def test_the_command_fails_with_one_sentence_for_a_checkpoint_of_nan(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: Callable[[Any], Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_run(tmp_path / "r", CONFIG, step=None)
    with RunFolder(path).checkpoints() as checkpoints:
        checkpoints.save(3, {"params": jax.tree.map(jnp.asarray, damaged(np.nan))}, {})
    monkeypatch.setattr(Run, "generator", broken(damaged(np.nan)).generator)
    for options in ([], ["--json"], ["--samples", "2"]):
        assert main(["generate", str(path), "--prompt", "ab", *options]) == 1
        shown = capsys.readouterr()
        assert "logits of row 0 after 0 tokens are NaN or infinite" in shown.err
        assert shown.err.count("\n") == 1


# -- settings ---------------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_and_jax_are_settings(run: Run) -> None:
    plain = run.generate("a", max_tokens=4, temperature=0.5, top_k=9, seed=3)
    for integer in (np.int64, np.uint8, np.array, jnp.int32, jnp.asarray):
        for number in (np.float32, np.float16, np.array, jnp.float32):
            settings: Any = {"max_tokens": integer(4), "temperature": number(0.5), "top_k": integer(9)}
            sampling = Sampling(**settings, seed=integer(3), heal=np.bool_(True), stop=np.array(["never there"]))
            assert (type(sampling.max_tokens), type(sampling.temperature)) == (int, float)
            assert sampling == Sampling(4, 0.5, 9, seed=3, stop=["never there"])
    assert run.generate("a", **settings, seed=np.int64(3), stop=None) == plain
    assert run.generate(["a"], max_tokens=4, streams=jnp.arange(1)) == run.generate(["a"], max_tokens=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": True}, r"max_tokens is True, but must be a whole number"),
        ({"max_tokens": np.bool_(True)}, r"max_tokens is np\.True_, but must be a whole number"),
        ({"max_tokens": np.float32(4)}, r"max_tokens is np\.float32\(4\.0\), but must be a whole number"),
        ({"max_tokens": np.arange(2)}, r"max_tokens is array\(\[0, 1\]\), but must be a whole number"),
        ({"temperature": np.nan}, r"temperature is nan"),
        ({"temperture": 1}, r"no setting 'temperture' of generation \(did you mean 'temperature'\?\)"),
        ({"max_new_tokens": 5}, r"no setting 'max_new_tokens' of generation \(max_tokens is how many"),
        ({"do_sample": False}, r"temperature=0 takes the most likely"),
        ({"repetition_penalty": 1.1}, r"no setting 'repetition_penalty'"),
        ({"settings": 64}, r"settings is 64, but must be a Sampling"),
        ({"streams": [0.5]}, r"streams is \[0\.5\]"),
        ({"streams": [True]}, r"streams is \[True\]"),
        ({"streams": [-1]}, r"streams is \[-1\]"),
    ],
)
def test_a_setting_that_there_is_not_is_told_with_what_is_meant(run: Run, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.generate(["a"], **settings)


def test_no_setting_has_the_name_of_one_elsewhere() -> None:
    assert not set(ELSEWHERE) & set(vars(Sampling()))
