"""Character models of Shakespeare in nanoGPT's budget for a CPU: equal parameters and tokens, and equal time."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.table.language_models import sized_model
from xlstm_jax.evaluation.table.of_text import experiment_of, text_job, trained
from xlstm_jax.evaluation.table.options import TableOptions
from xlstm_jax.evaluation.table.pictures import draw_positions
from xlstm_jax.evaluation.table.reading import by_position, curve_of, facts_of, in_windows, whole_text
from xlstm_jax.evaluation.table.table import Column, Job, Measured, Published, Row, Table, Tell
from xlstm_jax.inference.run import Run
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import DataConfig, Experiment

FILE = "tinyshakespeare.txt"
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

MODELS = {"[1:0]": "xLSTM[1:0]", "[3:1]": "xLSTM[3:1]", "[0:1]": "xLSTM[0:1]", "llama": "Llama", "lstm": "LSTM"}
PARAMETERS, CONTEXT, BATCH, STEPS = 800_000, 64, 12, 2000
SECONDS = 60
"""Of the columns of equal time: what a model needs for its steps alone, compilation and scores not counted."""
TIMES, MOST = 64, 1 << 16

COLUMNS = (
    Column("windows", "windows", "nats", "held-out loss a character, in windows of 64", digits=3, lower=True),
    Column(
        "whole", "whole", "nats", "the same, memory carried through the text (Llama: half-overlapping windows)", 3, True
    ),
    Column("pace", "tokens/s", "tokens/s", "learnt from in a second of the steps", 0),
    Column("timed", f"in {SECONDS} s", "nats", f"held-out loss in windows after steps of {SECONDS} seconds", 3, True),
)

PUBLISHED = (
    Published(
        "nanogpt",
        "windows",
        1.88,
        None,
        "nanoGPT, README",
        "0.80 million parameters, 4 layers, 2,000 steps of 12 x 64 characters too, 20 batches; 3 minutes of a MacBook",
    ),
    Published(
        "nanogpt-gpu",
        "windows",
        1.4697,
        None,
        "nanoGPT, README",
        "10.6 million parameters, context 256, dropout 0.2, 82 million tokens, the best of the evaluations on the way",
    ),
)


def table(options: TableOptions) -> Table:
    """A row for each model."""
    path = Path(options.text or FILE)
    if not path.is_file():
        raise ConfigError(f"the table needs tinyshakespeare as a file: {path} is not here; {SOURCE} has it")
    models = options.chosen_models(tuple(MODELS))
    return Table(
        name="shakespeare",
        title=f"Tiny Shakespeare by characters: {STEPS:,} steps of {BATCH} rows of {CONTEXT}",
        rows=(
            *(Row(model, MODELS[model]) for model in models),
            Row("nanogpt", "nanoGPT, CPU"),
            Row("nanogpt-gpu", "nanoGPT, GPU"),
        ),
        columns=COLUMNS,
        jobs=[_job(options, model, path) for model in models],
        protocol=f"Models of {PARAMETERS:,} parameters within two per cent, learning rate 1e-3 for all, AdamW with "
        "betas 0.9 and 0.99 and weight decay 0.1, 100 steps of warm-up, a cosine to a tenth. The last tenth of the "
        "file is held out; nothing is chosen on it. Speed is of one training at a time (--jobs 1).",
        differences=(
            "another architecture than nanoGPT's",
            "257 tokens where nanoGPT has 65",
            "all of the held-out text",
        ),
        same_task=False,
        published=PUBLISHED,
        axes=("position in the window (characters)", "nats per character"),
        marks={f"length of training ({CONTEXT})": CONTEXT},
        workers=1,
    )


def _experiment(model: str, path: Path) -> Experiment:
    config = sized_model(model, PARAMETERS, dim=128, blocks=4, heads=4, context_length=CONTEXT)
    data = DataConfig(sources=(str(path),), tokenizer="bytes", validation_tail=0.1)
    return experiment_of(config, data, steps=STEPS, batch_size=BATCH, lr=1e-3, warmup=100)


def _job(options: TableOptions, model: str, path: Path) -> Job:
    experiment = _experiment(model, path)

    def measure(run: Run, tell: Tell) -> Measured:
        tell("scoring")
        values = {"windows": in_windows(run, MOST), "whole": whole_text(run)}
        found = by_position(run, TIMES, MOST)
        step = _seconds_of_a_step(run.path)
        steps = max(round(SECONDS / step), 200)
        timed = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, steps=steps))
        seed = RunFolder(run.path).read_config(Experiment).training.seed
        again = trained(run.path.with_name(f"{run.path.name}-{SECONDS}s"), timed, seed, tell)
        values |= {"pace": BATCH * CONTEXT / step, "timed": in_windows(again, MOST)}
        return Measured(
            values=values, curve=curve_of(found), facts={**facts_of(run), "step_seconds": step, "timed_steps": steps}
        )

    columns = tuple(column.name for column in COLUMNS)
    asked = {"seconds": SECONDS, "times": TIMES, "most": MOST}
    return text_job(options.folder, model, columns, MODELS[model], experiment, measure, asked=asked)


def _seconds_of_a_step(path: Path) -> float:
    """The median, which what the machine does beside it hardly moves."""
    records = RunFolder(path).metrics().read()
    return (
        BATCH
        * CONTEXT
        / statistics.median(record["tokens_per_second"] for record in records if "tokens_per_second" in record)
    )


def draw(record: Record, path: Path) -> None:
    """The loss by position."""
    draw_positions(record, path, column="windows", title="Held-out loss by position, of the same text at each")
