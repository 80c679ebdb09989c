"""What the check needs to know of a cell, and what it does with any cell: run it, run the truth, compare."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from xlstm_jax.kernels.closeness import bounds, relative_error
from xlstm_jax.kernels.registry import Device

Arrays = dict[str, Any]
Form = Callable[..., Arrays]
"""(inputs, given, **settings) -> outputs, all by name; `given` is what takes no gradient: resets, masks, targets."""


@dataclass(frozen=True)
class Case:
    """One kind of problem. Cases with the same length, settings and `flagged` share their compiled programs.

    Attributes:
        flagged: whether resets and a mask are handed over; without them some implementations are other programs.
        draw: options of the cell's `draw`.
        settings: options of the implementation, such as the chunk size.
        quick: whether it is run where not all cases are asked for.
    """

    name: str
    length: int
    flagged: bool = False
    draw: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = True

    @property
    def program(self) -> tuple:
        """Equal for cases that one compiled program serves."""
        return self.length, self.flagged, tuple(sorted(self.settings.items()))


class Problem(NamedTuple):
    """Inputs, what takes no gradient, and cotangents of all outputs, as float64 that the dtypes in use can hold."""

    inputs: Arrays
    given: Arrays
    cotangents: Arrays


@dataclass(frozen=True)
class Cell:
    """A function with several implementations and one truth.

    Attributes:
        title: its name for people, with the variant.
        kind: its name in `closeness.bounds`.
        forms: the implementations by name.
        oracle: the name of the form that is the truth's own code.
        truth: what they should all equal, when it is run in float64.
        truth_length: the length that all problems are filled up to with masked tokens for the truth, so that one
            program serves all cases; None runs it as it is.
        draw: (rng, length, dtype, **options) -> `Problem`, not rounded yet; `given` may hold None for absent flags.
        narrow: inputs and outputs in the dtype that is checked; all others are at least float32.
        sequence: tensors with a token axis, the second.
        supported: (form, length, dtype, device) -> why a form cannot run that here, or None.
        magnitudes: the sum of the absolute terms of those results that cancel, see `closeness.relative_error`.
        plainly: the implementations that are compiled without optimisation on a CPU, which changes no mathematics: not
            those that are run for their speed, which on a CPU none is but in float32.
    """

    title: str
    kind: str
    forms: Mapping[str, Form]
    oracle: str
    truth: Form
    truth_length: int | None
    cases: tuple[Case, ...]
    draw: Callable[..., Problem]
    narrow: frozenset[str]
    sequence: frozenset[str]
    supported: Callable[[str, int, str, Device], str | None] = lambda *_: None
    magnitudes: Callable[[Arrays, Arrays, Arrays], Arrays] | None = None
    plainly: frozenset[str] = frozenset()


class Truth(NamedTuple):
    """What should come out, and how large the terms are that cancel in it."""

    values: Arrays
    magnitudes: Arrays


class Verdict(NamedTuple):
    """The tensor that is nearest to its bound or furthest beyond it; `reason` says what no number can."""

    passed: bool
    tensor: str | None = None
    error: float | None = None
    bound: float | None = None
    reason: str | None = None


def make_problem(cell: Cell, case: Case, dtype: str, seed: int) -> Problem:
    """A random problem, rounded to what the implementation is handed, so that its arithmetic alone is judged."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{cell.title}/{case.name}".encode())])
    inputs, given, cotangents = cell.draw(rng, case.length, **case.draw)
    if not case.flagged:
        given = {name: None if name in ("reset", "mask") else x for name, x in given.items()}

    def rounded(arrays: Arrays) -> Arrays:
        return {name: np.asarray(np.asarray(x, _dtype_of(cell, name, dtype)), np.float64) for name, x in arrays.items()}

    return Problem(rounded(inputs), given, rounded(cotangents))


def run_form(
    cell: Cell, name: str, cases: list[Case], problems: list[Problem], dtype: str, platform: str
) -> list[Arrays]:
    """Outputs and gradients of one implementation for cases that share a program, on a device of this platform."""
    options = _plain(platform) if name in cell.plainly or dtype != "float32" else None
    program = jax.jit(_with_gradients(cell.forms[name], **cases[0].settings), compiler_options=options)
    results = []
    for problem in problems:
        inputs, cotangents = (
            {key: np.asarray(x, _dtype_of(cell, key, dtype)) for key, x in arrays.items()}
            for arrays in (problem.inputs, problem.cotangents)
        )
        results.append(jax.device_get(program(inputs, problem.given, cotangents)))
    return results


