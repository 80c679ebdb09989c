"""The training loop: steps, evaluations, checkpoints, and an orderly end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from rich.console import Console

from xlstm_jax.data.store import Batch, HeldoutBatch, Loader, Prefetcher
from xlstm_jax.distributed.processes import Processes, current, one_fails_all_fail, see_the_same
from xlstm_jax.distributed.together import Together
from xlstm_jax.distributed.watch import Watch
from xlstm_jax.files import remove_temporaries
from xlstm_jax.machine.peak import matmul_peak
from xlstm_jax.machine.progress import Waiting, clock
from xlstm_jax.machine.signals import StopRequest
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.errors import CheckpointError
from xlstm_jax.runs.folder import RunFolder, with_config
from xlstm_jax.scoring.heldout import HeldOut
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.errors import NotFiniteError
from xlstm_jax.training.events import Ended, Event, Listener, Listeners, Outcome, Said, Saved, Scored, Started, Stepped
from xlstm_jax.training.layout import micro_batches
from xlstm_jax.training.listeners import run_listeners
from xlstm_jax.training.open_run import OpenRun, open_run
from xlstm_jax.training.step import StepMetrics, TrainState, TrainStep, make_train_step

IN_WORDS = {
    "grad_norm": "gradient norm",
    "param_norm": "norm of the parameters",
    "validation_loss": "loss on held-out text",
}
"""Names in a record, for sentences."""


def train(
    path: str | Path, experiment: Experiment, listeners: Sequence[Listener] = (), *, console: Console | None = None
) -> Outcome:
    """Train the run at `path` to the experiment's last step, from its newest good checkpoint or from the start.

    Args:
        path: the run's folder; made if it is not there.
        experiment: what to train; of an existing run's it may differ in `open_run.MAY_CHANGE` only.
        listeners: hear of what happens, beside those that every run has (see `training.listeners`).
        console: where a person reads; standard output if None, nowhere with `Console(quiet=True)`.

    Raises:
        NotFiniteError: if loss or gradient are not finite; the checkpoints from before remain.
        RunError, DataError, ConfigError: for everything that is wrong with the folder, the store or the experiment.
    """
    if isinstance(path, Experiment) or not isinstance(experiment, Experiment):
        raise TypeError(
            f"train takes the run's folder and then an Experiment, but got {type(path).__name__} and "
            f"{type(experiment).__name__}"
        )
    run, processes = RunFolder(path), current()
    training = experiment.training
    if not processes.leader:  # it writes and shows nothing
        console, listeners = Console(quiet=True), ()
    console = console or Console(highlight=False)
    waiting = functools.partial(clock, console=console)
    told = Listeners(run_listeners(str(run), training.log_every, console, processes), listeners)
    with (
        one_fails_all_fail(processes),
        Watch(processes, training.silent_seconds, training.stuck_seconds) as watch,
        _held(run, processes) as check,
    ):
        try:
            opened = open_run(run, experiment, told.say, waiting, processes)
            outcome = _train(opened, told, console, check, watch)
        except BaseException as error:
            with contextlib.suppress(Exception):  # the error that led here is the one to tell
                told.emit(Ended(None, error))
            raise
        told.emit(Ended(outcome))
        processes.gather(None)  # the leader may still be writing its report
    return outcome


@contextlib.contextmanager
def _held(run: RunFolder, processes: Processes) -> Iterator[Callable[[], None]]:
    """The run's folder, there and locked by the leader; gives what raises once the lock is lost."""
    with contextlib.ExitStack() as held:
        check: Callable[[], None] = lambda: None  # noqa: E731

        def take() -> None:
            nonlocal check
            run.create()
            check = held.enter_context(run.lock()).check
            remove_temporaries(run.path)

        processes.agree(take)
        see_the_same(run.path, processes)
        yield check


