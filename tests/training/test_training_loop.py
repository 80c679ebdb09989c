"""Runs: what they write, how they go on, what they refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from training_helpers import Recorder, tiny_experiment, with_fields, write_corpus

from xlstm_jax.data.errors import DamagedStoreError, MissingStoreError
from xlstm_jax.data.prepare import prepare
from xlstm_jax.files import DiskFullError, LockedError, LostError
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.errors import (
    CheckpointError,
    ConfigChangedError,
    NoCheckpointError,
    StateMismatchError,
)
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.scoring.heldout import HeldOut
from xlstm_jax.scoring.score import Score
from xlstm_jax.training import loop
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.errors import NotFiniteError, WrongStoreError
from xlstm_jax.training.events import Event, Saved, Stepped
from xlstm_jax.training.fork import fork_run
from xlstm_jax.training.loop import train


def losses(run: Path) -> list[tuple]:
    """What must repeat bit for bit."""
    names = ("step", "loss", "tokens", "tokens_seen", "lr", "grad_norm", "param_norm", "update_norm", "validation_loss")
    return [tuple(record.get(name) for name in names) for record in RunFolder(run).metrics().read()]


class Trained(NamedTuple):
    run: Path
    experiment: Experiment
    recorder: Recorder


@pytest.fixture(scope="module")
def trained(store: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = tmp_path_factory.mktemp("runs") / "whole"
    experiment, recorder = tiny_experiment(corpus, store), Recorder()
    assert train(run, experiment, [recorder]).exit_code == 0
    return Trained(run, experiment, recorder)


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the finished run, to do things to."""
    shutil.copytree(trained.run, tmp_path / "run")
    return tmp_path / "run"


def cut_to(run: Path, step: int) -> None:
    """Leave only the checkpoints up to a step: what a run that was killed after it looks like."""
    for folder in (run / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)


