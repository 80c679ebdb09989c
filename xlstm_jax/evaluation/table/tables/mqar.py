"""Associative recall, with a sweep of learning rates: without one it says little (arXiv 2508.19029)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.synthetic.protocols import get_protocol
from xlstm_jax.evaluation.synthetic.published import STATEMENTS
from xlstm_jax.evaluation.synthetic.recipes import MODELS
from xlstm_jax.evaluation.table.of_tasks import ROWS, task_jobs
from xlstm_jax.evaluation.table.options import TableOptions
from xlstm_jax.evaluation.table.pictures import draw_bars
from xlstm_jax.evaluation.table.table import Column, Job, Table

SETTINGS = ((64, 4), (128, 8), (256, 16))
"""Tokens and pairs: experiment 1 of the xLSTM paper, B.1.2, and figure 2 of Zoology."""
RATES = (1e-3, 4e-3, 1e-2)
VOCABULARY = 512
"""Where the protocol is a quick one; papers have 8,192."""


def table(options: TableOptions) -> Table:
    """A row for each model, a column for each setting."""
    models = options.chosen_models(MODELS)
    protocol = get_protocol(options.protocol)
    if protocol.lrs is None:
        protocol = dataclasses.replace(protocol, lrs=RATES)
    fields = {"random_non_queries": False} | ({"vocab_size": VOCABULARY} if protocol.name == "quick" else {})
    columns: list[Column] = []
    jobs: list[Job] = []
    for tokens, pairs in SETTINGS:
        name, lengths = f"{tokens}, {pairs}", (tokens, tokens)
        columns.append(
            Column(name, name, "%", what=f"accuracy of queries in rows of {tokens} tokens with {pairs} pairs")
        )
        own = dataclasses.replace(protocol, train_lengths=lengths, test_lengths=lengths)
        jobs += task_jobs(own, "mqar", models, name=name, fields=fields | {"pairs": pairs})
    vocabulary = jobs[0].config["task"]["task_fields"].get("vocab_size", 8192)
    return Table(
        name="mqar",
        title=f"Associative recall: accuracy of queries, by tokens and pairs, {vocabulary:,} tokens in the vocabulary",
        rows=tuple(row for row in ROWS if row.name in models),
        columns=tuple(columns),
        jobs=jobs,
        protocol=f"{protocol.distance} Of the learning rates {', '.join(f'{lr:g}' for lr in protocol.lrs or ())} the "
        "best on validation rows.",
        differences=protocol.differences,
        statements=STATEMENTS["mqar"],
    )


def draw(record: Record, path: Path) -> None:
    """Bars for each setting."""
    draw_bars(record, path)