def _train(opened: OpenRun, told: Listeners, console: Console, check: Callable[[], None], watch: Watch) -> Outcome:
    waiting = functools.partial(clock, console=console)
    above_panel = functools.partial(console.print, soft_wrap=True) if console.is_terminal else None
    experiment, training = opened.experiment, opened.experiment.training
    if opened.step >= training.steps:
        return Outcome(opened, 0, trained=False)
    loader = Loader(
        opened.store.train,
        seq_len=experiment.seq_len,
        batch_size=training.batch_size,
        seed=training.seed,
        mask_crossing=experiment.data.mask_crossing,
    )
    held_out = HeldOut(
        opened.scorer,
        opened.store.split("validation"),
        batch_size=training.batch_size,
        seq_len=experiment.seq_len,
        max_tokens=training.eval_tokens,
    )
    whole = opened.store.split("validation").num_documents
    if held_out.num_documents < whole:
        told.say(
            f"on the way the first {held_out.num_documents} of {whole} held-out documents are scored "
            "(training.eval_tokens), at the end all"
        )

    micro = micro_batches(training, opened.placement)

    def load(step: int) -> Batch:
        read = functools.partial(loader, step)
        return opened.placement.rows(read, training.batch_size, experiment.seq_len, micro)

    with opened.checkpoints:
        step_function = _compiled(opened, load(opened.step), told.say, waiting)
        with waiting("measuring the speed of this machine", terminal_only=True):
            peak = matmul_peak(experiment.model.dtype) * opened.placement.machines
        measures = functools.partial(
            speed,
            tokens=training.batch_size * experiment.seq_len,
            flops_per_token=opened.model.flops_per_token(experiment.seq_len, train=True),
            peak=peak,
        )
        told.emit(Started(opened.run, experiment, opened.step, opened.run.metrics().read()))
        batches = Prefetcher(load, opened.step, end_step=training.steps)
        mesh = opened.placement.mesh
        together = Together(mesh) if mesh is not None and opened.processes.count > 1 else None
        with StopRequest(above_panel) as stop, batches, watch.steps():

            def stopped() -> int:
                """The exit code that a signal asks for, to this process or, a step later, to any."""
                return (stop.exit_code or 0) if together is None else together(stop.exit_code or 0)

            loop = Loop(
                step_function,
                batches,
                functools.partial(_due, experiment),
                told.emit,
                score=functools.partial(_scores, held_out, watch) if held_out.num_documents else None,
                stop=lambda: stopped() != 0,
                measures=measures,
                checkpoints=opened.checkpoints,
                check=check,
                beat=watch.beat,
                before_saving=lambda: opened.run.mend(experiment, opened.store.tokenizer.save, opened.processes),
                beside=lambda tokens_seen: with_config(experiment, tokens_seen=tokens_seen),
                tokens_seen=opened.tokens_seen,
                may_skip=training.skip_not_finite,
            )
            try:
                state, step = loop.run(opened.state, opened.step)
            except NotFiniteError as error:
                saved = opened.checkpoints.latest_step()
                kept = "nothing was saved" if saved is None else f"the checkpoint of step {saved} remains"
                advice = "(a lower optimizer.lr or a smaller optimizer.grad_clip_norm may help)"
                raise NotFiniteError(f"{error}; {kept} {advice}") from None
    opened = dataclasses.replace(opened, state=state, step=step, tokens_seen=loop.tokens_seen)
    return Outcome(opened, (stop.exit_code or 0) if together is None else together.found, trained=True)


def _scores(held_out: HeldOut, watch: Watch, params: Any) -> dict[str, float]:
    def beating(batches: Iterator[HeldoutBatch], count: int) -> Iterator[HeldoutBatch]:
        for batch in batches:
            watch.beat()
            yield batch

    return held_out(params, beating).to_dict() | {"validation_documents": held_out.num_documents}


class Due(NamedTuple):
    """What is to be done after a step."""

    score: bool
    save: bool


