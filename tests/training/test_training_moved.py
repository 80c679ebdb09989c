"""A run does not depend on where it lies: moved, reached through a link, or its store somewhere else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from training_helpers import Recorder, tiny_experiment, with_fields

from xlstm_jax.data.errors import MissingStoreError
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.loop import train


@pytest.fixture(scope="module")
def begun(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of a run that has a store of its own."""
    place = tmp_path_factory.mktemp("moved")
    shutil.copytree(store, place / "store")
    train(place / "run", tiny_experiment(store=place / "store", steps=4))
    return place


@pytest.fixture
def place(begun: Path, tmp_path: Path) -> Path:
    """A copy of both whose config names the copied store."""
    shutil.copytree(begun, tmp_path / "place")
    config = tmp_path / "place" / "run" / "config.json"
    config.write_text(config.read_text().replace(str(begun / "store"), str(tmp_path / "place" / "store")))
    return tmp_path / "place"


def longer(run: Path, **data: str) -> Experiment:
    experiment = RunFolder(run).read_config(Experiment)
    return with_fields(with_fields(experiment, "training", steps=6), "data", **data)


def test_a_moved_run_goes_on_under_its_new_name_and_through_a_link(place: Path) -> None:
    os.rename(place / "run", place / "renamed")
    (place / "link").symlink_to("renamed")
    recorder = Recorder()
    outcome = train(place / "link", longer(place / "link"), [recorder])
    assert outcome.exit_code == 0
    assert recorder.steps == [5, 6]
    assert [record["step"] for record in RunFolder(place / "renamed").metrics().read()] == [1, 2, 3, 4, 5, 6]


def test_a_moved_store_is_named_and_its_new_place_accepted(place: Path) -> None:
    os.rename(place / "store", place / "elsewhere")
    with pytest.raises(MissingStoreError, match=str(place / "store")):
        train(place / "run", longer(place / "run"))
    assert train(place / "run", longer(place / "run", store=str(place / "elsewhere"))).exit_code == 0
