"""What the check found: as numbers for a file, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich.console import Console
from rich.table import Table

from xlstm_jax.config import to_json


@dataclass(frozen=True)
class Finding:
    """One implementation of one cell in one case and dtype.

    Attributes:
        tensor: the result nearest to its bound or furthest beyond it; "dq" is the gradient of q.
        error: its relative error; None where it is not finite or was not computed.
        bound: the relative error that it may have.
        reason: why it was not run, or what went wrong beside an error that is too large.
    """

    cell: str
    implementation: str
    case: str
    dtype: str
    verdict: Literal["ok", "failed", "not run"]
    tensor: str | None = None
    error: float | None = None
    bound: float | None = None
    reason: str | None = None

    @property
    def badness(self) -> float:
        """Error over bound; infinite where there is no number for it."""
        return float("inf") if self.error is None or not self.bound else self.error / self.bound


@dataclass(frozen=True)
class Pick:
    """What `implementation=None` means here."""

    cell: str
    implementation: str
    reason: str


@dataclass(frozen=True)
class Report:
    """All findings on one device."""

    device: str
    truth_device: str
    seed: int
    seconds: float
    findings: tuple[Finding, ...]
    picks: tuple[Pick, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.verdict == "failed")

    @property
    def passed(self) -> bool:
        return not self.failed

    def to_dict(self) -> dict:
        """Plain values for JSON: the fields, and `passed`."""
        return {"passed": self.passed, **to_json(self, "report")}


def print_report(report: Report, console: Console, *, everything: bool = False) -> None:
    """The table: by default one line for each implementation and dtype with its worst case, and all failures."""
    console.print(
        f"{report.device}, against float64 on {report.truth_device}, seed {report.seed}: outputs, final states and "
        "all gradients.\nThe error of a tensor is relative, in the 2-norm; shown is the one nearest to its bound.",
        soft_wrap=True,
    )
    for cell, findings in groupby(report.findings, key=lambda finding: finding.cell):
        table = Table(title=cell, title_justify="left", title_style="bold")
        for title in ("implementation", "dtype", "case" if everything else "worst case", "tensor"):
            table.add_column(title, overflow="fold", min_width=8)
        for title in ("error", "bound", "verdict"):
            table.add_column(title, justify="right", no_wrap=True)
        for finding, count in _lines(findings, everything):
            case = finding.case if count is None else f"{finding.case} (of {count})"
            error = "-" if finding.error is None else f"{finding.error:.1e}"
            bound = "-" if finding.bound is None else f"{finding.bound:.0e}"
            verdict = "[green]ok[/]" if finding.verdict == "ok" else "[bold red]FAILED[/]"
            table.add_row(finding.implementation, finding.dtype, case, finding.tensor or "-", error, bound, verdict)
        if table.row_count:
            console.print(table)
    for finding in report.failed:
        if finding.reason:
            console.print(
                f"[bold red]FAILED[/] {finding.cell}, {finding.implementation}, {finding.dtype}, {finding.case}: ",
                end="",
            )
            console.print(finding.reason, markup=False, soft_wrap=True)
    _print_not_run(report.findings, console)
    for pick in report.picks:
        console.print(f"{pick.cell}: None picks {pick.implementation}: {pick.reason}", soft_wrap=True)
    judged = sum(f.verdict != "not run" for f in report.findings)
    outcome = "all within their bounds" if report.passed else f"{len(report.failed)} FAILED"
    console.print(f"{judged} checks in {report.seconds:.0f} s, {outcome}")


def _lines(findings: Iterable[Finding], everything: bool) -> Iterable[tuple[Finding, int | None]]:
    """Findings to show of what was run, and for the worst of several, of how many."""
    ran = [finding for finding in findings if finding.verdict != "not run"]
    if everything:
        yield from ((finding, None) for finding in ran)
        return
    for _, group in groupby(ran, key=lambda f: (f.implementation, f.dtype)):
        members = list(group)
        failed = [f for f in members if f.verdict == "failed"]
        if failed:
            yield from ((finding, None) for finding in failed)
        else:
            yield max(members, key=lambda f: f.badness), len(members)


def _print_not_run(findings: tuple[Finding, ...], console: Console) -> None:
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for f in findings:
        if f.verdict == "not run":
            dtypes = counts.setdefault((f.cell, f.implementation, f.reason or ""), {})
            dtypes[f.dtype] = dtypes.get(f.dtype, 0) + 1
    if counts:
        console.print("not run:")
    for (cell, implementation, reason), dtypes in counts.items():
        cases = " and ".join(f"{count} of {dtype}" for dtype, count in dtypes.items())
        console.print(f"  {cell}, {implementation}, {cases}: {reason}", soft_wrap=True)
