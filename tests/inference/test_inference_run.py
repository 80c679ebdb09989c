"""Loading a run: what comes, and what is said when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from inference_helpers import model_config, write_run

import xlstm_jax
from xlstm_jax.inference.run import Run
from xlstm_jax.runs.errors import DamagedRunError, NoCheckpointError, RunError, RunNotFoundError
from xlstm_jax.runs.folder import RunFolder


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, xlstm_jax; xlstm_jax.load; xlstm_jax.__version__; "
        "assert not {'jax', 'numpy', 'flax', 'orbax'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = xlstm_jax.nothing_of_ours


def test_a_run_has_its_model_parameters_tokenizer_config_and_step(run: Run, run_path: Path) -> None:
    assert (run.step, run.path) == (3, run_path)
    assert run.config == model_config()
    assert run.tokenizer.kind == "bytes"
    logits = run.model.apply({"params": run.params}, run.tokenizer.encode_array("abc")[None])
    assert logits.shape == (1, 3, 320)
    assert f"step=3, parameters={run.model.param_count:,}" in repr(run)


def test_a_run_loads_while_it_is_locked_and_by_step(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", step=2)
    with RunFolder(path).lock():
        assert xlstm_jax.load(path).step == 2
        assert xlstm_jax.load(str(path), step=2).step == 2
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 5 \(there: 2\)"):
        xlstm_jax.load(path, step=5)


def damage(path: Path, how: str) -> None:
    config = path / "config.json"
    data = json.loads(config.read_text())
    if how == "model":
        del data["model"]
    elif how == "field":
        data["model"]["num_bloks"] = 3
    elif how == "vocabulary":
        data["model"]["vocab_size"] = 100
    elif how == "width":
        data["model"]["embedding_dim"] = 32
    elif how == "tokenizer":
        (path / "tokenizer" / "tokenizer_info.json").unlink()
        (path / "tokenizer").rmdir()
    config.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("how", "kind", "parts"),
    [
        ("model", DamagedRunError, ["config.json", "lacks 'model'"]),
        ("field", DamagedRunError, ["no field 'num_bloks'", "did you mean 'num_blocks'"]),
        ("vocabulary", DamagedRunError, ["257 tokens", "knows 100 only"]),
        ("width", RunError, ["token_embedding"]),
        ("tokenizer", DamagedRunError, ["has no tokenizer"]),
    ],
)
def test_a_run_that_does_not_fit_together_is_one_sentence(
    tmp_path: Path, how: str, kind: type[Exception], parts: list[str]
) -> None:
    path = write_run(tmp_path / "r")
    damage(path, how)
    with pytest.raises(kind) as error:
        xlstm_jax.load(path)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", step=None)
    with pytest.raises(NoCheckpointError, match=r"no complete checkpoint yet; `xlstm train .*r` goes on"):
        xlstm_jax.load(path)
    with pytest.raises(RunNotFoundError, match=r"there is no run .*runs in .*: r\)"):
        xlstm_jax.load(tmp_path / "q")
