"""`config.json` has no sum of its own: what it says is compared with what each checkpoint was saved with."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import tiny_experiment, with_fields

import xlstm_jax
from xlstm_jax.inference.run import NOT_THE_MODEL, model_config
from xlstm_jax.runs.errors import DamagedRunError
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.fork import fork_run
from xlstm_jax.training.loop import train


@pytest.fixture(scope="module")
def experiment(store: Path) -> Experiment:
    return tiny_experiment(store=store, steps=4)


@pytest.fixture(scope="module")
def trained(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(path, experiment)
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(trained, tmp_path / "run"))


def edit(run: RunFolder, part: str, field: str, value: Any) -> None:
    config = run.read_config_json()
    assert config[part][field] != value
    config[part][field] = value
    run.write_config(config)


def recorded(run: RunFolder) -> Experiment:
    return run.read_config(Experiment)


def test_another_model_that_takes_the_same_weights_is_refused(run: RunFolder) -> None:
    edit(run, "model", "norm_eps", 1e-3)
    sentence = r"config\.json is not what it was when the checkpoint of step 4 was saved: model\.norm_eps is 0\.001"
    uses: dict[str, Callable[[], Any]] = {
        "load": lambda: xlstm_jax.load(run.path),
        "train": lambda: train(run.path, with_fields(recorded(run), "training", steps=6)),
        "fork": lambda: fork_run(run, run.path.with_name("copy"), recorded(run), print),
    }
    for use in uses.values():
        with pytest.raises(DamagedRunError, match=sentence):
            use()
    assert not run.path.with_name("copy").exists()
    edit(run, "model", "norm_eps", 1e-6)
    assert xlstm_jax.load(run.path).step == 4


def test_another_way_of_training_stops_training_alone(run: RunFolder) -> None:
    edit(run, "optimizer", "weight_decay", 0.11)
    assert xlstm_jax.load(run.path).step == 4
    with pytest.raises(DamagedRunError, match=r"optimizer\.weight_decay is 0\.11, and was 0\.1"):
        train(run.path, with_fields(recorded(run), "training", steps=6))


def test_what_may_change_may_change_in_the_file_too(run: RunFolder) -> None:
    edit(run, "training", "keep_checkpoints", 5)
    assert train(run.path, with_fields(recorded(run), "training", steps=6)).opened.step == 6


def test_a_copy_goes_by_its_own_config(run: RunFolder) -> None:
    other = with_fields(with_fields(recorded(run), "model", norm_eps=1e-5), "training", steps=8)
    copy = fork_run(run, run.path.with_name("copy"), other, print)
    assert xlstm_jax.load(copy.path).config.norm_eps == 1e-5
    assert train(copy.path, with_fields(recorded(copy), "training", steps=8)).opened.step == 8


def test_no_flipped_bit_of_the_model_goes_unnoticed(run: RunFolder) -> None:
    text = run.config_path.read_bytes()
    first, last = text.index(b'"model"'), text.index(b'"data"')
    model, (step, _, extra) = model_config(run), run.read_params()
    rng, unnoticed = random.Random(0), 0
    for _ in range(1500):
        flipped = bytearray(text)
        flipped[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        run.config_path.write_bytes(flipped)
        try:
            found = model_config(run)
            run.check_config(step, extra, NOT_THE_MODEL)
        except DamagedRunError:
            continue
        # Only such that change nothing (a space that became another one).
        assert found == model
        unnoticed += 1
    assert unnoticed < 100


def test_a_checkpoint_from_before_is_read_as_it_is(run: RunFolder) -> None:
    run.check_config(4, {"tokens_seen": 1})
    saved = json.loads(run.config_path.read_text())
    del saved["model"]["norm_eps"]
    run.check_config(4, {"config": saved})