def run_truth(cell: Cell, problems: list[Problem], platform: str) -> list[Truth]:
    """The truth in float64; the caller has enabled it and chosen the device, which is of this platform."""
    options = _plain(platform)
    program = jax.jit(_with_gradients(cell.truth), compiler_options=options)
    sizes = jax.jit(cell.magnitudes or (lambda *problem: {}), compiler_options=options)
    truths = []
    for problem in problems:
        length = _length(cell, problem)
        filled = _filled_up(cell, problem, length)
        values, magnitudes = jax.device_get((program(*filled), sizes(*filled)))
        truths.append(Truth(_cut(cell, values, length), _cut(cell, magnitudes, length)))
    return truths


def judge(cell: Cell, case: Case, dtype: str, got: Arrays, truth: Truth) -> Verdict:
    """Every tensor against the truth and its bound; the worst one is told."""
    allowed = bounds(cell.kind, dtype, case.length)
    worst = Verdict(True)
    for name, value in got.items():
        wanted = _dtype_of(cell, name.removeprefix("d") if name not in cell.narrow else name, dtype)
        if value.dtype != wanted:
            return Verdict(False, name, reason=f"{name} is {value.dtype}, but must be {np.dtype(wanted).name}")
        if value.shape != truth.values[name].shape:
            shape = truth.values[name].shape
            return Verdict(False, name, reason=f"{name} has shape {value.shape}, but must have {shape}")
        if not np.all(np.isfinite(np.asarray(value, np.float64))):
            return Verdict(False, name, bound=allowed[name], reason=f"{name} is not finite")
        error = relative_error(value, truth.values[name], truth.magnitudes.get(name))
        if worst.bound is None or worst.error is None or error / allowed[name] > worst.error / worst.bound:
            worst = Verdict(error <= allowed[name], name, error, allowed[name])
    return worst


def _plain(platform: str) -> dict[str, Any] | None:
    """Options for a program that runs once: compiling it takes a third of the time or less."""
    return _plain_cpu() if platform == "cpu" else None


@functools.cache
def _plain_cpu() -> dict[str, Any]:
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    emitters: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x + 1).lower(0.0).compile(compiler_options=emitters)
    except jax.errors.JaxRuntimeError:
        # Later versions of XLA do not have the choice.
        return options
    return options | emitters


def _with_gradients(form: Form, **settings: Any) -> Callable[[Arrays, Arrays, Arrays], Arrays]:
    def run(inputs: Arrays, given: Arrays, cotangents: Arrays) -> Arrays:
        out, pull = jax.vjp(lambda inputs: form(inputs, given, **settings), inputs)
        if set(out) != set(cotangents):
            raise ValueError(f"outputs are {', '.join(out)}, but must be {', '.join(cotangents)}")
        # A cotangent has to have its output's dtype, also where that is the wrong one, which `judge` will tell.
        (gradients,) = pull({name: jnp.asarray(cotangents[name], x.dtype) for name, x in out.items()})
        return out | {f"d{name}": x for name, x in gradients.items()}

    return run


def _dtype_of(cell: Cell, name: str, dtype: str) -> Any:
    return jnp.dtype(dtype) if name in cell.narrow else jnp.promote_types(dtype, jnp.float32)


def _length(cell: Cell, problem: Problem) -> int:
    return next(x.shape[1] for name, x in problem.inputs.items() if name in cell.sequence)


def _filled_up(cell: Cell, problem: Problem, length: int) -> Problem:
    """The same problem with flags, and with masked tokens behind it that change nothing."""
    if cell.truth_length is None:
        return problem
    missing = cell.truth_length - length
    batch = next(x.shape[0] for name, x in problem.inputs.items() if name in cell.sequence)
    flags = {"reset": np.zeros((batch, length), bool), "mask": np.ones((batch, length), bool)}
    flags |= {name: x for name, x in problem.given.items() if x is not None}

    def fill(arrays: Arrays) -> Arrays:
        return {
            name: np.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])
            if name in cell.sequence or name in flags
            else x
            for name, x in arrays.items()
        }

    return Problem(fill(problem.inputs), fill(flags), fill(problem.cotangents))


def _cut(cell: Cell, arrays: Arrays, length: int) -> Arrays:
    of_tokens = cell.sequence | {f"d{name}" for name in cell.sequence}
    return {name: x[:, :length] if name in of_tokens else x for name, x in arrays.items()}


def time_first(arrays: Mapping[str, Array | None]) -> dict[str, Array | None]:
    """(batch, seq, ...) to (seq, batch, ...), for a scan over time."""
    return {name: None if x is None else jnp.moveaxis(jnp.asarray(x), 1, 0) for name, x in arrays.items()}
