"""The training loop: steps, metrics, looks at the held-out text, checkpoints, and an orderly end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from xlstm_jax.data.store.loader import Batch, Loader
from xlstm_jax.data.store.prefetch import Prefetcher
from xlstm_jax.machine.peak import matmul_peak
from xlstm_jax.machine.signals import StopRequest
from xlstm_jax.report.plot import plot_loss
from xlstm_jax.runs.folder import RunFolder, with_config
from xlstm_jax.scoring.heldout import HeldOut
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.display import Display, make_display
from xlstm_jax.training.errors import NotFiniteError
from xlstm_jax.training.objective import Rows
from xlstm_jax.training.optimizer import learning_rate
from xlstm_jax.training.setup import Setup, prepare_run
from xlstm_jax.training.step import StepMetrics, make_train_step


@dataclass
class Outcome:
    """How a call of `train` ended."""

    setup: Setup
    """The run with its state after the last step."""
    exit_code: int
    """0 if all steps are made, 130 or 143 if a signal stopped training."""
    trained: bool
    """Whether there were any steps left to make."""


def train(path: str | Path, experiment: Experiment, display: Display | None = None) -> Outcome:
    """Train the run at `path` to the experiment's last step, from its newest good checkpoint or from the start.

    Args:
        path: the run's folder; made if it is not there.
        experiment: what to train; of an existing run's it may differ in `setup.MAY_CHANGE` only.
        display: what a person sees; chosen by the kind of standard output if None.

    Raises:
        NotFiniteError: if loss or gradient are not finite; the checkpoints from before remain.
        RunError, DataError, ConfigError: for everything that is wrong with the folder, the store or the experiment.
    """
    run = RunFolder(path).create()
    display = display or make_display(str(run), experiment.training.log_every)
    with run.lock():
        setup = prepare_run(run, experiment, display.say)
        if setup.step >= setup.experiment.training.steps:
            return Outcome(setup, 0, trained=False)
        with setup.checkpoints, contextlib.closing(display):
            return Outcome(setup, _Loop(setup, display).run(), trained=True)


class _Loop:
    """The loop's few variables. Metrics are fetched one step late, so that the device need not wait for the host."""

    def __init__(self, setup: Setup, display: Display) -> None:
        experiment = setup.experiment
        self.setup, self.display, self.training = setup, display, experiment.training
        self.seq_len = experiment.seq_len
        self.loader = Loader(
            setup.store.split("train"),
            seq_len=self.seq_len,
            schedule=self.training.batch_size,
            seed=self.training.seed,
            mask_crossing=experiment.data.mask_crossing,
        )
        self.held_out = HeldOut(
            setup.scorer,
            setup.store.split("validation"),
            batch_size=self.training.batch_size,
            seq_len=self.seq_len,
            max_tokens=self.training.eval_tokens,
        )
        self.schedule = learning_rate(experiment.optimizer, self.training.steps)
        self.metrics = setup.run.metrics()
        self.pending: tuple[int, StepMetrics] | None = None
        self.mark = 0.0

    def run(self) -> int:
        """Make the remaining steps; the exit code."""
        setup, last = self.setup, self.training.steps
        step_function = self._compiled()
        self.peak = matmul_peak(setup.experiment.model.dtype)
        self.display.start(setup.step, last, self.metrics.read())
        batches = Prefetcher(lambda step: _rows(self.loader(step)), setup.step, end_step=last)
        with StopRequest() as stop, batches, self.metrics:
            self.mark = time.perf_counter()
            for step, rows in batches:
                before = self.pending
                setup.state, metrics = step_function(setup.state, rows)
                setup.step = step + 1
                self.pending = setup.step, metrics
                if before is not None:
                    self._record(*before)
                looks, saves = self._due(setup.step)
                if looks or saves or stop.exit_code is not None:
                    self._settle(looks, save=saves or stop.exit_code is not None)
                if stop.exit_code is not None:
                    setup.checkpoints.wait()
                    self.display.say(f"saved at step {setup.step}; `xlstm train {setup.run}` goes on from there")
                    return stop.exit_code
        setup.checkpoints.wait()
        return 0

    def _compiled(self) -> Any:
        setup = self.setup
        step_function = make_train_step(
            setup.model,
            setup.optimizer,
            seed=self.training.seed,
            accumulate=self.training.accumulate,
            dropout=setup.experiment.model.dropout > 0,
        )
        start = time.perf_counter()
        compiled = step_function.lower(setup.state, _rows(self.loader(setup.step))).compile()  # type: ignore[attr-defined]
        self.display.say(
            f"{setup.model.param_count:,} parameters, {self.training.batch_size} x {self.seq_len} tokens a step; "
            f"compiled in {time.perf_counter() - start:.1f} s"
        )
        return compiled

    def _due(self, step: int) -> tuple[bool, bool]:
        """Whether to look at the held-out text, and whether to save, after so many steps."""
        look, save = self.training.eval_every, self.training.checkpoint_every
        end = step == self.training.steps
        return end or bool(look and step % look == 0), end or bool(save and step % save == 0)

    def _settle(self, look: bool, save: bool) -> None:
        """Record the step that is under way, with a look at the held-out text; then save.

        In this order: a checkpoint that is there has all its records, and none of its losses was not finite.

        Raises:
            NotFiniteError: if a loss is not finite; nothing is saved then.
        """
        assert self.pending is not None
        jax.block_until_ready(self.pending[1])
        took = time.perf_counter() - self.mark
        score = self.held_out(self.setup.state.params) if look and self.held_out.num_documents else None
        extra = {} if score is None else score.to_dict()
        self._record(*self.pending, took, extra)
        self.pending = None
        setup = self.setup
        if score is not None and not math.isfinite(score.loss):
            raise self._not_finite(setup.step, f"loss on held-out text is {score.loss}")
        if save:
            beside = with_config(setup.experiment, tokens_seen=setup.tokens_seen)
            setup.checkpoints.save(setup.step, setup.state._asdict(), beside)
            plot_loss(self.metrics.read(), setup.run.plot_path, str(setup.run))
        self.mark = time.perf_counter()

    def _record(
        self,
        step: int,
        metrics: StepMetrics,
        took: float | None = None,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Wait for a step's metrics, write them down, show them.

        Raises:
            NotFiniteError: if the step made no update.
        """
        loss = float(metrics.loss)
        if took is None:
            now = time.perf_counter()
            took, self.mark = now - self.mark, now
        tokens = int(metrics.tokens)
        self.setup.tokens_seen += tokens
        rows = self.training.batch_size * self.seq_len
        flops = self.setup.model.flops_per_token(self.seq_len, train=True) * rows / took
        record = {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "tokens": tokens,
            "tokens_seen": self.setup.tokens_seen,
            "lr": float(self.schedule(step - 1)),
            "grad_norm": float(metrics.grad_norm),
            "param_norm": float(metrics.param_norm),
            "update_norm": float(metrics.update_norm),
            "step_time": took,
            "tokens_per_second": rows / took,
            "flops_per_second": flops,
            "flops_share": flops / self.peak,
            **extra,
        }
        self.metrics.append(record)
        self.display.step(record)
        if not bool(metrics.finite):
            norms = {"gradient norm": metrics.grad_norm, "norm of the parameters": metrics.param_norm}
            values = {"loss": loss} | {name: float(norm) for name, norm in norms.items()}
            name = next(name for name, value in values.items() if not math.isfinite(value))
            raise self._not_finite(step, f"{name} is {values[name]}")

    def _not_finite(self, step: int, what: str) -> NotFiniteError:
        self.setup.checkpoints.wait()
        saved = self.setup.checkpoints.latest_step()
        kept = "nothing was saved" if saved is None else f"the checkpoint of step {saved} remains"
        return NotFiniteError(
            f"training stopped at step {step}: the {what}; {kept} (a lower optimizer.lr or a smaller "
            "optimizer.grad_clip_norm may help)"
        )


def _rows(batch: Batch) -> Rows:
    return Rows(*map(np.asarray, batch))  # type: ignore[arg-type]
