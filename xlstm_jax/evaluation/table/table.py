"""What a table is, and its record: rows, columns, the mean over seeds in each cell, and published values beside it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from xlstm_jax.evaluation.suite import Record

Label = Literal["reproduced", "same task, short recipe", "set beside"]

LABELS: Mapping[Label, str] = {
    "reproduced": "generator, lengths, vocabulary, metric, models, optimizer, steps, choice of the learning rate and "
    "number of seeds are the published ones, and every mean is within two published deviations or two points",
    "same task, short recipe": "generator and metric are the published ones; models or training are not, as said below",
    "set beside": "published numbers are of another setting, and stand there to compare with",
}
"""How much a table claims."""


class Column(NamedTuple):
    """A measured thing, or a model where the rows are what is measured."""

    name: str
    title: str
    unit: str
    """`%`, whose values are shares of 1, or the name of what values are in."""
    what: str = ""
    """What is measured, in a line."""
    digits: int = 1
    """Behind the point, as it is shown."""
    lower: bool = False
    """Whether less is better."""


class Row(NamedTuple):
    """A model, or a measured thing where the columns are models."""

    name: str
    title: str


class Published(NamedTuple):
    """A value that a paper gives for a cell."""

    row: str
    column: str
    value: float
    """In what the column's unit shows: per cent for `%`."""
    deviation: float | None
    source: str
    setting: str
    """What it is of: sizes, training, what was chosen and how often it was tried."""


class Measured(NamedTuple):
    """What one training led to."""

    values: Mapping[str, float]
    """By column."""
    selection: float | None = None
    """What trainings that differ in nothing but a choice are chosen by, more is better; of rows that are no test's."""
    curve: Sequence[tuple[float, float]] = ()
    """Of the picture."""
    facts: Mapping[str, Any] = {}
    """More that result.json tells: parameters, steps, seconds."""


Tell = Callable[[str], None]
"""Says how a training stands; raises where it is to be given up."""


@dataclass(frozen=True)
class Job:
    """Trainings that differ in their seed alone, and share what is compiled."""

    row: str
    columns: tuple[str, ...]
    title: str
    config: Record
    """All that decides what is measured, but for the seed."""
    start: Callable[[], Callable[[int, Tell], Measured]] = field(compare=False)
    """Makes what measures a seed; a `NotFiniteError` of it is a failure that stays in the table."""
    choice: str = ""
    """What it is one of several for, such as a learning rate: the best mean of `Measured.selection` counts."""

    @functools.cached_property
    def digest(self) -> str:
        """The same if and only if the same is measured, but for the seed."""
        text = json.dumps([self.row, self.columns, self.choice, self.config], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def key(self, seed: int) -> str:
        """Of one training."""
        return f"{self.digest}-{seed}"


@dataclass(frozen=True)
class Table:
    """What is shown, and how it is measured."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    jobs: Sequence[Job]
    protocol: str
    """How it is measured, in a sentence or two."""
    differences: tuple[str, ...] = ()
    """What is not as published, each in a few words; none if it is the published experiment itself."""
    same_task: bool = True
    """Whether generator and metric are those of what is published."""
    published: tuple[Published, ...] = ()
    statements: tuple[str, ...] = ()
    """What papers say where they give no numbers."""
    fixed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Cells that need no training: row, column, value."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Where no others are asked for."""
    workers: int | None = None
    """Trainings at once, where no other number is asked for; None: as many as the device is good for."""
    conclude: Callable[[Record], Sequence[str]] | None = None
    """What follows from the cells, in sentences."""
    axes: tuple[str, str] = ("", "")
    """What the curves of trainings are over, and what they show."""
    marks: Mapping[str, float] = field(default_factory=dict)
    """Places on the first axis, by what is said of them."""


def label(same_task: bool, differences: Sequence[str], agree: Sequence[bool]) -> Label:
    """How much a table may claim.

    Args:
        differences: from what is published.
        agree: for each published value, whether the mean is close to it.
    """
    if not same_task:
        return "set beside"
    return "reproduced" if agree and all(agree) and not differences else "same task, short recipe"


def record_of(table: Table, measured: Sequence[Record], seeds: Sequence[int]) -> dict[str, Any]:
    """The record of a table from its trainings so far, those that were not chosen too."""
    chosen = set(_chosen(measured))
    counted = [entry for entry in measured if entry["key"] in chosen]
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "title": row.title,
            "cells": [_cell(table, row, column, counted) for column in table.columns],
        }
        for row in table.rows
    ]
    means = {
        (row["name"], column.name): cell["mean"]
        for row in rows
        for column, cell in zip(table.columns, row["cells"], strict=True)
        if cell is not None
    }
    columns = {column.name: column for column in table.columns}
    beside = [_beside(entry, columns[entry.column], means.get((entry.row, entry.column))) for entry in table.published]
    for row in rows:
        row["published"] = [entry for entry in beside if entry["row"] == row["name"]]
    judged = [entry["agrees"] for entry in beside if entry["agrees"] is not None]
    total = len(table.jobs) * len(seeds)
    record = {
        "table": table.name,
        "title": table.title,
        "label": label(table.same_task, table.differences, judged),
        "protocol": table.protocol,
        "differences": list(table.differences),
        "statements": list(table.statements),
        "seeds": list(seeds),
        "complete": len(measured) == total,
        "columns": [column._asdict() for column in table.columns],
        "rows": rows,
        "axes": list(table.axes),
        "marks": dict(table.marks),
        "seconds": sum(entry["seconds"] for entry in measured),
        "configs": {job.digest: job.config for job in table.jobs if any(job.digest == e["job"] for e in measured)},
        "trainings": [{**entry, "chosen": entry["key"] in chosen} for entry in measured],
    }
    return record | {"conclusions": [] if table.conclude is None else list(table.conclude(record))}