@dataclass
class Loop:
    """Steps one after another, each reported to `emit` one step late, so that the device need not wait for the host."""

    step_function: TrainStep
    """Compiled: nothing else may be dispatched between two steps."""
    batches: Iterable[tuple[int, Batch]]
    """Pairs of the steps made before and the rows of the next; training is over where they end."""
    due: Callable[[int], Due]
    """From the number of steps made so far; after the last step something must be due."""
    emit: Callable[[Event], None]
    score: Callable[[Any], Mapping[str, float]] | None = None
    """Scores parameters, by names that join the step's record."""
    stop: Callable[[], bool] = lambda: False
    """Whether to end early, asked after each step and each score; once true it must stay so."""
    measures: Callable[[float], Mapping[str, float]] = lambda seconds: {}
    """What a record says of the speed, from the seconds that the step took."""
    checkpoints: Checkpoints | None = None
    check: Callable[[], None] = lambda: None
    """Raises if what is written now would be lost; asked before each record and around each save."""
    beat: Callable[[], None] = lambda: None
    """Called when a step has ended."""
    before_saving: Callable[[], None] = lambda: None
    beside: Callable[[int], Mapping[str, Any]] = lambda tokens_seen: {}
    """What a checkpoint holds beside the state, from the targets learnt from so far."""
    tokens_seen: int = 0
    """Targets learnt from so far."""
    may_skip: int = 0
    """Steps in a row that may be without an update, because they were not finite."""

    def run(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Make the steps; the state after the last one, and how many are made now.

        Args:
            state: donated to the first step.
            step: steps made before.

        Raises:
            NotFiniteError: if loss, gradient, parameters or score are not finite; that state is not saved.
            CheckpointError: if the last state was not saved, or is gone already, or if two saves in a row have failed.
        """
        pending: StepMetrics | None = None
        self._saving: int | None = None
        self._skipped, self._owed, self._failed = 0, False, False
        self._mark = time.perf_counter()
        try:
            for before, rows in self.batches:
                state, metrics = self.step_function(state, rows)
                step, due = before + 1, self.due(before + 1)
                settle = due.score or due.save or self._owed or self.stop()
                # The device may have made both while the host was at something else: each took half of the time.
                took = self._wait(metrics) / (1 if pending is None else 2) if settle else None
                if pending is not None:
                    self._record(before, pending, took)
                pending = metrics
                self._tell_saved()
                if took is not None:
                    self._settle(step, metrics, took, state.params if due.score else None)
                    pending = None
                    stopping = self.stop()
                    # What is saved among steps without an update would leave no way back to before them.
                    wanted = due.save or self._owed
                    self._owed = wanted and self._skipped > 0
                    if (wanted and not self._owed) or stopping:
                        self._save(step, state)
                    if stopping:
                        break
                    self._mark = time.perf_counter()
            if self._owed:
                self._save(step, state)
            try:
                self._finish_saving()
            except CheckpointError as error:
                self._try_again(error)
                self._save(step, state)
        finally:
            self._finish_saving()  # also after an error: what was being saved is complete, and told of
        self.check()
        if self._saving is not None and self.checkpoints is not None:
            raise CheckpointError(f"{self.checkpoints.path(self._saving)} was removed as soon as it was saved")
        return state, step

    def _lap(self) -> float:
        """Seconds since the last step was recorded, or since what came after it was done."""
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def _wait(self, metrics: StepMetrics) -> float:
        """Let the step under way end; seconds since the last record."""
        jax.block_until_ready(metrics)
        return self._lap()

    def _settle(self, step: int, metrics: StepMetrics, took: float, params: Any) -> None:
        """Record the step that has ended, with a score of its parameters unless they are None.

        In this order: a checkpoint that is there has all its records, and none of its losses was not finite.
        """
        scores = self.score(params) if self.score is not None and params is not None else {}
        self._record(step, metrics, took, scores)
        if scores:
            self.emit(Scored(step, scores))
        for name, value in scores.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"training stopped at step {step}: the {IN_WORDS.get(name, name)} is {value}")

    def _record(
        self,
        step: int,
        on_device: StepMetrics,
        took: float | None = None,
        scores: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Wait for a step's metrics and tell of them.

        Raises:
            NotFiniteError: if the step made no update.
        """
        metrics = jax.device_get(on_device)
        self.beat()
        self.check()
        took = self._lap() if took is None else took
        loss, tokens = float(metrics.loss), int(metrics.tokens)
        self.tokens_seen += tokens
        record = {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "tokens": tokens,
            "tokens_seen": self.tokens_seen,
            "lr": float(metrics.lr),
            "grad_norm": float(metrics.grad_norm),
            "param_norm": float(metrics.param_norm),
            "update_norm": float(metrics.update_norm),
            "step_time": took,
            **self.measures(took),
            **scores,
        }
        self.emit(Stepped(step, record))
        if bool(metrics.finite):
            self._skipped = 0
            return
        values = {name: float(getattr(metrics, name)) for name in ("loss", "grad_norm", "param_norm")}
        name = next(name for name, value in values.items() if not math.isfinite(value))
        what = f"the {IN_WORDS.get(name, name)} is {values[name]}"
        self._skipped += 1
        if self._skipped > self.may_skip:
            row = f", after {self.may_skip} steps in a row that were not finite either" if self.may_skip else ""
            raise NotFiniteError(f"training stopped at step {step}: {what}{row}")
        self.emit(Said(f"note: step {step} made no update: {what} ({self._skipped} in a row of {self.may_skip})"))

    def _save(self, step: int, state: TrainState) -> None:
        if self.checkpoints is None:
            return
        try:
            self._finish_saving()
            self._start_saving(self.checkpoints, step, state)
        except CheckpointError as error:
            self._try_again(error)
            self._start_saving(self.checkpoints, step, state)

    def _start_saving(self, checkpoints: Checkpoints, step: int, state: TrainState) -> None:
        self.check()
        self.before_saving()
        checkpoints.save(step, state._asdict(), self.beside(self.tokens_seen))
        self._saving = step

    def _try_again(self, error: CheckpointError) -> None:
        """Tell of a save that has failed, so that another one can be tried; raise it if that is the second in a row."""
        self.check()
        if self._failed or self.checkpoints is None or not self.checkpoints.may_fail:
            raise error
        self._failed, self._saving = True, None
        self.emit(Said(f"note: {error}; it is tried once more"))

    def _finish_saving(self) -> None:
        if self.checkpoints is not None:
            try:
                self.checkpoints.wait()
            except CheckpointError:
                self.check()  # a folder that is gone says more than the save that failed for it
                raise
            self._tell_saved()

    def _tell_saved(self) -> None:
        """Emit `Saved` once the checkpoint that is being written is complete."""
        step = self._saving
        if step is not None and self.checkpoints is not None and self.checkpoints.landed(step):
            self._saving, self._failed = None, False
            self.emit(Saved(step, self.checkpoints.path(step)))


def speed(seconds: float, *, tokens: int, flops_per_token: float, peak: float) -> dict[str, float]:
    """What a record says of the speed of a step of so many tokens, scored or not; `peak` is the machine's FLOP/s."""
    flops = flops_per_token * tokens / seconds
    return {"tokens_per_second": tokens / seconds, "flops_per_second": flops, "flops_share": flops / peak}


def _due(experiment: Experiment, step: int) -> Due:
    training = experiment.training
    end = step == training.steps

    def every(steps: int) -> bool:
        return end or bool(steps and step % steps == 0)

    return Due(every(training.eval_every), every(training.checkpoint_every))


def _compiled(opened: OpenRun, rows: Batch, say: Callable[[str], None], waiting: Waiting) -> TrainStep:
    training = opened.experiment.training
    step_function = make_train_step(
        opened.model,
        opened.optimizer,
        seed=training.seed,
        accumulate=micro_batches(training, opened.placement),
        dropout=opened.experiment.model.dropout > 0,
        shardings=None if opened.placement.mesh is None else jax.tree.map(lambda x: x.sharding, opened.state),
        parallel=opened.placement.parallel if opened.placement.mesh is not None else None,
    )
    start = time.perf_counter()
    with waiting("compiling the training step"), opened.placement.active():
        compiled = step_function.lower(opened.state, rows).compile()  # type: ignore[attr-defined]
    say(
        f"{opened.model.param_count:,} parameters, {training.batch_size} x {opened.experiment.seq_len} tokens a step"
        f"{'' if opened.placement.mesh is None else f' on {opened.placement.in_words()}'}; "
        f"compiled in {time.perf_counter() - start:.1f} s"
    )
    return compiled
