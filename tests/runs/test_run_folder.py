import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.machine.environment import environment_changes, present_environment
from xlstm_jax.runs.difference import difference, refuse_differences
from xlstm_jax.runs.errors import (
    ConfigChangedError,
    DamagedRunError,
    NoCheckpointError,
    RunError,
    RunExistsError,
    RunNotFoundError,
)
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import TrainingConfig


@dataclass
class Inner:
    rate: float = 0.1
    blocks: list[int] = field(default_factory=list)


@dataclass
class Config:
    name: str = "ü"
    steps: int = 3
    inner: Inner | None = None


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "runs" / "one").create()
    run.write_config(Config(inner=Inner(1 / 3, [1, 2])))
    return run


def test_a_config_reads_back_equal(run):
    assert run.read_config(Config) == Config(inner=Inner(1 / 3, [1, 2]))
    assert RunFolder.open(run.path).read_config_json()["inner"] == {"rate": 1 / 3, "blocks": [1, 2]}
    assert [p.name for p in run.path.iterdir()] == ["config.json"]


def test_a_missing_run_is_named_with_its_neighbours(run):
    with pytest.raises(RunNotFoundError, match=r"there is no run .*two \(runs in .*: one\)"):
        RunFolder.open(run.path.with_name("two"))
    with pytest.raises(RunNotFoundError, match=r"is not a run: it has no config\.json \(runs in .*: one\)"):
        RunFolder.open(run.path.parent)
    with pytest.raises(RunNotFoundError, match="is a file"):
        RunFolder.open(run.config_path)
    with pytest.raises(RunNotFoundError, match="no run"):
        RunFolder(run.path / "a" / "b").read_config(Config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "a"', "is damaged: it is not JSON"),
        (b"\xff\xfe", "is damaged: it is not JSON"),
        (b"[]", "holds a list"),
        (b'{"stepz": 3}', "stepz.*did you mean 'steps'"),
        (b'{"inner": {"rate": "x"}}', r"inner\.?.* is .*'x'"),
    ],
)
def test_a_damaged_config_is_named(run, content, message):
    run.config_path.write_bytes(content)
    with pytest.raises(DamagedRunError, match=message) as caught:
        run.read_config(Config)
    assert str(run.config_path) in str(caught.value)


def test_create_leaves_foreign_folders_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunExistsError, match=r"thesis\.txt"):
        RunFolder(tmp_path).create()
    with pytest.raises(RunExistsError, match="is a file"):
        RunFolder(tmp_path / "thesis.txt").create()
    with pytest.raises(RunError, match="cannot be made"):
        RunFolder(tmp_path / "thesis.txt" / "run").create()


def test_create_goes_on_where_a_start_was_killed(tmp_path):
    run = RunFolder(tmp_path / "run").create()
    with run.lock():
        pass
    run.create()


def test_a_tokenizer_is_copied_once_and_never_exchanged(run, tmp_path):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    run.copy_tokenizer(source)
    run.copy_tokenizer(source)
    assert (run.tokenizer_dir / "tokenizer.json").read_text() == "{}"
    (source / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(RunExistsError, match="another tokenizer"):
        run.copy_tokenizer(source)
    with pytest.raises(RunNotFoundError, match="no tokenizer folder"):
        run.copy_tokenizer(tmp_path / "none")


def test_the_environment_that_was_recorded_is_the_present_one(run):
    assert run.environment_changes() == []
    record = run.write_environment()
    assert {"jax", "jaxlib", "python", "cores", "device_kind", "version", "commit"} <= set(record)
    assert run.environment_changes() == []


def test_a_change_of_environment_is_announced(run):
    present = present_environment()
    run.write_environment({**present, "jaxlib": "0.1", "cores": 96, "gone": 1})
    jaxlib, cores = run.environment_changes()
    assert jaxlib.startswith(f"jaxlib was 0.1 when this run was last trained and is {present['jaxlib']} now")
    assert "CPU cores was 96" in cores
    assert environment_changes({"nproc": None}, {"nproc": "32"})[0].startswith(
        "NPROC (the size of XLA's thread pool) was"
    )
    run.environment_path.write_text("{")
    with pytest.raises(DamagedRunError, match=r"environment\.json"):
        run.environment_changes()


OLD = {"training": {"steps": 100, "log": {"every": 10}}, "optimizers": {"a": {"name": "x", "rate": 0.1}}, "on": True}


def test_equal_configs_differ_nowhere():
    assert difference(OLD, OLD) == []


def test_what_may_change_is_given_by_prefixes():
    new = {
        "training": {"steps": 200, "log": {"every": 5}},
        "optimizers": {"a": {"name": "y", "rate": 0.2}},
        "on": 1,
        "more": None,
    }
    keys = ["training.steps", "training.log.every", "optimizers.a.name", "optimizers.a.rate", "on", "more"]
    assert [d.key for d in difference(OLD, new)] == keys
    assert [d.key for d in difference(OLD, new, ["training", "optimizers.*.name", "more"])] == keys[3:5]
    assert [d.key for d in difference(OLD, new, ["training.step", "training.log"])] == [keys[0], *keys[2:]]


def test_a_refusal_names_key_values_and_the_way_out():
    new = {**OLD, "optimizers": {"a": None}}
    with pytest.raises(ConfigChangedError, match=r"optimizers\.a is \{'name'.*\} in the run and None now.*--fork NAME"):
        refuse_differences("runs/x", OLD, new)
    refuse_differences("runs/x", OLD, new, ["optimizers"])


def test_a_fork_starts_from_a_checkpoint_with_another_config(run, tmp_path):
    new = tmp_path / "runs" / "two"
    with pytest.raises(NoCheckpointError):
        run.fork(new, Config())
    assert not new.exists()
    with run.checkpoints() as saved:
        for step in (1, 2):
            saved.save(step, {"params": jnp.arange(3) * step}, {"s": step})
            run.metrics().append({"step": step})
    run.metrics().append({"step": 3})
    copy = run.fork(new, Config(steps=9))
    assert copy.read_config(Config) == Config(steps=9)
    step, params, extra = copy.read_params()
    assert (step, extra) == (2, {"s": 2, "config": {"name": "ü", "steps": 9, "inner": None}})
    copy.check_config(step, extra)
    np.testing.assert_array_equal(params, [0, 2, 4])
    assert copy.metrics().read() == [{"step": 1}, {"step": 2}]
    with pytest.raises(RunExistsError, match="exists already"):
        run.fork(new, Config())
    assert run.fork(new.with_name("three"), Config(), step=1).read_params()[0] == 1
    assert sorted(p.name for p in new.parent.iterdir()) == ["one", "three", "two"]


def test_run_folders_are_imported_without_jax():
    program = "import sys, xlstm_jax.runs.folder; print({'jax', 'orbax', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_config_of_another_version_says_so(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    run.write_environment({"version": "9.9"})
    run.write_config({"steps": 3, "of_the_future": 1})
    with pytest.raises(DamagedRunError, match=r"of_the_future.*; the run was written by xlstm-jax 9\.9, and this is"):
        run.read_config(TrainingConfig)
