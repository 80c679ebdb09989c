"""The best size of a model for a budget of operations, as in the xLSTM scaling laws (arXiv 2510.02228), in small."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.table.of_text import experiment_of, text_job
from xlstm_jax.evaluation.table.options import TableOptions
from xlstm_jax.evaluation.table.reading import facts_of, whole_text
from xlstm_jax.evaluation.table.table import Column, Job, Measured, Row, Table, Tell
from xlstm_jax.evaluation.table.tables.extrapolation import text_of
from xlstm_jax.inference.run import Run
from xlstm_jax.models.language_model import LanguageModelConfig, build_model
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.report.table_plot import plot_parabolas

FAMILIES = {"[1:0]": "xLSTM[1:0]", "llama": "Llama"}
SIZES = ((48, 2), (80, 3), (128, 4), (208, 4))
"""Width and blocks; heads of 16."""
BUDGETS = (3e12, 1e13)
CONTEXT, BATCH, VOCABULARY = 256, 4, 257

_LAWS = (
    "xLSTM scaling laws, arXiv 2510.02228: at equal operations xLSTM is below Llama throughout, and its best model is "
    "larger; N* = 0.01205 H^0.5473 for it and 0.00228 H^0.5749 for Llama, in rows of 8,192 tokens, 80 million to 7 "
    "billion parameters"
)


def table(options: TableOptions) -> Table:
    """A row for each family and size, a column for each budget."""
    families = options.chosen_models(tuple(FAMILIES))
    rows, jobs = [], []
    for family in families:
        for dim, blocks in SIZES:
            config = _model(family, dim, blocks)
            name = f"{family} {dim}x{blocks}"
            rows.append(Row(name, f"{FAMILIES[family]} {build_model(config).param_count / 1e6:.2f}M"))
            jobs += [_job(options, name, config, budget) for budget in BUDGETS]
    return Table(
        name="isoflop",
        title="Held-out loss of Python's standard library for a budget of operations, by size",
        rows=tuple(rows),
        columns=tuple(
            Column(f"{budget:g}", f"{budget:g}", "bits", f"bits per byte after {budget:g} operations", 3, True)
            for budget in BUDGETS
        ),
        jobs=jobs,
        protocol=f"Operations are counted an operator, forward and backward; bytes in {BATCH} rows of {CONTEXT}; the "
        "learning rate is 3e-3 at a width of 128 and falls with its root. A parabola over the logarithm of the "
        "parameters gives the best size.",
        differences=("toy budgets", "bytes", "one learning rate a size"),
        same_task=False,
        statements=(_LAWS,),
        seeds=(0,),
        conclude=_best_sizes,
    )


def _model(family: str, dim: int, blocks: int) -> LanguageModelConfig:
    if family == "llama":
        return LlamaConfig(
            embedding_dim=dim, num_blocks=blocks, head_dim=16, context_length=CONTEXT, vocab_size=VOCABULARY
        )
    return dataclasses.replace(small_v1(dim, blocks, dim // 16, CONTEXT), vocab_size=VOCABULARY)


def _job(options: TableOptions, row: str, config: LanguageModelConfig, budget: float) -> Job:
    a_token = build_model(config).flops_per_token(CONTEXT, train=True)
    steps = max(round(budget / a_token / (BATCH * CONTEXT)), 10)
    lr = 3e-3 * math.sqrt(128 / config.embedding_dim)
    experiment = experiment_of(
        config, text_of(options), steps=steps, batch_size=BATCH, lr=lr, warmup=max(steps // 20, 1)
    )

    def measure(run: Run, tell: Tell) -> Measured:
        return Measured(values={f"{budget:g}": whole_text(run) / math.log(2)}, facts=facts_of(run))

    return text_job(
        options.folder, row, (f"{budget:g}",), f"{row} {budget:g}", experiment, measure, asked={"budget": budget}
    )


def fit(sizes: Sequence[float], losses: Sequence[float]) -> tuple[float, float, np.ndarray] | None:
    """The best size and its loss by a parabola over the logarithm of the size, and its coefficients; None where there
    are fewer than three sizes, or the parabola has no lowest point."""
    if len(sizes) < 3:
        return None
    coefficients = np.polyfit(np.log(sizes), losses, 2)
    if coefficients[0] <= 0:
        return None
    best = -coefficients[1] / (2 * coefficients[0])
    return float(np.exp(best)), float(np.polyval(coefficients, best)), coefficients


def _points(record: Record) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Sizes and losses by family and budget."""
    sizes = {entry["row"]: entry["facts"]["parameters"] for entry in record["trainings"] if entry["error"] is None}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in record["rows"]:
        for column, cell in zip(record["columns"], row["cells"], strict=True):
            if cell is not None and cell["mean"] is not None:
                family = FAMILIES[row["name"].split()[0]]
                found.setdefault((family, column["name"]), []).append((sizes[row["name"]], cell["mean"]))
    return found


def _best_sizes(record: Record) -> list[str]:
    sentences = []
    for (family, budget), points in _points(record).items():
        best = fit(*zip(*points, strict=True))
        if best is None:
            continue
        tried = [size for size, _ in points]
        outside = "" if min(tried) <= best[0] <= max(tried) else ", outside of what was tried"
        sentences.append(
            f"{family}, {budget} operations: {best[0]:,.0f} parameters are best{outside}: {best[1]:.3f} bits a byte."
        )
    return sentences


def draw(record: Record, path: Path) -> None:
    """Loss over size, with the parabola of each family and budget."""
    curves = {f"{family}, {budget} FLOP": points for (family, budget), points in _points(record).items()}
    fits = {name: fit(*zip(*points, strict=True)) for name, points in curves.items()}
    parabolas = {name: found[2].tolist() for name, found in fits.items() if found is not None}
    plot_parabolas(curves, parabolas, path, title=record["title"], axes_are=("parameters", "bits per byte"))