def test_a_run_folder_has_all_that_was_promised(trained: Trained) -> None:
    records = RunFolder(trained.run).metrics().read()
    assert [r["step"] for r in records] == list(range(1, 13)) == trained.recorder.steps
    for record in records:
        assert record["tokens_seen"] == sum(r["tokens"] for r in records[: record["step"]])
        assert {"loss", "lr", "step_time", "tokens_per_second", "flops_per_second", "flops_share"} <= set(record)
        assert ("validation_loss" in record) == (record["step"] % 4 == 0)
    assert records[3]["perplexity"] == pytest.approx(np.exp(records[3]["validation_loss"]))
    report = json.loads((trained.run / "report.json").read_bytes())
    assert 0 < records[-1]["validation_documents"] < report["comparison"]["files"]
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["validation_loss"] < records[3]["validation_loss"]
    assert (trained.run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert RunFolder(trained.run).checkpoints(read_only=True).steps() == [8, 12]
    recorded = RunFolder(trained.run).read_config(Experiment)
    assert recorded.model.vocab_size == 320
    assert recorded.data.fingerprint
    assert any("a checkpoint" in sentence for sentence in trained.recorder.said)


def test_a_finished_run_does_nothing_more(run: Path, trained: Trained) -> None:
    before = losses(run)
    outcome = train(run, trained.experiment)
    assert (outcome.exit_code, outcome.trained, outcome.opened.step) == (0, False, 12)
    assert losses(run) == before


def test_a_signal_in_the_last_step_is_heard(store: Path, corpus: Path, tmp_path: Path, trained: Trained) -> None:
    class Stopper(Recorder):
        def handle(self, event: Event) -> None:
            super().handle(event)
            if isinstance(event, Stepped) and event.step == 12:
                os.kill(os.getpid(), signal.SIGTERM)

    assert train(tmp_path / "run", trained.experiment, [Stopper()]).exit_code == 143
    assert RunFolder(tmp_path / "run").checkpoints(read_only=True).latest_step() == 12
    assert losses(tmp_path / "run") == losses(trained.run)


def test_going_on_from_a_checkpoint_repeats_every_number_bit_for_bit(run: Path, trained: Trained) -> None:
    cut_to(run, 8)
    recorder = Recorder()
    train(run, trained.experiment, [recorder])
    assert recorder.steps == [9, 10, 11, 12]
    assert losses(run) == losses(trained.run)


def test_length_and_logging_may_change_on_going_on_and_nothing_else(run: Path, trained: Trained) -> None:
    longer = with_fields(trained.experiment, "training", steps=14, log_every=1, keep_checkpoints=3, eval_every=0)
    outcome = train(run, longer)
    assert outcome.opened.step == 14
    assert RunFolder(run).read_config(Experiment).training.steps == 14
    for part, fields, key in (
        ("optimizer", {"lr": 0.5}, "optimizer.lr is 0.01 in the run and 0.5 now"),
        ("training", {"batch_size": 8, "steps": 14}, "training.batch_size is 4 in the run and 8 now"),
        ("model", {"num_blocks": 2}, "model.num_blocks is 1 in the run and 2 now"),
    ):
        before = losses(run)
        with pytest.raises(ConfigChangedError, match=key) as error:
            train(run, with_fields(longer, part, **fields))
        assert "--fork NAME" in str(error.value)
        assert losses(run) == before


def test_a_copy_goes_on_with_other_values_and_leaves_the_first_run_alone(run: Path, trained: Trained) -> None:
    before = losses(run)
    other = with_fields(with_fields(trained.experiment, "optimizer", lr=1e-3), "training", steps=14)
    fork_run(RunFolder(run), run.parent / "copy", other, print)
    recorder = Recorder()
    train(run.parent / "copy", other, [recorder])
    assert recorder.steps == [13, 14]
    assert losses(run) == before == losses(run.parent / "copy")[:12]


def test_a_copy_of_another_shape_is_refused_before_anything_is_made(run: Path, trained: Trained) -> None:
    with pytest.raises(StateMismatchError, match="embedding"):
        fork_run(RunFolder(run), run.parent / "copy", with_fields(trained.experiment, "model", embedding_dim=24), print)
    assert not (run.parent / "copy").exists()


def test_a_copy_with_a_store_of_another_tokenizer_is_refused_before_anything_is_made(
    run: Path, trained: Trained, tmp_path: Path
) -> None:
    text = write_corpus(tmp_path / "other", seed=1)
    prepare([str(text)], tmp_path / "bpe", tokenizer="bpe", vocab_size=300, progress=False)
    other = with_fields(trained.experiment, "data", store=str(tmp_path / "bpe"))
    with pytest.raises(WrongStoreError, match="another tokenizer"):
        fork_run(RunFolder(run), run.parent / "copy", other, print)
    assert not (run.parent / "copy").exists()


def test_a_damaged_record_of_the_environment_stops_nobody(run: Path, trained: Trained) -> None:
    (run / "environment.json").write_text("{bad")
    longer = with_fields(trained.experiment, "training", steps=13)
    recorder = Recorder()
    train(run, longer, [recorder])
    assert recorder.steps == [13]


def test_a_store_of_another_tokenizer_or_text_is_refused(run: Path, trained: Trained, tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "other", seed=1)
    prepare([str(text)], tmp_path / "bytes", tokenizer="bytes", progress=False)
    prepare([str(text)], tmp_path / "bpe", tokenizer="bpe", vocab_size=300, progress=False)
    before = losses(run)
    for store, reason in (("bpe", "another tokenizer"), ("bytes", "another text")):
        with pytest.raises(WrongStoreError, match=reason):
            train(run, with_fields(trained.experiment, "data", store=str(tmp_path / store)))
    with pytest.raises(WrongStoreError, match=r"data.tokenizer is 'bytes', but the store .* 'bpe'"):
        train(tmp_path / "new", tiny_experiment(store=tmp_path / "bpe"))
    assert losses(run) == before


def test_a_flipped_bit_in_the_store_is_found_before_training(
    run: Path, trained: Trained, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "store")
    shard = tmp_path / "store" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    before = losses(run)
    with pytest.raises(DamagedStoreError, match=r"train-00000\.bin is damaged"):
        train(run, with_fields(trained.experiment, "data", store=str(tmp_path / "store")))
    assert losses(run) == before


def test_a_missing_store_is_made_from_the_sources_or_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingStoreError, match="there is no token store at"):
        train(tmp_path / "run", tiny_experiment(store=tmp_path / "nowhere"))
    assert not (tmp_path / "run" / "config.json").exists()
    recorder = Recorder()
    train(tmp_path / "run", tiny_experiment(corpus, tmp_path / "made", steps=2), [recorder])
    assert any(sentence.startswith("preparing the token store") for sentence in recorder.said)
    assert (tmp_path / "made" / "index.json").exists()


