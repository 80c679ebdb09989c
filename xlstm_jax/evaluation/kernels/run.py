"""Run the whole check: few programs, each compiled once, on as many threads as there are processors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import jax

from xlstm_jax.evaluation.kernels.cell import Case, Cell, Truth, judge, make_problem, run_form, run_truth
from xlstm_jax.evaluation.kernels.cross_entropy import cross_entropy_cell
from xlstm_jax.evaluation.kernels.mlstm import mlstm_cell
from xlstm_jax.evaluation.kernels.report import Finding, Pick, Report
from xlstm_jax.evaluation.kernels.slstm import slstm_cell
from xlstm_jax.kernels import mlstm, slstm
from xlstm_jax.kernels.registry import Device
from xlstm_jax.machine.cores import usable_cores

_MAKERS: dict[str, Callable[[], Cell]] = {
    "mlstm": partial(mlstm_cell, "exp", True),
    "mlstm-sigmoid": partial(mlstm_cell, "sigmoid", True),
    "mlstm-sigmoid-plain": partial(mlstm_cell, "sigmoid", False),
    "slstm": slstm_cell,
    "cross-entropy": cross_entropy_cell,
}
CELLS = tuple(_MAKERS)
DTYPES = ("float32", "bfloat16", "float64")
QUICK_DTYPES = DTYPES[:2]
_WITH_FLOAT64 = ("cpu", "gpu", "cuda", "rocm")

Progress = Callable[[int, int, str], None]
"""(finished, of how many, what was finished last)."""


class CheckError(Exception):
    """The check cannot be run here."""


def all_cells() -> dict[str, Cell]:
    """Cells by name, with the implementations that are registered now."""
    return {name: make() for name, make in _MAKERS.items()}


@dataclass(frozen=True)
class _Task:
    """One program and the cases that it serves."""

    cell: Cell
    form: str
    dtype: str
    cases: tuple[Case, ...]


def run_check(
    *,
    cells: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    cases: Callable[[Case], bool] = lambda case: case.quick,
    everything: bool = False,
    seed: int = 0,
    progress: Progress = lambda finished, total, what: None,
) -> Report:
    """Judge every implementation of every cell on JAX's default device.

    Args:
        cells: names out of `CELLS`; None is all.
        dtypes: names out of `DTYPES`; None is `QUICK_DTYPES`.
        cases: which cases to run, the quick ones unless told otherwise.
        everything: all cases, and all dtypes unless some are named.
        seed: of the random inputs.
        progress: told after every program.

    Returns:
        The findings, in the order of cells, implementations, dtypes and cases. An implementation that raises is a
        finding, too, and the others go on.

    Raises:
        CheckError: no device at hand can compute the truth in float64.
    """
    begin = time.perf_counter()
    device, truth_device = jax.devices()[0], _truth_device()
    chosen = [cell for name, cell in all_cells().items() if cells is None or name in cells]
    order: list[tuple[Cell, str, str, Case]] = []
    found: dict[tuple[str, str, str, str], Finding] = {}
    tasks: list[_Task] = []
    for cell in chosen:
        for form in cell.forms:
            for dtype in dtypes or (DTYPES if everything else QUICK_DTYPES):
                programs: dict[tuple, list[Case]] = {}
                for case in cell.cases if everything else filter(cases, cell.cases):
                    order.append((cell, form, dtype, case))
                    reason = _why_not(cell, form, dtype, case, Device(device.platform, device.device_kind))
                    if reason is None:
                        programs.setdefault(case.program, []).append(case)
                    else:
                        found[cell.title, form, dtype, case.name] = Finding(
                            cell.title, form, case.name, dtype, "not run", reason=reason
                        )
                tasks += [_Task(cell, form, dtype, tuple(members)) for members in programs.values()]

    finished, lock = 0, threading.Lock()
    stop = threading.Event()
    # The truths come first in the queue, so that whoever waits for one waits for a thread that runs.
    with ThreadPoolExecutor(max_workers=max(2, min(8, usable_cores()))) as pool:
        needed = {cell.title: _needed([task for task in tasks if task.cell is cell]) for cell in chosen}
        total = len(tasks) + len(needed)

        def report(what: str) -> None:
            nonlocal finished
            with lock:
                finished += 1
                progress(finished, total, what)

        def truth(cell: Cell) -> dict[tuple[str, str], Truth]:
            if stop.is_set():
                return {}
            with jax.enable_x64(True), jax.default_device(truth_device):
                problems = [make_problem(cell, case, dtype, seed) for case, dtype in needed[cell.title]]
                results = run_truth(cell, problems, truth_device.platform)
            report(f"{cell.title}: truth")
            return {(c.name, dtype): x for (c, dtype), x in zip(needed[cell.title], results, strict=True)}

        def judged(task: _Task, truths: Future) -> list[Finding]:
            if stop.is_set():
                return []
            findings = _judge_task(task, seed, device, truths)
            report(f"{task.cell.title}, {task.form}, {task.dtype}")
            return findings

        try:
            truths = {cell.title: pool.submit(truth, cell) for cell in chosen}
            # The longest first, so that no thread is left alone with it at the end.
            tasks.sort(key=lambda task: -task.cases[0].length)
            for future in [pool.submit(judged, task, truths[task.cell.title]) for task in tasks]:
                for finding in future.result():
                    found[finding.cell, finding.implementation, finding.dtype, finding.case] = finding
        except BaseException:
            # Ctrl-C, say: nothing new is begun.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Report(
        device=_described(device),
        truth_device=truth_device.platform,
        seed=seed,
        seconds=round(time.perf_counter() - begin, 1),
        findings=tuple(found[cell.title, form, dtype, case.name] for cell, form, dtype, case in order),
        picks=(Pick("mLSTM", *mlstm.pick_implementation()), Pick("sLSTM", *slstm.pick_implementation())),
    )


def _described(device: jax.Device) -> str:
    kind = device.device_kind
    return kind if kind == device.platform else f"{device.platform} ({kind})"


def _needed(tasks: list[_Task]) -> list[tuple[Case, str]]:
    """The cases that some implementation of one cell runs, each once for every dtype."""
    return list({(case.name, task.dtype): (case, task.dtype) for task in tasks for case in task.cases}.values())


def _judge_task(task: _Task, seed: int, device: jax.Device, truths: Future) -> list[Finding]:
    cell, cases = task.cell, list(task.cases)
    with jax.enable_x64(task.dtype == "float64"), jax.default_device(device):
        problems = [make_problem(cell, case, task.dtype, seed) for case in cases]
        try:
            results = run_form(cell, task.form, cases, problems, task.dtype, device.platform)
        except Exception as error:
            if len(cases) > 1:  # each by itself tells which of them it is
                alone = [replace(task, cases=(case,)) for case in cases]
                return [finding for one in alone for finding in _judge_task(one, seed, device, truths)]
            # Whatever it is, it is the finding.
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            return [Finding(cell.title, task.form, c.name, task.dtype, "failed", reason=reason) for c in cases]
    findings = []
    for case, got in zip(cases, results, strict=True):
        with jax.enable_x64(True):
            verdict = judge(cell, case, task.dtype, got, truths.result()[case.name, task.dtype])
        word = "ok" if verdict.passed else "failed"
        findings.append(Finding(cell.title, task.form, case.name, task.dtype, word, *verdict[1:]))  # type: ignore[arg-type]
    return findings


def _why_not(cell: Cell, form: str, dtype: str, case: Case, device: Device) -> str | None:
    if dtype == "float64" and device.platform not in _WITH_FLOAT64:
        return f"{device.platform} has no float64"
    if dtype == "float64" and device.platform == "cpu" and form in (cell.oracle, "step"):
        return "in float64 on this device it is the truth itself"
    return cell.supported(form, case.length, dtype, device)


def _truth_device() -> jax.Device:
    """A CPU if JAX has one (it may have been told not to), else the default device if that has float64."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = jax.devices()[0]
    if device.platform in _WITH_FLOAT64:
        return device
    raise CheckError(
        f"the truth needs float64, which {device.platform} does not have; "
        f"let JAX have the CPU as well: JAX_PLATFORMS={device.platform},cpu"
    )
