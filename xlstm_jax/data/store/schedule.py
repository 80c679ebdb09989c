"""Batch sizes over a run, and the closed form of how many rows came before a step."""

from __future__ import annotations

import dataclasses
import itertools

from xlstm_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class BatchSchedule:
    """A batch size that is constant between given steps.

    Attributes:
        pieces: `(first_step, batch_size)` pairs; the first starts at step 0, the steps grow.

    Raises:
        ConfigError: for pieces that do not say the batch size of every step.
    """

    pieces: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        pieces = tuple((int(step), int(size)) for step, size in self.pieces)
        object.__setattr__(self, "pieces", pieces)
        name = "BatchSchedule.pieces"
        if not pieces or pieces[0][0] != 0:
            raise ConfigError(f"{name} is {list(pieces)}, but its first piece must start at step 0")
        for (before, _), (after, _) in itertools.pairwise(pieces):
            if after <= before:
                raise ConfigError(f"{name} goes from step {before} to step {after}, but its steps must grow")
        for step, size in pieces:
            if size < 1:
                raise ConfigError(f"{name} has batch size {size} from step {step} on, but it must be >= 1")

    @classmethod
    def of(cls, value: BatchSchedule | int) -> BatchSchedule:
        """A whole number as the schedule that never changes."""
        return value if isinstance(value, BatchSchedule) else cls(((0, value),))

    def batch_size(self, step: int) -> int:
        """Rows of the batch at `step`."""
        _check_step(step)
        return next(size for first, size in reversed(self.pieces) if first <= step)

    def rows_before(self, step: int) -> int:
        """Rows of all batches before `step`."""
        _check_step(step)
        ends = [first for first, _ in self.pieces[1:]] + [step]
        return sum(max(0, min(end, step) - first) * size for (first, size), end in zip(self.pieces, ends, strict=True))


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step is {step}, but steps are counted from 0")