def test_a_run_in_use_is_refused(run: Path, trained: Trained) -> None:
    with RunFolder(run).lock(), pytest.raises(LockedError, match="is being written by"):
        train(run, trained.experiment)


def test_a_loss_that_is_not_finite_stops_and_never_becomes_a_checkpoint(
    store: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loop.make_train_step

    def broken_at_six(*args: Any, **kwargs: Any) -> Any:
        whole = make(*args, **kwargs)

        class Broken:
            def lower(self, state: Any, rows: Any) -> Any:
                compiled = whole.lower(state, rows).compile()  # type: ignore[attr-defined]

                def step(state: Any, rows: Any) -> Any:
                    state, metrics = compiled(state, rows)
                    if int(state.step) == 6:
                        metrics = metrics._replace(loss=np.float32(np.nan), finite=np.bool_(False))
                    return state, metrics

                self.step = step
                return self

            def compile(self) -> Any:
                return self.step

        return Broken()

    monkeypatch.setattr(loop, "make_train_step", broken_at_six)
    with pytest.raises(NotFiniteError, match="training stopped at step 6: the loss is nan; the checkpoint of step 4"):
        train(tmp_path / "run", tiny_experiment(corpus, store))
    assert RunFolder(tmp_path / "run").checkpoints(read_only=True).steps() == [4]
    assert losses(tmp_path / "run")[-1][:2] == (6, None)


def test_a_learning_rate_that_blows_the_model_up_stops_by_itself(store: Path, corpus: Path, tmp_path: Path) -> None:
    wild = with_fields(tiny_experiment(corpus, store, checkpoint_every=1), "optimizer", lr=1e30, grad_clip_norm=None)
    with pytest.raises(NotFiniteError, match=r"is nan|is inf"):
        train(tmp_path / "run", wild)
    saved = RunFolder(tmp_path / "run").checkpoints(read_only=True)
    last = RunFolder(tmp_path / "run").metrics().read()[-1]["step"]
    assert all(step < last for step in saved.steps())


def test_parameters_that_are_not_finite_never_become_a_checkpoint(store: Path, corpus: Path, tmp_path: Path) -> None:
    wild = with_fields(tiny_experiment(corpus, store, checkpoint_every=1), "optimizer", lr=1e30)
    says = r"training stopped at step 1: the norm of the parameters is (nan|inf); nothing was saved"
    with pytest.raises(NotFiniteError, match=says):
        train(tmp_path / "run", wild)
    assert RunFolder(tmp_path / "run").checkpoints(read_only=True).steps() == []


def test_a_held_out_loss_that_is_not_finite_stops_before_anything_is_saved(
    store: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HeldOut.__call__
    looks: list[Score] = []

    def broken(self: HeldOut, params: Any, progress: Any = None) -> Score:
        looks.append(real(self, params, progress))
        return looks[-1] if len(looks) == 1 else dataclasses.replace(looks[-1], nats=float("nan"))

    monkeypatch.setattr(HeldOut, "__call__", broken)
    with pytest.raises(NotFiniteError, match="at step 8: the loss on held-out text is nan; the checkpoint of step 4"):
        train(tmp_path / "run", tiny_experiment(corpus, store))
    assert RunFolder(tmp_path / "run").checkpoints(read_only=True).steps() == [4]
    assert RunFolder(tmp_path / "run").metrics().read()[-1]["validation_loss"] is None


@pytest.mark.parametrize("damage", ["a flipped bit", "no manifest"])
def test_a_run_without_any_good_checkpoint_does_not_begin_again_by_itself(
    damage: str, run: Path, trained: Trained
) -> None:
    before = losses(run)
    for manifest in (run / "checkpoints").glob("*/manifest.json"):
        if damage == "no manifest":
            manifest.unlink()
        else:
            content = bytearray(manifest.read_bytes())
            content[50] ^= 1
            manifest.write_bytes(content)
    for _ in range(2):
        with pytest.raises(NoCheckpointError, match="undamaged"):
            train(run, trained.experiment)
        assert losses(run) == before
    shutil.rmtree(run / "checkpoints")
    assert train(run, trained.experiment).exit_code == 0
    assert losses(run) == before


def test_a_disk_without_room_is_told_before_training(
    store: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"3 checkpoints need .* but the disk of .* has 100.0 kB free"):
        train(tmp_path / "run", tiny_experiment(corpus, store))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_machine_is_announced(run: Path, trained: Trained) -> None:
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"jaxlib": "0.0.1", "cores": 999}))
    recorder = Recorder()
    train(run, trained.experiment, [recorder])
    notes = [sentence for sentence in recorder.said if sentence.startswith("note:")]
    assert any("jaxlib was 0.0.1" in note for note in notes)
    assert any("999" in note for note in notes)


