"""Tables over seeds: what is counted, what is claimed, what an interruption leaves."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xlstm_jax.cli import main
from xlstm_jax.evaluation.synthetic.protocols import PROTOCOLS
from xlstm_jax.evaluation.table import pictures
from xlstm_jax.evaluation.table import suite as table_suite
from xlstm_jax.evaluation.table.language_models import sized_model
from xlstm_jax.evaluation.table.of_tasks import ROWS, task_jobs
from xlstm_jax.evaluation.table.options import TABLES, TableOptions
from xlstm_jax.evaluation.table.pictures import draw_bars
from xlstm_jax.evaluation.table.running import run_jobs
from xlstm_jax.evaluation.table.show import cell_text, meaning
from xlstm_jax.evaluation.table.table import Column, Job, Measured, Published, Row, Table, label, record_of
from xlstm_jax.evaluation.table.tables import extrapolation, isoflop
from xlstm_jax.machine.progress import Progress
from xlstm_jax.models.language_model import build_model
from xlstm_jax.training.errors import NotFiniteError

QUIET = Progress(show=False)


def job(row, column, values, choice="", selections=None, started=None):
    """A job that finds these values, by seed; None is a failure."""

    def start():
        def measure(seed, tell):
            if started is not None:
                started.append((row, column, choice, seed))
            tell("step 1/1")
            if values[seed] is None:
                raise NotFiniteError("the loss is nan at step 3")
            return Measured({column: values[seed]}, None if selections is None else selections[seed])

        return measure

    return Job(row, (column,), f"{row} {column}", {"values": str(values)}, start, choice)


def made(table, seeds=(0, 1, 2), known=None, workers=2):
    *_, measured = run_jobs(table.jobs, seeds, known or {}, workers, QUIET)
    return record_of(table, measured, seeds)


def toy(jobs, **more):
    rows, columns = (Row("a", "A"), Row("b", "B")), (Column("x", "x", "%", "what x is"), Column("y", "y", "%"))
    return Table("toy", "A toy", rows, columns, jobs, "By hand.", **more)


def test_a_cell_is_the_mean_and_deviation_over_seeds_and_failures_stay():
    record = made(toy([job("a", "x", [0.5, 0.7, 0.9]), job("b", "x", [0.2, None, 0.4]), job("b", "y", [None] * 3)]))
    (a_x, a_y), (b_x, b_y) = (row["cells"] for row in record["rows"])
    assert (a_x["mean"], a_x["sd"]) == (pytest.approx(0.7), pytest.approx(0.2))
    assert a_y is None
    assert (b_x["mean"], b_x["sd"]) == (pytest.approx(0.3), pytest.approx(np.std([0.2, 0.4], ddof=1)))
    assert b_x["failed"] == [{"seed": 1, "error": "the loss is nan at step 3"}]
    assert (b_y["mean"], len(b_y["failed"])) == (None, 3)
    shown = [cell_text(cell, record["columns"][0]) for cell in (a_x, a_y, b_x, b_y)]
    assert shown == ["70.0 ±20.0", "-", "30.0 ±14.1 1 failed", "3 failed"]
    assert record["complete"]
    assert "9 trainings, 4 of them failed." in meaning(record)


def test_of_several_choices_the_best_mean_on_validation_counts_and_not_that_of_the_test():
    jobs = [
        job("a", "x", [0.9, 0.9, 0.9], "lr 1", selections=[0.1, 0.1, 0.1]),
        job("a", "x", [0.3, 0.3, 0.6], "lr 2", selections=[0.5, 0.9, 0.5]),
        job("a", "x", [0.8, 0.8, None], "lr 3", selections=[1.0, 1.0, 1.0]),
    ]
    record = made(toy(jobs))
    assert record["rows"][0]["cells"][0]["choice"] == "lr 2"
    assert record["rows"][0]["cells"][0]["mean"] == pytest.approx(0.4)
    assert [entry["chosen"] for entry in record["trainings"]] == [False] * 3 + [True] * 3 + [False] * 3


def test_published_values_that_disagree_are_all_shown_and_judged_by_deviation_or_two_points():
    cells = [(71.9, None), (68.9, 0.4), (67.9, 1.1), (67.9, 1.0), (75.0, None)]
    published = tuple(
        Published("a", "x", value, deviation, f"paper {i}", "") for i, (value, deviation) in enumerate(cells)
    )
    record = made(toy([job("a", "x", [0.7, 0.7, 0.7])], published=published))
    assert [entry["agrees"] for entry in record["rows"][0]["published"]] == [True, True, True, False, False]
    assert record["label"] == "same task, short recipe"
    assert "3 of 5 published values" in meaning(record)


def test_a_table_claims_no_more_than_was_done():
    assert label(True, (), [True, True]) == "reproduced"
    assert label(True, (), [True, False]) == "same task, short recipe"
    assert label(True, (), []) == "same task, short recipe"
    assert label(True, ("fewer steps",), [True]) == "same task, short recipe"
    assert label(False, (), [True]) == "set beside"
    for protocol in PROTOCOLS.values():
        assert protocol.differences, f"{protocol.name} claims to be what was published"


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_known_is_not_done_again(workers):
    started = []
    jobs = [job(row, column, [0.1, 0.2, 0.3], started=started) for row in "ab" for column in "xy"]
    whole = made(toy(jobs), workers=workers)
    assert len(started) == 12
    started.clear()
    known = {entry["key"]: entry for entry in whole["trainings"][1:-1]}
    again = made(toy(jobs), known=known, workers=workers)
    assert sorted(started) == [("a", "x", "", 0), ("b", "y", "", 2)]

    def values(record):
        return [(entry["key"], entry["values"]) for entry in record["trainings"]]

    assert values(again) == values(whole)
    other = dataclasses.replace(jobs[0], config={"values": "others"})
    assert {other.key(seed) for seed in range(3)}.isdisjoint(jobs[0].key(seed) for seed in range(3))


def test_giving_up_ends_what_is_being_trained():
    running, ended = threading.Event(), threading.Event()

    def start():
        def measure(seed, tell):
            try:
                while True:
                    tell("step")
                    running.set()
            finally:
                ended.set()

        return measure

    work = run_jobs([Job("a", ("x",), "", {}, start)], (0,), {}, 1, QUIET)
    assert next(work) == []

    def impatient(*_):
        running.wait(10)
        raise KeyboardInterrupt

    work.close()
    progress = SimpleNamespace(bar=lambda *_: ImpatientBar(impatient))
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs([Job("a", ("x",), "", {}, start)], (0,), {}, 1, progress))
    assert ended.wait(10)


class ImpatientBar:
    def __init__(self, to):
        self.to = to

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_an_error_in_a_training_ends_the_table():
    def start():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        list(run_jobs([Job("a", ("x",), "", {}, start)], (0,), {}, 1, QUIET))


def curved(row, column, title, values):
    """A job whose seeds have these curves too."""

    def start():
        return lambda seed, tell: Measured(
            {column: values[seed]}, curve=[(8, values[seed]), (64, 0.5)], facts={"parameters": 1000 * (1 + len(row))}
        )

    return Job(row, (column,), title, {}, start)


def test_every_kind_of_picture_is_drawn_from_whole_and_from_begun_records(tmp_path):
    columns = (Column("llama", "Llama", "%"), Column("guessing", "guessing", "%"))
    rows = tuple(Row(name, name) for name in ("s3", "a5", "s5", "z60"))
    table = Table(
        "toy",
        "A toy",
        rows,
        columns,
        [curved("s3", "llama", "", [0.3, 0.4]), curved("a5", "llama", "", [0.5, 0.6])],
        "",
    )
    table = dataclasses.replace(table, axes=("length", "accuracy"), marks={"trained to": 32})
    table = dataclasses.replace(table, fixed={row.name: {"guessing": 0.2} for row in rows})
    budgets = (Column("1e+12", "1e+12", "bits", lower=True),)
    sizes = tuple(Row(name, name) for name in ("llama 8x1", "llama 16x1", "llama 256x1"))
    jobs = [curved(row.name, "1e+12", "", [loss, loss]) for row, loss in zip(sizes, (2.5, 2.0, 2.4), strict=True)]
    flops = Table("isoflop", "Sizes", sizes, budgets, jobs, "", conclude=isoflop._best_sizes)
    for draw, one in (
        (pictures.draw_panels, table),
        (pictures.draw_bars, table),
        (lambda record, path: pictures.draw_positions(record, path, column="llama", title="by position"), table),
        (isoflop.draw, flops),
    ):
        for record in (record_of(one, [], (0, 1)), made(one, (0, 1))):
            draw(record, tmp_path / "picture.png")
            assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
            (tmp_path / "picture.png").unlink()
    assert "parameters are best" in meaning(made(flops, (0, 1)))


def test_the_command_makes_a_table_and_goes_on_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = dataclasses.replace(
        PROTOCOLS["quick"], steps=4, batch_size=8, dim=8, train_lengths=(3, 8), test_lengths=(8, 16), test_rows=16
    )

    def table(options):
        jobs = list(task_jobs(short, "parity", options.chosen_models(("[1:0]", "lstm"))))
        columns = (Column("parity", "parity", "%", "bits"),)
        return Table("memory", "A toy", ROWS[-1:], columns, jobs, "In short.", short.differences)

    module = SimpleNamespace(table=table, draw=draw_bars)
    monkeypatch.setattr(table_suite, "_module", lambda name: module)
    words = ["eval", "table", "memory", "--models", "lstm", "--jobs", "2"]
    assert main([*words, "--seeds", "0"]) == 0
    record = json.loads(Path("runs/table-memory/result.json").read_text())
    assert Path("runs/table-memory/picture.png").read_bytes().startswith(b"\x89PNG")
    assert record["command"] == "xlstm eval table memory --seeds 0 --models lstm"
    assert record["label"] == "same task, short recipe"
    assert record["environment"]["platform"] == "cpu"
    (training,) = record["trainings"]
    assert record["configs"][training["job"]]["task"]["steps"] == 4
    assert 0 <= training["values"]["parity"] <= 1
    assert "same task, short recipe" in capsys.readouterr().out

    assert main([*words, "--seeds", "0"]) == 2
    assert "has 1 trainings of this table already: --resume goes on" in capsys.readouterr().err
    assert main([*words, "--seeds", "0,1", "--resume"]) == 0
    again = json.loads(Path("runs/table-memory/result.json").read_text())["trainings"]
    assert [entry["seed"] for entry in again] == [0, 1]
    assert again[0] == training


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["memry"], "the table is 'memry', but must be one of memory, formal"),
        (["memory", "--models", "gru"], "model is 'gru', but must be one of [0:1]"),
        (["memory", "--seeds", "one"], "--seeds is 'one', but must be whole numbers >= 0"),
        (["memory", "--jobs", "0"], "--jobs is 0"),
        (["extrapolation", "--text", "none.txt"], "--text is 'none.txt', but there is no such file"),
        (["shakespeare"], "tinyshakespeare.txt is not here"),
        (["mqar", "--protocol", "fast"], "--protocol is 'fast'"),
    ],
)
def test_a_wrong_call_is_told_in_a_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "table", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"shakespeare", "isoflop"}))
def test_every_table_has_a_job_for_each_cell_and_each_key_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = table_suite._module(name).table(TableOptions(name, models="lstm"))
    keys = [one.key(seed) for one in table.jobs for seed in table.seeds]
    assert len(keys) == len(set(keys))
    filled = {(one.row, column) for one in table.jobs for column in one.columns}
    filled |= {(row, column) for row, cells in table.fixed.items() for column in cells}
    assert filled == {(row.name, column.name) for row in table.rows for column in table.columns}


@pytest.mark.parametrize("name", ["[3:1]", "llama", "lstm"])
def test_language_models_of_a_table_have_equal_parameters(name):
    config = sized_model(name, 100_000, dim=32, blocks=4, heads=2, context_length=16)
    assert build_model(config).param_count == pytest.approx(100_000, rel=0.02)


def test_a_text_is_learnt_and_read_far_beyond_the_length_of_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be, that is the question. " * 2000)
    monkeypatch.setattr(extrapolation, "TOKENS", 2048)
    options = TableOptions("extrapolation", text="text.txt")
    options.folder = tmp_path / "out"
    jobs = list(
        extrapolation.position_jobs(
            options, ["lstm"], parameters=12_000, dim=8, blocks=1, heads=1, steps=3, batch_size=2, columns=[("x64", 64)]
        )
    )
    *_, (first,) = run_jobs(jobs, (0,), {}, 1, QUIET)
    assert first["facts"]["steps"] == 3
    assert len(first["curve"]) == 9
    assert 0 < first["values"]["x64"] < 10
    assert next((tmp_path / "out/runs").glob("lstm-*-seed0/config.json")).is_file()


def test_a_parabola_over_the_logarithm_finds_the_best_size():
    sizes = [1e5, 3e5, 1e6, 3e6]
    size, loss, _ = isoflop.fit(sizes, [2.0 + 0.1 * np.log(n / 5e5) ** 2 for n in sizes])
    assert (size, loss) == (pytest.approx(5e5, rel=1e-6), pytest.approx(2.0))
    assert isoflop.fit(sizes, [-(np.log(n) ** 2) for n in sizes]) is None
    assert isoflop.fit(sizes[:2], [1.0, 2.0]) is None
