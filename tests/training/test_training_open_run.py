"""Opening a run: what is read decides, and deciding needs no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from training_helpers import tiny_experiment, with_fields

from xlstm_jax.config import ConfigError
from xlstm_jax.machine.memory import DeviceMemory
from xlstm_jax.runs.errors import ConfigChangedError, NoCheckpointError
from xlstm_jax.runs.folder import CONVERTED, RunFolder, with_config
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.errors import TrainingError
from xlstm_jax.training.loop import train
from xlstm_jax.training.open_run import Facts, agree, inspect


def facts(**changes: Any) -> Facts:
    """Of a folder that is nowhere."""
    begun = with_fields(tiny_experiment(store="text"), "model", vocab_size=320)
    values: dict[str, Any] = {
        "run": RunFolder("nowhere"),
        "recorded": with_fields(begun, "data", fingerprint="f"),
        "converted": False,
        "tokenizer": None,
        "has_checkpoint": True,
        "lost": None,
    }
    return Facts(**values | changes)


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_looking_at_a_run_changes_nothing_in_it(store: Path, tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", tiny_experiment(store=store, steps=2))
    before = snapshot(tmp_path / "run")
    found = inspect(RunFolder(tmp_path / "run"))
    assert snapshot(tmp_path / "run") == before
    assert (found.recorded, found.has_checkpoint, found.converted) == (outcome.opened.experiment, True, False)
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint == outcome.opened.store.tokenizer.fingerprint

    fresh = inspect(RunFolder(tmp_path / "new"))
    assert (fresh.recorded, fresh.tokenizer, fresh.has_checkpoint, fresh.lost) == (None, None, False, None)
    assert not (tmp_path / "new").exists()


def test_what_is_left_open_is_as_the_run_has_it() -> None:
    asked = tiny_experiment(store="text", steps=99)
    agreed = agree(facts(), asked)
    assert (agreed.model.vocab_size, agreed.data.fingerprint, agreed.training.steps) == (320, "f", 99)
    assert agree(facts(recorded=None), asked) == asked


@pytest.mark.parametrize(
    ("changes", "optimizer", "error", "says"),
    [
        ({"converted": True}, {}, TrainingError, "nowhere holds weights that were trained elsewhere"),
        ({}, {"lr": 0.5}, ConfigChangedError, r"optimizer\.lr is 0\.01 in the run and 0\.5 now"),
        (
            {"lost": Path("nowhere/checkpoints/4")},
            {},
            NoCheckpointError,
            "no checkpoint of nowhere is undamaged",
        ),
    ],
)
def test_facts_alone_refuse_in_one_sentence(
    changes: dict[str, Any], optimizer: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        agree(facts(**changes), with_fields(tiny_experiment(store="text"), "optimizer", **optimizer))


def test_a_run_that_was_begun_with_a_wide_seed_goes_on_with_it_and_no_other_begins() -> None:
    asked = tiny_experiment(store="text", seed=2**32)
    begun = with_fields(with_fields(asked, "model", vocab_size=320), "data", fingerprint="f")
    assert agree(facts(recorded=begun), asked).training.seed == 2**32
    with pytest.raises(ConfigError, match=r"training\.seed is 4294967296, but must be < 2\*\*32"):
        agree(facts(recorded=None), asked)


def test_rows_that_the_machine_has_no_memory_for_are_refused_at_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "xlstm_jax.training.open_run.machine_memory", lambda: DeviceMemory("CPU", 4 * 16 * 15 - 1, None)
    )
    with pytest.raises(ConfigError, match=r"batch_size is 4, but .* takes 960 bytes, and this machine has 959 bytes"):
        train(tmp_path / "run", tiny_experiment(store=store))


def test_a_model_in_float64_is_refused_where_jax_would_make_float32_of_it(x64: None) -> None:
    asked = with_fields(tiny_experiment(store="text"), "model", dtype="float64")
    assert agree(facts(recorded=None), asked) == asked
    with (
        jax.enable_x64(False),
        pytest.raises(ConfigError, match=r"model\.dtype is 'float64', which JAX computes in with JAX_ENABLE_X64=1"),
    ):
        agree(facts(recorded=None), asked)


@pytest.mark.parametrize(
    ("parts", "recorded", "converted"),
    [
        (("params",), {CONVERTED: True}, True),
        (("params", "opt_state"), {CONVERTED: True}, True),
        (("params",), {CONVERTED: False}, False),
        # From before it was recorded.
        (("params",), {}, True),
        (("params", "opt_state"), {}, False),
    ],
)
def test_weights_from_elsewhere_are_known_by_what_was_recorded_of_them(
    parts: tuple[str, ...], recorded: dict[str, bool], converted: bool, tmp_path: Path
) -> None:
    run, experiment = RunFolder(tmp_path), tiny_experiment(store="text")
    with run.checkpoints() as checkpoints:
        state = {part: {"kernel": np.ones(2, np.float32)} for part in parts}
        checkpoints.save(0, state, with_config(experiment, tokens_seen=0, **recorded))
    run.write_config(experiment)
    assert inspect(run).converted is converted
    assert run.read_config(Experiment) == experiment
