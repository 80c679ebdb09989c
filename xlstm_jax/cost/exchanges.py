"""What devices exchange in a compiled step, and how long that takes on chips of stated speeds."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
"""Of an entry of each type; 4 for the others."""
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_NAMED = re.compile(r"(?:to_apply|body|condition|calls|branch_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")
_TRIPS = re.compile(r"known_trip_count[^\d]*(\d+)")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")


@dataclass(frozen=True)
class Chip:
    """Speeds of a chip as its maker states them, for one direction, in units a second."""

    name: str
    memory: int
    """Bytes."""
    flops: float
    """Of products in bfloat16, without sparsity."""
    near: float
    """Bytes between chips of one domain: a node of GPUs, a pod of TPUs."""
    far: float
    """Bytes to the network, for each chip."""
    domain: int
    """Chips in a domain."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("H100", 80 * 10**9, 989e12, 450e9, 50e9, 8),
        Chip("H200", 141 * 10**9, 989e12, 450e9, 50e9, 8),
        Chip("A100", 80 * 10**9, 312e12, 300e9, 25e9, 8),
        Chip("v5e", 16 * 2**30, 197e12, 200e9, 25e9, 256),
        Chip("v5p", 95 * 2**30, 459e12, 600e9, 25e9, 8960),
        Chip("v6e", 32 * 2**30, 918e12, 448e9, 25e9, 256),
    )
}
"""By name; v6e is called Trillium too. Sources: the makers' data sheets (SXM modules with an adapter of 400 Gbit/s a
GPU, 200 for A100; the inter-chip interconnect of a TPU, all links together)."""
ALIASES = {"Trillium": "v6e"}
EFFICIENCY = 0.5
"""The share of a chip's stated speed that products are taken to reach."""


@dataclass(frozen=True)
class Exchange:
    """All exchanges of one kind between groups of one make, in one step."""

    kind: str
    count: int
    """How often: what stands in a loop counts at each turn."""
    bytes: int
    """Of all their results on one device, together."""
    group: int
    """Devices that exchange with each other."""
    span: int
    """From the first device of a group to the last, in the order of their numbers, both included."""


def exchanges(program: str) -> list[Exchange]:
    """The exchanges of a compiled step, from its text."""
    times = _turns(program)
    counts: Counter[tuple[str, int, int]] = Counter()
    sizes: Counter[tuple[str, int, int]] = Counter()
    for name, line in _lines(program):
        found = _INSTRUCTION.search(line)
        if found is None:
            continue
        result, kind = found.groups()
        key = (kind, *_group(line))
        counts[key] += times.get(name, 1)
        sizes[key] += times.get(name, 1) * sum(_size(*array) for array in _ARRAY.findall(result))
    ordered = sorted(counts, key=lambda key: -sizes[key])
    return [Exchange(kind, counts[kind, n, span], sizes[kind, n, span], n, span) for kind, n, span in ordered]


def seconds(exchange: Exchange, chip: Chip) -> float:
    """What an exchange takes at least: each device sends and receives at its link's speed, in a ring."""
    speed = chip.near if exchange.span <= chip.domain else chip.far
    share = (exchange.group - 1) / max(exchange.group, 1)
    passes = {"all-reduce": 2 * share, "reduce-scatter": exchange.group - 1, "collective-permute": 1.0}
    return passes.get(exchange.kind, share) * exchange.bytes / speed


def _lines(program: str) -> Iterator[tuple[str, str]]:
    """(the computation that it stands in, line)"""
    name = ""
    for line in program.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ")[0].split("(")[0]
        elif name:
            yield name, line


def _turns(program: str) -> dict[str, int]:
    """How often each computation runs in a step."""
    called: dict[str, list[tuple[str, int]]] = {}
    entry = ""
    for line in program.splitlines():
        if line.startswith("ENTRY "):
            entry = line.removeprefix("ENTRY ").split(" ")[0].split("(")[0]
    for name, line in _lines(program):
        trips = int(match[1]) if " while(" in line and (match := _TRIPS.search(line)) else 1
        for match in _NAMED.finditer(line):
            for callee in match[1].split(","):
                called.setdefault(name, []).append((callee.strip(), trips))
    turns: Counter[str] = Counter()
    rest = [(entry, 1)]
    while rest:
        name, times = rest.pop()
        turns[name] += times
        rest.extend((callee, times * trips) for callee, trips in called.get(name, ()))
    return dict(turns)


def _size(dtype: str, dims: str) -> int:
    return _BYTES.get(dtype, 4) * math.prod(int(dim) for dim in dims.split(",") if dim)


def _group(line: str) -> tuple[int, int]:
    """(devices in a group, how far its numbers reach)"""
    if match := _IOTA.search(line):
        group = _numbers(match[2], match[3]).reshape(_sizes(match[1]))[0]
    elif match := _MESH.search(line):
        axes = dict(part.split("=") for part in match[1].split(","))
        sizes = [int(size) for size in axes.values()]
        numbers = _numbers(match[2] or str(math.prod(sizes)), match[3]).reshape(sizes)
        among = match[4].split(",")
        group = numbers[tuple(slice(None) if axis in among else 0 for axis in axes)].ravel()
    elif match := _LISTED.search(line):
        group = np.array([int(number) for number in match[1].split(",")])
    elif pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        group = np.array([int(pairs[1]), int(pairs[2])])
    else:
        return 1, 1
    return len(group), int(group.max() - group.min()) + 1


def _numbers(dims: str, order: str | None) -> np.ndarray:
    """The devices' numbers in an array of these sizes, its axes in that order."""
    numbers = np.arange(math.prod(_sizes(dims))).reshape(_sizes(dims))
    return numbers.transpose(_sizes(order)) if order else numbers


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
