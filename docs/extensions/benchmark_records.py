"""What the benchmarks measured, from the records in `benchmarks/results`, each as tables of any depth."""

from __future__ import annotations

import ast
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "benchmarks"
LEFT_OUT = ("bytes_per_step", "read_bytes_per_second", "flops_per_second", "peak_flops_per_second", "temporary_bytes")
"""What shares and ratios are made of."""
TIMES = {"median", "fastest", "slowest"}
SECONDS = re.compile(r"\bseconds\b")
"""What is recorded in seconds and shown in milliseconds."""


def page(folder: Path = FOLDER) -> str:
    """All records, by benchmark and then by machine."""
    written: list[str] = []
    for path in sorted((folder / "results").glob("*.json")):
        name, _, machine = path.stem.rpartition("-")
        record = json.loads(path.read_text())
        if not any(line == f"## {name}" for line in written):
            written += [f"## {name}", "", _says(folder / f"{name}.py"), ""]
        written += [
            f"### {name}, {machine.upper()}",
            "",
            *(_check(record) if "findings" in record else _record(record)),
        ]
    return "\n".join(written)


def _says(benchmark: Path) -> str:
    """What the first paragraph of a benchmark's file says."""
    if not benchmark.exists():
        return ""
    return (ast.get_docstring(ast.parse(benchmark.read_text())) or "").split("\n\n")[0]


def _check(report: dict[str, Any]) -> list[str]:
    verdicts = Counter(finding["verdict"] for finding in report["findings"])
    counted = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
    worst = max((f["error"] / f["bound"] for f in report["findings"] if f["error"] is not None), default=0)
    result = "passed" if report["passed"] else "FAILED"
    return [f"`xlstm check --all` on {report['device']}: {result}; {counted}; at most {worst:.0%} of a bound.", ""]


def _record(record: dict[str, Any]) -> list[str]:
    where = record["environment"]
    machine = f"{where['cores']} cores of {where['processor']}"
    if where["platform"] != "cpu":
        machine = f"{where['device_count']} {where['device_kind']}, {machine}"
    made = (
        f"{machine}; JAX {where['jax']}, Python {where['python']}; {record['date'][:10]}, commit {where['commit'][:8]}."
    )
    return [made, "", f"```\n{record['command']}\n```", "", *_tables(record["results"])]


def _tables(results: Any) -> list[str]:
    """A list is a table with a line for each entry; an object is one of its plain values, then one for each other."""
    if isinstance(results, list):
        rows = [dict(_flat(entry)) for entry in results]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        return _table(columns, [[row.get(column, "") for column in columns] for row in rows])
    plain = {name: _shown(value, name) for name, value in results.items() if not isinstance(value, dict | list)}
    written = _table(["", ""], [[_words(name), value] for name, value in plain.items()]) if plain else []
    for name, value in results.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            written += _tables(value)
        elif isinstance(value, dict) and value and all(_is_times(one) for one in value.values()):
            first = next(iter(value.values()))["median"]
            rows = [[one, _shown(took, name), f"{took['median'] / first:.2f}"] for one, took in value.items()]
            written += [f"{_words(name, bare=True)}:", "", *_table(["", "milliseconds", "of the first"], rows)]
        elif isinstance(value, dict):
            rows = [[one, _shown(held, name)] for one, held in value.items()]
            written += [f"{_words(name)}:", "", *_table(["", ""], rows)]
    return written


def _flat(entry: dict[str, Any], above: str = "", key: str = "") -> Iterator[tuple[str, str]]:
    for name, value in entry.items():
        full = f"{above} {name}".strip()
        if isinstance(value, dict) and not _is_times(value):
            yield from _flat(value, full, key or name)
        elif value is not None and name not in LEFT_OUT:
            yield _words(full), _shown(value, full)


def _is_times(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == TIMES


def _words(name: str, bare: bool = False) -> str:
    name = name.replace("_", " ")
    return name.removesuffix(", seconds") if bare else SECONDS.sub("ms", name)


def _shown(value: Any, name: str) -> str:
    if _is_times(value):
        return f"{_number(1e3 * value['median'])} ({_number(1e3 * value['fastest'])}–{_number(1e3 * value['slowest'])})"
    if isinstance(value, list) and value and all(isinstance(one, float) for one in value):
        value = statistics.median(value)
    if isinstance(value, float) and SECONDS.search(name.replace("_", " ")):
        value = 1e3 * value
    if isinstance(value, list):
        return " × ".join(_shown(one, name) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{_words(one)} {_shown(held, one)}" for one, held in value.items())
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:.3g}" if abs(value) >= 1e9 else f"{value:,.0f}"
    return f"{value:.3g}"


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in rows), ""]
