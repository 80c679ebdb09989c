"""`xlstm eval memory RUN`: what the memory of a model does with a text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.suite import Record, Records, Suite, argument, option
from xlstm_jax.evaluation.text.source import Source
from xlstm_jax.evaluation.text.tables import new_table, shown
from xlstm_jax.machine.progress import Progress, clock

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xlstm_jax.inference.run import Run

EXAMPLES = """\
examples:
  xlstm eval memory quickstart
  xlstm eval memory quickstart --text book.txt --window 256

RUN is a run's folder, or NAME for runs/NAME. Without --text and --store the text is what the run held out; the longest
document is read. The page shows the gates token by token, and the maps of every head. A Transformer has no gates and no
state of a fixed size: of it the maps of its softmax and the effective context are shown.

keys of --json: text, run, step, parameters, context_length, fixed_state, cleared (every, loss: nats per token where the
memory is emptied so often), tokens (of each such loss), effective_context (the least such length whose loss is within
1 % of the lowest), read (rows, positions), heads (block, kind, head, half_life, median_half_life, forget_gate,
input_gate: quantiles of its logarithm), by_position (from, to, blocks: by head the decimal logarithms of the norms of
memory and normaliser, the stabiliser m, and the shares of tokens that set it and whose normaliser is on its floor; the
memory's stable rank at the end), and window (tokens, heads: log_i, log_f, m, effective_context, distance by token;
attention: a map in base64, a byte for each reading and read token, 255 is 1 and 0 is 1e-6).
"""

CLEARED = (4, 4096)
"""The least and the greatest number of tokens after which the memory is emptied."""
TIMES = 16
"""How far beyond the length of training states are shown."""
UNKNOWN = 256
"""What is taken for the length of training of a run that does not say."""
SHORTEST = 16
"""Targets of a text, at least."""
NEAR = 1.01
"""A loss so many times the lowest is as good."""


@dataclass
class MemoryOptions(Source):
    """Which memory is looked into, and how much of what."""

    runs: tuple[str, ...] = argument("RUN", "run to look into, one", names="run")
    tokens: int = option(
        "N", "tokens that each loss is the mean of, at most (default 16,384)", read=int, default=16_384
    )
    window: int = option("N", "tokens whose gates and maps are shown (default 128)", read=int, default=128)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.runs) > 1:
            raise ConfigError(f"the memory of one run is shown at a time, but {len(self.runs)} are named")
        if self.tokens < 1:
            raise ConfigError(f"--tokens is {self.tokens}, but must be a whole number >= 1")
        if not 2 <= self.window <= 1024:
            raise ConfigError(f"--window is {self.window}, but must be a whole number from 2 to 1024")


def run(options: MemoryOptions, progress: Progress, before: Record) -> Records:
    """Read the text; see `Suite.run`."""
    import numpy as np

    from xlstm_jax.evaluation.text.scores import fingerprint_of
    from xlstm_jax.inference.run import load

    with clock("reading the text", terminal_only=True):
        text = options.read()
    with clock(f"loading {options.runs[0]}", terminal_only=True):
        model = load(
            options.runs[0], options.step, say=lambda sentence: progress.say(f"note: {sentence}"), mesh=options.mesh
        )
    split = text.split(model.tokenizer)
    longest = int(np.argmax(np.diff(np.asarray(split.offsets).astype(np.int64))))
    document = np.array(split.document(longest), np.int32)
    if model.bos_id is not None:
        document[0] = model.bos_id
    if len(document) <= max(SHORTEST, options.window):
        raise ConfigError(
            f"the longest document of {text.name} has {len(document) - 1:,} tokens, but {options.window:,} are to be "
            f"shown, and {SHORTEST} to be read; --window takes fewer, and --text FILE another text"
        )
    record = {
        "text": {"name": text.name, "fingerprint": text.fingerprint, "document": text.documents[longest]},
        "run": str(model.path),
        "step": model.step,
        "weights": fingerprint_of(model),
        "parameters": model.model.param_count,
        "context_length": model.config.context_length,
        "fixed_state": model.model.fixed_state,
        "options": {"tokens": options.tokens, "window": options.window},
    }
    same = record["weights"] and all(before.get(name) == value for name, value in record.items())
    return _records(model, document, record, before if same else {}, progress)


def _records(run: Run, document: Any, record: dict[str, Any], before: Record, progress: Progress) -> Records:
    record = record | {"complete": False, "seconds": float(before.get("seconds", 0.0)), "cleared": []}
    yield from _cleared(run, document, record, before, progress)
    yield from _read(run, document, record, before, progress)


def _cleared(
    run: Run, document: Any, record: dict[str, Any], before: Record, progress: Progress
) -> Iterator[dict[str, Any]]:
    """With the loss where the memory is emptied every few tokens, to every few thousand, on the same targets."""
    from xlstm_jax.scoring.positions import PositionScorer, Stretch, regions

    targets = len(document) - 1
    lengths = [CLEARED[0]]
    while 2 * lengths[-1] <= min(CLEARED[1], targets):
        lengths.append(2 * lengths[-1])
    found = {entry["every"]: entry["loss"] for entry in before.get("cleared", ())}
    region = regions([targets], [Stretch(0, length) for length in lengths], record["options"]["tokens"])
    reader = PositionScorer(run.scorer, [document], region)
    record["tokens"] = reader.tokens
    left = [length for length in lengths if length not in found]
    with progress.bar("losses", reader.tokens * len(lengths), reader.tokens * (len(lengths) - len(left))) as bar:
        for length in left:
            started = time.monotonic()
            found[length] = reader(run.params, Stretch(0, length), bar).loss
            record["seconds"] += time.monotonic() - started
            record["cleared"] = [{"every": every, "loss": found[every]} for every in lengths if every in found]
            yield record
    record["cleared"] = [{"every": every, "loss": found[every]} for every in lengths]
    near = NEAR * min(found.values())
    record["effective_context"] = min(every for every, loss in found.items() if loss <= near)


def _read(
    run: Run, document: Any, record: dict[str, Any], before: Record, progress: Progress
) -> Iterator[dict[str, Any]]:
    """With the gates, the states by position and the window; a Transformer is read in the window alone."""
    import numpy as np

    from xlstm_jax.evaluation.memory.reading import MOST_ROWS, Reader, places, spelled

    if before.get("complete"):
        yield dict(before)
        return
    started = time.monotonic()
    window, model = record["options"]["window"], run.scorer.model
    trained = record["context_length"] if record["context_length"] > 0 else UNKNOWN
    rows, positions = 1, 0
    record |= {"heads": [], "by_position": []}
    if model.fixed_state:
        targets = len(document) - 1
        positions = min(TIMES * trained, targets)
        rows = min(MOST_ROWS, targets // positions)
    length = max(positions, window)
    starts = np.linspace(0, len(document) - 1 - length, rows).astype(np.int64)
    reader = Reader(model, run.params, np.stack([document[start : start + length] for start in starts]), window)
    if model.fixed_state:
        record["read"] = {"rows": rows, "positions": positions}
        with progress.bar("states", rows * places(length)[-1][1]) as bar:
            for entry in reader.by_position(bar):
                if entry["blocks"]:
                    record["by_position"].append(entry)
                yield record
        record["heads"] = reader.heads()
    record["window"] = {
        "tokens": spelled(run.tokenizer, document[:window].tolist()),
        "heads": reader.window(),
    }
    record["seconds"] += time.monotonic() - started
    yield record | {"complete": True}


def tabulate(record: Record) -> tuple[RenderableType, str]:
    """The losses, and the heads."""
    from rich.console import Group

    cleared = new_table("memory emptied every", "nats per token")
    for entry in record["cleared"]:
        cleared.add_row(f"{entry['every']:,}", shown(entry["loss"], 4))
    tables = [cleared]
    heads = new_table("block, head", "half-life", "median", "forget gate", "log input gate", "reads", "distance")
    of_window = {(head["block"], head["head"]): head for head in record["window"]["heads"]}
    gates = {(head["block"], head["head"]): head for head in record["heads"]}
    for place, head in of_window.items():
        own: Mapping[str, Any] = gates.get(place, {})
        heads.add_row(
            f"{place[0]}, {place[1]} ({head['kind']})",
            shown(own.get("half_life"), 1),
            shown(own.get("median_half_life"), 1),
            shown(own.get("forget_gate")),
            shown(own["input_gate"]["p50"], 1) if own else "-",
            shown(_late_mean(head["effective_context"]), 1),
            shown(_late_mean(head["distance"]), 1),
        )
    if of_window:
        tables.append(heads)
    return Group(*tables), (
        f"{record['text']['name']}: losses of the same {record['tokens']:,} tokens; within 1 % of the lowest from "
        f"{record['effective_context']:,} tokens on. Half-lives in tokens, at the mean and at the median of the log "
        "forget gate; reads: tokens that a read is spread over, and how far back, in the window's second half."
        + _without_gates(record)
    )


def _without_gates(record: Record) -> str:
    if record["heads"]:
        return ""
    if record["fixed_state"]:
        return " Its cells have no gates that are shown."
    return " A Transformer has no gates and no state of fixed size: its softmax is shown."


def _late_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values[len(values) // 2 :] if value is not None]
    return sum(known) / len(known) if known else None


def draw(record: Record, path: Path) -> None:
    """The panels that there is something for."""
    from xlstm_jax.evaluation.memory.picture import draw_memory

    draw_memory(record, path)


def page(record: Record, picture: Path) -> str:
    """The picture, the text by gates, and the maps of every head."""
    from xlstm_jax.evaluation.memory.page import memory_page

    return memory_page(record, picture)


SUITE = Suite(
    name="memory",
    summary="what a memory does with a text: half-lives of its gates, its states, its maps, how far back it reads",
    config=MemoryOptions,
    run=run,
    table=tabulate,
    picture=draw,
    picture_name="memory.png",
    page=page,
    page_name="memory.html",
    folder="memory-{name}",
    examples=EXAMPLES,
)
