"""The page of a memory: one file of HTML that needs nothing else, neither scripts nor fonts nor pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.evaluation.memory.measures import retention
from xlstm_jax.evaluation.memory.reading import DECADES, from_text, levels
from xlstm_jax.evaluation.suite import Record

SHADES = 10
"""Of the colours behind tokens."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222;
  background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img.picture { width: 100%; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .15rem .7rem; text-align: right; }
th { border-bottom: 1px solid #bbb; font-weight: 600; } td:first-child, th:first-child { text-align: left; }
details { border-top: 1px solid #ddd; padding: .4rem 0; } summary { cursor: pointer; }
.maps { display: flex; gap: 1.5rem; flex-wrap: wrap; } figure { margin: .6rem 0; }
figure img { width: 384px; height: 384px; image-rendering: pixelated; border: 1px solid #ccc; }
figcaption { font-size: .85rem; color: #555; max-width: 384px; }
.text { font: 14px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd;
  padding: .5rem; margin: .2rem 0 .8rem; }
.text i { font-style: normal; } .key i { font-style: normal; padding: 0 .5rem; }
"""


def memory_page(record: Record, picture: Path) -> str:
    """The page of a record, whole or not yet, and its picture."""
    name = f"{Path(record['run']).name}, step {record['step']}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(name)}: memory</title><style>{STYLE}{_shades()}</style></head><body>",
        f"<h1>What the memory of {escape(name)} does</h1>",
        f"<p>Reading {escape(record['text']['name'])} ({escape(record['text']['document'])}); "
        f"{record['parameters']:,} parameters, trained at {record['context_length']:,} tokens. Losses within 1 % of "
        f"the lowest need {record.get('effective_context', 0):,} tokens of memory.</p>",
        f'<img class="picture" alt="losses, gates, states and a map" src="{_embedded(picture.read_bytes())}">',
    ]
    if record.get("heads"):
        parts.append(_table(record["heads"]))
    elif not record["fixed_state"]:
        parts.append("<p>A Transformer has no gates and no state of fixed size: its softmax is shown below.</p>")
    if "window" in record:
        parts += _window(record["window"])
    return "\n".join([*parts, "</body></html>\n"])


def _table(heads: Sequence[dict[str, Any]]) -> str:
    titles = ("block, head", "kind", "half-life", "at the median", "forget gate", "log input gate, 5 %", "50 %", "95 %")
    rows = []
    for head in heads:
        numbers = (head["half_life"], head["median_half_life"], head["forget_gate"], *head["input_gate"].values())
        cells = [f"{head['block']}, {head['head']}", head["kind"], *("-" if x is None else f"{x:.3g}" for x in numbers)]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    header = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        "<h2>Heads</h2><p>Half-lives in tokens: the time in which half of a memory is forgotten, at the mean and at "
        f"the median of the log forget gate.</p><table><tr>{header}</tr>{body}</table>"
    )


def _window(window: dict[str, Any]) -> list[str]:
    tokens, heads = window["tokens"], window["heads"]
    if not heads:
        return ["<p>The cells of this model show no gates.</p>"]
    parts = [
        f"<h2>The first {len(tokens)} tokens, head by head</h2>",
        "<p>Maps: rows are tokens that read, columns tokens that are read; white is a weight of 1 and black one of "
        f"{10.0**-DECADES:g} or less. Colours behind the text go from the head's least value to its greatest. Blue is "
        "the forget gate, the darker the more is <em>kept</em> at that token; orange the input gate, the darker the "
        "more is <em>written</em>.</p>",
    ]
    for head in heads:
        known = [value for value in head["distance"][len(tokens) // 2 :] if value is not None]
        far = f", reads {sum(known) / len(known):.1f} tokens back" if known else ""
        parts.append(
            f"<details{' open' if head is heads[0] else ''}><summary>block {head['block']}, head {head['head']} "
            f"({escape(head['kind'])}){far}</summary>"
        )
        if "log_f" in head:
            kept = [None if x is None else float(np.exp(x)) for x in head["log_f"]]
            parts.append(f"<div>forget gate</div>{_coloured(tokens, kept, 'f')}")
            parts.append(f"<div>input gate (logarithm)</div>{_coloured(tokens, head['log_i'], 'i')}")
        parts.append('<div class="maps">')
        if head["kind"] == "mlstm":
            gates = retention(*(np.array(head[name], np.float64) for name in ("log_i", "log_f", "m")))
            parts.append(_map(levels(gates), "what the gates leave of each token"))
        parts.append(_map(from_text(head["attention"]), "what is read of each token"))
        parts.append("</div></details>")
    return parts


def _coloured(tokens: Sequence[str], values: Sequence[float | None], colour: str) -> str:
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    spans = []
    for token, value in zip(tokens, values, strict=True):
        share = 0.0 if value is None or high == low else (value - low) / (high - low)
        shade = min(int(share * SHADES), SHADES - 1)
        title = "" if value is None else f' title="{value:.3g}"'
        spans.append(f'<i class="{colour}{shade}"{title}>{escape(token) or "&#9676;"}</i>')
    return (
        f'<div class="text">{"".join(spans)}</div><div class="key">{low:.3g} '
        + "".join(f'<i class="{colour}{shade}">&nbsp;</i>' for shade in range(SHADES))
        + f" {high:.3g}</div>"
    )


def _shades() -> str:
    hues = {"f": "31, 119, 180", "i": "255, 127, 14"}
    return "".join(
        f".{name}{shade} {{ background: rgba({hue}, {0.65 * shade / (SHADES - 1):.2f}); }}\n"
        for name, hue in hues.items()
        for shade in range(SHADES)
    )


def _map(shades: np.ndarray, caption: str) -> str:
    from matplotlib import image

    picture = io.BytesIO()
    image.imsave(picture, shades, cmap="magma", vmin=0, vmax=255, format="png")
    return (
        f'<figure><img alt="{escape(caption)}" src="{_embedded(picture.getvalue())}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