def test_a_longer_schedule_says_where_the_learning_rate_goes(run: Path, trained: Trained) -> None:
    rates = [record["lr"] for record in RunFolder(run).metrics().read()]
    recorder = Recorder()
    longer = with_fields(trained.experiment, "training", steps=24)
    train(run, longer, [recorder])
    after = [record["lr"] for record in RunFolder(run).metrics().read()][12]
    assert after > 2 * rates[-1]
    (note,) = [sentence for sentence in recorder.said if "learning rate" in sentence]
    assert f"from {rates[-1]:.2e} to {after:.2e}" in note
    again = Recorder()
    train(run, longer, [again])
    assert not [sentence for sentence in again.said if "learning rate" in sentence]


@pytest.mark.parametrize(("fields", "told"), [({}, True), ({"lr": 2e-2}, False)])
def test_a_longer_copy_says_where_the_learning_rate_goes_unless_it_was_asked_for(
    fields: dict[str, float], told: bool, run: Path, trained: Trained
) -> None:
    said: list[str] = []
    longer = with_fields(with_fields(trained.experiment, "training", steps=24), "optimizer", **fields)
    fork_run(RunFolder(run), run.parent / "copy", longer, said.append)
    assert any("learning rate follows a schedule of 24 steps" in sentence for sentence in said) == told


def test_steps_that_are_made_cannot_be_taken_back(run: Path, trained: Trained) -> None:
    recorder = Recorder()
    outcome = train(run, with_fields(trained.experiment, "training", steps=5), [recorder])
    assert not outcome.trained
    assert RunFolder(run).read_config(Experiment).training.steps == 12
    assert any("12 steps are made already" in sentence for sentence in recorder.said)


class OnceSaved(Recorder):
    """Does something when the first checkpoint is complete, and the next not yet begun."""

    def __init__(self, what: Callable[[], object]) -> None:
        super().__init__()
        self._what = what

    def handle(self, event: Event) -> None:
        super().handle(event)
        if isinstance(event, Saved) and event.step == 4:
            self._what()


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_run_whose_folder_is_taken_away_while_it_trains_stops_and_promises_nothing(
    how: str, corpus: Path, store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def take() -> None:
        run.rename(tmp_path / "other")
        if how == "removed":
            shutil.rmtree(tmp_path / "other")
        if how == "replaced":
            run.mkdir()
            (run / "mine.txt").write_text("a text")

    recorder = OnceSaved(take)
    with pytest.raises(LostError, match="run was removed, renamed or replaced"):
        train(run, tiny_experiment(corpus, store), [recorder])
    assert max(recorder.steps) <= 8
    assert (list(run.iterdir()) if run.exists() else []) == ([run / "mine.txt"] if how == "replaced" else [])
    if how == "renamed":
        assert train(tmp_path / "other", tiny_experiment(corpus, store)).opened.step == 12


def test_what_is_removed_from_a_run_while_it_trains_is_written_again(
    corpus: Path, store: Path, tmp_path: Path, trained: Trained
) -> None:
    run = tmp_path / "run"

    def take() -> None:
        for place in (run / "tokenizer", run / "checkpoints"):
            shutil.rmtree(place)
        for name in ("config.json", "metrics.jsonl"):
            (run / name).unlink()

    train(run, trained.experiment, [OnceSaved(take)])
    assert losses(run) == losses(trained.run)
    assert train(run, trained.experiment).trained is False


def test_a_last_checkpoint_that_is_removed_at_once_is_not_told_of_as_saved(
    corpus: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Checkpoints.wait

    def then_removed(self: Checkpoints) -> None:
        real(self)
        shutil.rmtree(self.folder / "00000004", ignore_errors=True)

    monkeypatch.setattr(Checkpoints, "wait", then_removed)
    with pytest.raises(CheckpointError, match="00000004 was removed as soon as it was saved"):
        train(tmp_path / "run", tiny_experiment(corpus, store, steps=4))
