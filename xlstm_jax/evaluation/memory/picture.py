"""The picture of a memory: its losses, gates, states and one of its maps, a panel each."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from xlstm_jax.evaluation.memory.reading import DECADES, from_text
from xlstm_jax.evaluation.suite import Record
from xlstm_jax.report.picture import finish, new_figure, write_figure

PANEL = 5.2, 3.9
"""Inches."""
SHARES = ("on_floor", "writes")


def draw_memory(record: Record, path: Path) -> None:
    """The panels that there is something for, three in a row."""
    panels: list[Callable[[Any, Record], None]] = []
    if record["cleared"]:
        panels.append(_losses)
    if record.get("heads"):
        panels.append(_half_lives)
    if record.get("by_position"):
        panels += [partial(_by_position, name="memory", title="size of the memory, log10 of its norm")]
        if _has(record, "stable_rank"):
            panels.append(partial(_by_position, name="stable_rank", title="stable rank of the memory"))
        if _has(record, "on_floor"):
            panels.append(partial(_by_position, name="on_floor", title="share of tokens on the normaliser's floor"))
        panels.append(partial(_by_position, name="writes", title="share of tokens that set the stabiliser"))
    if "window" in record and record["window"]["heads"]:
        panels += [_reads, _map]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(PANEL[0] * columns, PANEL[1] * rows)
    for number, panel in enumerate(panels, 1):
        panel(figure.add_subplot(rows, columns, number), record)
    figure.suptitle(f"{Path(record['run']).name}, step {record['step']}, reading {record['text']['name']}")
    write_figure(figure, path)


def _has(record: Record, name: str) -> bool:
    return any(block.get(name) for block in record["by_position"][0]["blocks"])


def _losses(axes: Any, record: Record) -> None:
    every = [entry["every"] for entry in record["cleared"]]
    axes.plot(every, [entry["loss"] for entry in record["cleared"]], marker="o", markersize=4, linewidth=1.8)
    _log_positions(axes)
    _mark_training(axes, record)
    if "effective_context" in record:
        label = f"within 1 % from {record['effective_context']:,} on"
        axes.axvline(record["effective_context"], color="C1", linestyle=":", linewidth=1.4, label=label)
    axes.set(title="loss with the memory emptied", xlabel="every so many tokens", ylabel="nats per token")
    _legend(axes)
    finish(axes)


def _half_lives(axes: Any, record: Record) -> None:
    heads = record["heads"]
    blocks = sorted({head["block"] for head in heads})
    for number, head in enumerate(heads):
        value, median = head["half_life"], head["median_half_life"]
        if value:
            axes.bar(number, value, color=_colour(blocks.index(head["block"]), len(blocks)), width=0.8)
        if median:
            axes.plot(number, median, marker="_", color="black", markersize=9)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    firsts = [next(n for n, head in enumerate(heads) if head["block"] == block) for block in blocks]
    step = math.ceil(len(blocks) / 12)
    axes.set_xticks(firsts[::step], [str(block) for block in blocks[::step]])
    axes.set(title="half-life by head (stroke: at the median)", xlabel="heads, by block", ylabel="tokens")
    finish(axes)


def _by_position(axes: Any, record: Record, name: str, title: str) -> None:
    places = record["by_position"]
    blocks = [block["block"] for block in places[0]["blocks"]]
    having = [block["block"] for block in places[0]["blocks"] if block.get(name)]
    for number, block in enumerate(blocks):
        if block not in having:
            continue
        points = []
        for place in places:
            found = next(one[name] for one in place["blocks"] if one["block"] == block)
            # The stable rank is that at the end of a bin.
            at = place["to"] if name == "stable_rank" else math.sqrt(max(place["from"], 1) * place["to"])
            points += [(at, [math.nan if value is None else value for value in found])]
        colour = _colour(number, len(blocks))
        for head in range(len(points[0][1])):
            axes.plot([at for at, _ in points], [v[head] for _, v in points], color=colour, linewidth=0.6, alpha=0.5)
        means = [sum(values) / len(values) for _, values in points]
        label = f"block {block}" if len(blocks) <= 6 or block in (having[0], having[-1]) else None
        axes.plot([at for at, _ in points], means, color=colour, linewidth=1.8, marker="o", markersize=3, label=label)
    _log_positions(axes)
    _mark_training(axes, record)
    if name in SHARES:
        axes.set_ylim(-0.03, 1.03)
    axes.set(title=title, xlabel="position (tokens)")
    _legend(axes)
    finish(axes)


def _reads(axes: Any, record: Record) -> None:
    heads = record["window"]["heads"]
    blocks = sorted({head["block"] for head in heads})
    for number, block in enumerate(blocks):
        own = [head["effective_context"] for head in heads if head["block"] == block]
        colour = _colour(number, len(blocks))
        for values in own:
            axes.plot([math.nan if v is None else v for v in values], color=colour, linewidth=0.6, alpha=0.5)
        known = [[v for v in values if v is not None] for values in zip(*own, strict=True)]
        label = f"block {block}" if len(blocks) <= 6 or number in (0, len(blocks) - 1) else None
        means = [sum(values) / len(values) if values else math.nan for values in known]
        axes.plot(means, color=colour, linewidth=1.8, label=label)
    axes.set(title="tokens that a read is spread over", xlabel="position in the window", ylabel="exp(entropy)")
    _legend(axes)
    finish(axes)


def _map(axes: Any, record: Record) -> None:
    """Of the head that reads farthest back."""
    heads = record["window"]["heads"]
    best = max(heads, key=lambda head: sum(value or 0 for value in head["distance"]))
    shown = from_text(best["attention"]) / 255 * DECADES - DECADES
    image = axes.imshow(shown, cmap="magma", vmin=-DECADES, vmax=0, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="log10 of the weight")
    axes.set(
        title=f"what block {best['block']}, head {best['head']} reads", xlabel="token that is read", ylabel="token"
    )


def _log_positions(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda position, _: f"{position:,.0f}")


def _mark_training(axes: Any, record: Record) -> None:
    if record["context_length"] > 0:
        label = f"length of training ({record['context_length']:,})"
        axes.axvline(record["context_length"], color="0.6", linestyle="--", linewidth=1, label=label)


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize="small")


def _colour(number: int, of: int) -> Any:
    from matplotlib import colormaps

    return f"C{number}" if of <= 6 else colormaps["viridis"](number / (of - 1))