def _cell(table: Table, row: Row, column: Column, measured: Iterable[Record]) -> dict[str, Any] | None:
    fixed = table.fixed.get(row.name, {}).get(column.name)
    if fixed is not None:
        return {"mean": fixed, "sd": None, "values": [], "failed": [], "choice": ""}
    own = [entry for entry in measured if entry["row"] == row.name and column.name in entry["columns"]]
    if not own:
        return None
    values = [{"seed": entry["seed"], "value": entry["values"][column.name]} for entry in own if entry["error"] is None]
    numbers = [value["value"] for value in values]
    return {
        "mean": statistics.fmean(numbers) if numbers else None,
        "sd": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "values": values,
        "failed": [{"seed": entry["seed"], "error": entry["error"]} for entry in own if entry["error"] is not None],
        "choice": own[0]["choice"],
    }


def _chosen(measured: Sequence[Record]) -> Iterator[str]:
    """The keys of the trainings that count: of those for the same cells, the choice that was best."""
    groups: dict[tuple[Any, ...], dict[str, list[Record]]] = {}
    for entry in measured:
        groups.setdefault((entry["row"], *entry["columns"]), {}).setdefault(entry["choice"], []).append(entry)
    for choices in groups.values():
        best = max(choices.values(), key=_merit)
        yield from (entry["key"] for entry in best)


def _merit(entries: Sequence[Record]) -> float:
    """What a choice is chosen by: the mean over its seeds; one that failed once is better than none alone."""
    if any(entry["error"] is not None for entry in entries):
        return -math.inf
    return statistics.fmean(0.0 if entry["selection"] is None else entry["selection"] for entry in entries)


def _beside(entry: Published, column: Column, mean: float | None) -> dict[str, Any]:
    agrees = None
    if mean is not None and column.unit == "%":
        agrees = abs(100 * mean - entry.value) <= max(2 * (entry.deviation or 0.0), 2.0)
    return {**entry._asdict(), "agrees": agrees}
