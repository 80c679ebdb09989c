"""Who listens to training hears all of it, in order, and costs the device nothing."""

from __future__ import annotations

import io
import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from training_helpers import Recorder, tiny_experiment, with_fields

from xlstm_jax.data.store import open_store
from xlstm_jax.runs.folder import RunFolder, TokenizerInfo
from xlstm_jax.training.events import Ended, Event, Listeners, Saved, Scored, Started, Stepped
from xlstm_jax.training.listeners.finish import openings, print_samples
from xlstm_jax.training.listeners.metrics import MetricsFile
from xlstm_jax.training.loop import Due, Loop, train
from xlstm_jax.training.step import StepMetrics

SECONDS = 0.05
STEPS = 12


def test_a_training_is_told_in_order_and_leaves_its_report(corpus: Path, store: Path, tmp_path: Path) -> None:
    experiment = with_fields(tiny_experiment(corpus, store, steps=8), "training", sample_prompts=("def ",))
    recorder, shown = Recorder(), io.StringIO()
    outcome = train(tmp_path / "run", experiment, [recorder], console=Console(file=shown, width=100))

    events = [event for event in recorder.events if not isinstance(event, Saved)]
    kinds = [type(event) for event in events if type(event).__name__ != "Said"]
    assert kinds == [Started, *[Stepped] * 4, Scored, *[Stepped] * 4, Scored, Ended]
    assert [event.step for event in recorder.events if isinstance(event, Saved)] == [4, 8]
    started = next(event for event in events if isinstance(event, Started))
    assert (started.step, started.experiment, started.run.path) == (0, outcome.opened.experiment, tmp_path / "run")
    records = [event.record for event in events if isinstance(event, Stepped)]
    assert RunFolder(tmp_path / "run").metrics().read() == records
    scores = [event.scores["validation_loss"] for event in events if isinstance(event, Scored)]
    assert scores == [records[3]["validation_loss"], records[7]["validation_loss"]]
    assert events[-1] == Ended(outcome)

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["step"], outcome.opened.step) == (8, 8)
    assert report["comparison"]["model"] == report["bits_per_byte"] > 0
    assert {"unigram", "gzip", "xz", "files"} <= set(report["comparison"])
    console = Console(file=io.StringIO(), width=100)
    outcome.opened.run.write_tokenizer_info(TokenizerInfo(stop_ids=tuple(range(320))))
    print_samples(outcome.opened, console)
    assert "\ndef \n\nmore of them" in console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("step 8/8", "bits per byte on", "unigram bytes", "samples at temperature", "the run is in"):
        assert part in shown.getvalue()


def test_the_learning_rate_told_is_that_of_the_update(corpus: Path, store: Path, tmp_path: Path) -> None:
    experiment = tiny_experiment(corpus, store, steps=4, eval_every=0)
    recorder = Recorder()
    train(tmp_path / "run", experiment, [recorder])
    told = [event.record["lr"] for event in recorder.events if isinstance(event, Stepped)]
    rate = experiment.optimizer.build(4).learning_rate
    np.testing.assert_allclose(told, [float(rate(step)) for step in range(4)], rtol=4 * np.finfo(np.float32).eps)


class CallCounter:
    """Counts what Python functions run between two steps of a training."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.calls: Counter[str] = Counter()
        self.steps = 0

    def handle(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.steps += event.step > self.first
            sys.setprofile(self._count if self.first <= event.step < self.last else None)

    def _count(self, frame: FrameType, kind: str, argument: Any) -> None:
        if kind == "call":
            self.calls[frame.f_code.co_filename.replace("\\", "/")] += 1


def test_between_two_steps_no_program_is_dispatched_but_the_step_and_no_model_is_built(
    corpus: Path, store: Path, tmp_path: Path
) -> None:
    counter = CallCounter(2, 10)
    train(tmp_path / "run", tiny_experiment(corpus, store, eval_every=0, checkpoint_every=0), [counter])
    assert counter.steps >= 8
    eager = ("jax/_src/numpy/", "jax/_src/lax/", "jax/_src/dispatch.py", "jax/_src/pjit.py", "/optax/")
    for part in (*eager, "xlstm_jax/models/", "xlstm_jax/config.py"):
        assert not [path for path in counter.calls if part in path], part
    assert any("training/loop.py" in path for path in counter.calls)


class Device:
    """A device with one queue: a step is ready `SECONDS` after it was asked for, or after the one before it."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def step(self, state: Any, rows: Any) -> tuple[Any, Any]:
        self.free_at = max(self.free_at, time.perf_counter()) + SECONDS
        return state, StepMetrics(*(Later(self.free_at) for _ in StepMetrics._fields))


