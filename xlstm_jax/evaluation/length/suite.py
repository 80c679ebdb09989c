"""`xlstm eval length RUN`: the loss by position, to many times the length of training."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.suite import Record, Records, Suite, option
from xlstm_jax.evaluation.text.source import Source
from xlstm_jax.evaluation.text.tables import new_table, shown, titles
from xlstm_jax.machine.progress import Progress, clock

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xlstm_jax.data.tokenizers import Tokenizer

EXAMPLES = """\
examples:
  xlstm eval length quickstart
  xlstm eval length quickstart quickstart_llama --text book.txt --lengths 64,256,1k,4k

RUN is a run's folder, or NAME for runs/NAME. Without --text and --store the text is what the run held out. Each number
is of the same tokens: windows begin so that each of these stands once at a position of the bin. A state is carried from
the first position of a window to its last; a Transformer reads the whole window too, at positions that it may never
have seen. Beside the curve stand two ways not to go beyond the length of training: a memory that is emptied so often,
and windows of that length that overlap by half, as `xlstm eval RUN` has a Transformer read. Killed and started again,
bins that are done are not read twice.

keys of --json: text (name, fingerprint, documents), lengths, tokens (of each number), regions (document, first, end),
and runs: a list with run, step, parameters, context_length, fixed_state, complete, by_position (from, to, nats, loss),
by_window (length, loss: the mean over all positions up to it), reset and windows (as an entry of by_position).
"""

MOST_TOKENS = 1 << 16


def read_lengths(words: str) -> tuple[int, ...]:
    """The lengths in words like "256,1k,4k"; 1k is 1024."""
    found = []
    for word in words.split(","):
        digits = word.strip().lower()
        number = digits.removesuffix("k")
        if not number.isdecimal() or int(number) < 1:
            raise argparse.ArgumentTypeError(f"{word.strip()!r} is no length: lengths are given as in 256,1k,4k")
        found.append(int(number) * (1024 if digits.endswith("k") else 1))
    return tuple(sorted(set(found)))


@dataclass
class LengthOptions(Source):
    """What reads what, and how far."""

    lengths: tuple[int, ...] | None = option(
        "L,L,...",
        "ends of the bins of positions, as in 256,1k,4k,16k (default: the length of training halved and doubled, up to "
        "64 times it or half the text)",
        read=read_lengths,
        default=None,
    )
    tokens: int = option(
        "N", f"tokens that each number is the mean of, at most (default {MOST_TOKENS:,})", read=int, default=MOST_TOKENS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise ConfigError(f"--tokens is {self.tokens}, but must be a whole number >= 1")


def run(options: LengthOptions, progress: Progress, before: Record) -> Records:
    """Read the text with every run; see `Suite.run`."""
    import numpy as np

    from xlstm_jax.evaluation.length.curves import default_lengths, own_stretches
    from xlstm_jax.scoring.positions import regions, stretches

    with clock("reading the text", terminal_only=True):
        text = options.read()
        trained, tokenizer = _trained(options.runs)
        split = text.split(tokenizer)
    sizes = np.diff(np.asarray(split.offsets).astype(np.int64)).tolist()
    lengths = options.lengths or default_lengths(trained, max(sizes))
    own = [place for length in trained for place in own_stretches(length).values()]
    found = regions(sizes, [*stretches(lengths), *own], options.tokens)
    if not found:
        needed = max(place.end for place in (*stretches(lengths), *own))
        raise ConfigError(
            f"the longest document of {text.name} has {max(sizes):,} tokens, but {needed:,} are to be read at once; "
            "--lengths takes shorter ones, and --text FILE another text"
        )
    # Of a document no more is kept than is read.
    ends = {region.document: region.end for region in found}
    documents = [split.document(n)[: ends[n] + 1] if n in ends else np.zeros(0, np.int32) for n in range(len(sizes))]
    record = {
        "text": {"name": text.name, "fingerprint": text.fingerprint, "documents": len(found)},
        "lengths": list(lengths),
        "tokens": sum(region.end - region.first for region in found),
        "regions": [region._asdict() for region in found],
    }
    return _records(options, record, (documents, found), progress, before)


def _trained(runs: Sequence[str]) -> tuple[list[int], Tokenizer]:
    """The runs' lengths of training, and the tokenizer that they share."""
    from xlstm_jax.inference.run import model_config, read_tokenizer
    from xlstm_jax.runs.folder import RunFolder

    lengths, tokenizers = [], []
    for path in runs:
        folder = RunFolder.open(path)
        config = model_config(folder)
        tokenizer = read_tokenizer(folder, config)
        if tokenizer is None:
            raise ConfigError(f"{path} has no tokenizer to read a text with: convert it again with --tokenizer PATH")
        lengths.append(config.context_length)
        tokenizers.append(tokenizer)
    for path, tokenizer in zip(runs, tokenizers, strict=True):
        if tokenizer.fingerprint != tokenizers[0].fingerprint:
            raise ConfigError(
                f"{runs[0]} and {path} have different tokenizers, so their positions cannot be compared: evaluate each "
                "by itself"
            )
    return lengths, tokenizers[0]


