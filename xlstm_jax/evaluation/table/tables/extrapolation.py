"""How far a model reads on beyond the length that it was trained for (figure 7 of the xLSTM paper, in small)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.synthetic.recipes import MODELS
from xlstm_jax.evaluation.table.language_models import sized_model
from xlstm_jax.evaluation.table.of_tasks import ROWS, TITLES
from xlstm_jax.evaluation.table.of_text import experiment_of, text_job
from xlstm_jax.evaluation.table.options import TableOptions
from xlstm_jax.evaluation.table.pictures import draw_positions
from xlstm_jax.evaluation.table.reading import by_position, curve_of, facts_of, mean_loss
from xlstm_jax.evaluation.table.table import Column, Job, Measured, Table, Tell
from xlstm_jax.inference.run import Run
from xlstm_jax.training.config import DataConfig

CONTEXT, TIMES = 64, 64
TOKENS = 1 << 15
"""Held-out tokens that are read at each position."""
PARAMETERS, STEPS, BATCH = 800_000, 2000, 12
ENDS = (1, 2, 8, 64)
"""The columns: loss at positions up to so many times the length of training, from half of that on."""

_FIGURE = (
    "xLSTM, arXiv 2405.04517, figure 7 (a picture alone): trained on rows of 2,048 and read to 16,384, xLSTM[1:0] "
    "and [7:1] keep their perplexity, and Llama loses it by far"
)


def text_of(options: TableOptions) -> DataConfig:
    """The text that language models learn from: Python's standard library, or the file that was given."""
    if options.text is None:
        return DataConfig(sources=("stdlib",), tokenizer="bytes", validation_fraction=0.02)
    return DataConfig(sources=(options.text,), tokenizer="bytes", validation_tail=0.1)


def position_jobs(
    options: TableOptions,
    models: Sequence[str],
    *,
    parameters: int,
    dim: int,
    blocks: int,
    heads: int,
    steps: int,
    batch_size: int,
    columns: Sequence[tuple[str, int]] = (("length", 8),),
) -> Iterator[Job]:
    """A job for each model that learns bytes in rows of 64 and is read to 64 times that.

    Args:
        columns: names, and how many times the length of training the positions reach that they show.
    """
    for model in models:
        config = sized_model(model, parameters, dim=dim, blocks=blocks, heads=heads, context_length=CONTEXT)
        lr = 1e-3 if steps > 1000 else 3e-3
        experiment = experiment_of(
            config, text_of(options), steps=steps, batch_size=batch_size, lr=lr, warmup=steps // 20
        )

        def measure(run: Run, tell: Tell) -> Measured:
            tell("reading at positions")
            found = by_position(run, TIMES, TOKENS)
            values = {
                name: mean_loss(found, CONTEXT * times // 2, CONTEXT * times) / math.log(2) for name, times in columns
            }
            curve = [(place, loss / math.log(2)) for place, loss in curve_of(found)]
            return Measured(values=values, curve=curve, facts=facts_of(run))

        yield text_job(
            options.folder,
            model,
            tuple(name for name, _ in columns),
            f"{TITLES[model]} text",
            experiment,
            measure,
            asked={"positions": CONTEXT * TIMES, "tokens": TOKENS, "columns": [list(column) for column in columns]},
        )


def table(options: TableOptions) -> Table:
    """A row for each model, a column for each range of positions."""
    models = options.chosen_models(MODELS)
    columns = tuple((f"x{times}", times) for times in ENDS)
    sizes = {"parameters": PARAMETERS, "dim": 128, "blocks": 4, "heads": 4}
    return Table(
        name="extrapolation",
        title=f"Bits per byte at positions beyond the {CONTEXT} of training, of the same text at each",
        rows=tuple(row for row in ROWS if row.name in models),
        columns=tuple(
            Column(
                name,
                f"to {CONTEXT * times:,}",
                "bits",
                f"positions {CONTEXT * times // 2:,} to {CONTEXT * times - 1:,} of a window",
                digits=3,
                lower=True,
            )
            for name, times in columns
        ),
        jobs=list(position_jobs(options, models, **sizes, steps=STEPS, batch_size=BATCH, columns=columns)),
        protocol=f"{STEPS:,} steps of {BATCH} rows of {CONTEXT} bytes for models of {PARAMETERS:,} parameters; each "
        f"number is of the same {TOKENS:,} held-out tokens, at another position of the window each time.",
        differences=(
            "the scale",
            "bytes of another text",
            "bits per byte by position in place of perplexity by window",
        ),
        same_task=False,
        statements=(_FIGURE,),
        axes=("position in the window (tokens)", "bits per byte"),
        marks={f"length of training ({CONTEXT})": CONTEXT},
    )


def draw(record: Record, path: Path) -> None:
    """The loss by position."""
    draw_positions(record, path, column=record["columns"][0]["name"], title=record["title"])