class Later:
    """A scalar that is there at some time; who asks before waits, as for an array of JAX."""

    def __init__(self, at: float) -> None:
        self.at = at

    def block_until_ready(self) -> Later:
        time.sleep(max(self.at - time.perf_counter(), 0))
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.block_until_ready()
        return np.asarray(1, dtype)


def seconds_of(device: Device, listener_seconds: float) -> float:
    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            time.sleep(listener_seconds)

    batches = [(step, None) for step in range(STEPS)]
    loop = Loop(device.step, batches, lambda step: Due(False, save=step == STEPS), listen)  # type: ignore[arg-type]
    start = time.perf_counter()
    loop.run(None, 0)  # type: ignore[arg-type]
    return time.perf_counter() - start


def test_a_slow_listener_works_while_the_device_does() -> None:
    alone = seconds_of(Device(), 0)
    assert alone >= STEPS * SECONDS
    # One step's listener has no step beside it, the last one's. In turn it would be twice the time.
    assert seconds_of(Device(), 0.9 * SECONDS) < 1.5 * alone


def test_a_tracker_that_fails_is_told_of_once_and_training_goes_on(corpus: Path, store: Path, tmp_path: Path) -> None:
    class Broken(Recorder):
        def handle(self, event: Event) -> None:
            super().handle(event)
            if isinstance(event, Stepped):
                raise OSError("no network")

    broken, recorder = Broken(), Recorder()
    outcome = train(tmp_path / "run", tiny_experiment(corpus, store, steps=4, eval_every=0), [broken, recorder])
    assert outcome.opened.step == 4
    assert broken.steps == [1]
    notes = [sentence for sentence in recorder.said if "Broken" in sentence]
    assert notes == ["note: the listener Broken failed at Stepped and hears no more (OSError: no network)"]
    assert recorder.steps == [1, 2, 3, 4]


def test_metrics_that_cannot_be_written_end_the_run_with_their_error(
    corpus: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MetricsFile.handle

    def full(self: MetricsFile, event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            raise OSError(28, "No space left on device", "metrics.jsonl")
        real(self, event)

    monkeypatch.setattr(MetricsFile, "handle", full)
    recorder = Recorder()
    with pytest.raises(OSError, match="No space left") as error:
        train(tmp_path / "run", tiny_experiment(corpus, store, steps=4), [recorder])
    assert recorder.events[-1] == Ended(None, error.value)
    assert not RunFolder(tmp_path / "run").checkpoints(read_only=True).steps()


def test_a_failing_listener_is_told_of_to_those_that_remain() -> None:
    class Failing:
        def handle(self, event: Event) -> None:
            raise ValueError("mine")

    recorder = Recorder()
    told = Listeners([], [Failing(), recorder])
    told.say("one")
    told.say("two")
    assert recorder.said == [
        "note: the listener Failing failed at Said and hears no more (ValueError: mine)",
        "one",
        "two",
    ]


def test_another_text_is_sampled_by_its_own_words(store: Path) -> None:
    split = open_store(store).split("validation")
    prompts = openings(split)
    assert len(prompts) == 2
    for number, prompt in enumerate(prompts):
        assert split.document_bytes(number).decode().split()[: len(prompt.split())] == prompt.split()


def test_a_run_and_an_experiment_in_the_wrong_order_are_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="the run's folder and then an Experiment"):
        train(tiny_experiment(store="x"), tmp_path)  # type: ignore[arg-type]