def _records(
    options: LengthOptions, record: dict[str, Any], what: tuple[Any, Any], progress: Progress, before: Record
) -> Records:
    from xlstm_jax.evaluation.length.curves import read_run
    from xlstm_jax.inference.run import load

    same = all(before.get(name) == value for name, value in record.items())
    earlier = {entry["run"]: entry for entry in before.get("runs", ())} if same else {}
    done: list[Mapping[str, Any]] = []
    for path in options.runs:
        with clock(f"loading {path}", terminal_only=True):
            model = load(path, options.step, say=lambda sentence: progress.say(f"note: {sentence}"), mesh=options.mesh)
        entry: Mapping[str, Any] = {}
        for entry in read_run(model, *what, record["lengths"], earlier.get(path, {}), progress):
            # What later runs had before is kept, in case that this is killed.
            waiting = [earlier[later] for later in options.runs[len(done) + 1 :] if later in earlier]
            yield {**record, "runs": [*done, entry, *waiting]}
        done.append(entry)


def draw(record: Record, path: Path) -> None:
    """Loss over the position in the window, a curve for each run, and its two levels of the length of training."""
    from xlstm_jax.report.position_plot import Level, plot_positions

    curves, levels = {}, []
    for title, entry in zip(titles(record["runs"]), record["runs"], strict=True):
        curves[title] = [(math.sqrt(max(one["from"], 1) * one["to"]), one["loss"]) for one in entry["by_position"]]
        trained = entry["context_length"]
        for name, words in (("reset", "emptied every {:,}"), ("windows", "windows of {:,}")):
            if entry[name]:
                levels.append(Level(title, words.format(trained), trained, entry[name]["loss"]))
    trained = sorted({entry["context_length"] for entry in record["runs"] if entry["context_length"] > 0})
    plot_positions(
        {title: points for title, points in curves.items() if points},
        path,
        title=f"{record['text']['name']}\nthe same {record['tokens']:,} tokens at each position",
        place="in the window",
        unit="nats per token",
        lines={f"length of training ({length:,})": length for length in trained},
        levels=levels,
    )


def tabulate(record: Record) -> tuple[RenderableType, str]:
    """Loss by position, and in whole windows."""
    from rich.console import Group

    runs = record["runs"]
    by_position = new_table("nats per token by position", *titles(runs))
    whole = new_table("mean of windows of", *titles(runs))
    for number in range(max(len(entry["by_position"]) for entry in runs)):
        found = [_at(entry["by_position"], number) for entry in runs]
        place = next(one for one in found if one)
        by_position.add_row(f"{place['from']:,} to {place['to'] - 1:,}", *(_loss(one) for one in found))
        whole.add_row(f"{place['to']:,}", *(_loss(_at(entry["by_window"], number)) for entry in runs))
    for name, words in (("reset", "memory emptied every {}"), ("windows", "half-overlapping windows of {}")):
        lengths = sorted({entry["context_length"] for entry in runs if entry[name]})
        if lengths:
            title = words.format(" or ".join(f"{length:,}" for length in lengths))
            by_position.add_row(title, *(_loss(entry[name]) for entry in runs))
    return Group(by_position, whole), (
        f"{record['text']['name']}: each number is of the same {record['tokens']:,} tokens, at another position of the "
        "window each time; state carried from the window's first position."
    )


def _at(entries: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any] | None:
    return entries[number] if number < len(entries) else None


def _loss(entry: Mapping[str, Any] | None) -> str:
    return shown(entry["loss"] if entry else None, 4)


SUITE = Suite(
    name="length",
    summary="loss by position, to many times the length of training: carried, emptied and in windows",
    config=LengthOptions,
    run=run,
    table=tabulate,
    picture=draw,
    picture_name="length.png",
    folder="length-{name}",
    examples=EXAMPLES,
)
