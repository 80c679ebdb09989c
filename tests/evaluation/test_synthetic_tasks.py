"""Formal languages: every row's answer found again by other means, seeds, lengths, vocabularies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.synthetic.accuracy import by_length
from xlstm_jax.evaluation.synthetic.published import published
from xlstm_jax.evaluation.synthetic.tasks import PAD, TASKS, Rows, get_task


def words(task, rows: Rows) -> list[tuple[list[str], str]]:
    """(symbols, answer) of each row, padding left out."""
    return [
        ([task.symbols[token] for token in tokens[:length]], task.symbols[answer])
        for tokens, length, answer in zip(rows.tokens, rows.lengths, rows.answers, strict=True)
    ]


def solve(name: str, symbols: list[str]) -> str:
    """The answer, as a person would find it."""
    if name == "parity":
        return str(symbols.count("1") % 2)
    if name == "even_pairs":
        pairs = ["".join(pair) for pair in itertools.pairwise(symbols)]
        return "ab"[(pairs.count("ab") + pairs.count("ba")) % 2]
    if name == "cycle_nav":
        position = 0
        for move in symbols:
            position += {"stay": 0, "+1": 1, "-1": -1}[move]
        return str(position % 5)
    assert symbols[-1] == "="
    # Split at + and -, then multiply: no function of ours, and no `eval`.
    total, sign, product = 0, 1, int(symbols[0])
    for operator, number in zip(symbols[1:-1:2], symbols[2:-1:2], strict=True):
        if operator == "*":
            product *= int(number)
        else:
            total, sign, product = total + sign * product, 1 if operator == "+" else -1, int(number)
    return str((total + sign * product) % 5)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_right_and_lengths_in_range(name):
    task = get_task(name)
    rows = task.rows(3, "train", 0, 400, 3, 40)
    for symbols, answer in words(task, rows):
        assert solve(name, symbols) == answer
    assert rows.tokens.shape == (400, 40)
    assert rows.lengths.min() >= 3
    assert rows.lengths.max() == 40
    assert len(set(rows.lengths)) == (19 if name == "mod_arith" else 38)
    padding = np.arange(40) >= rows.lengths[:, None]
    assert (rows.tokens[padding] == PAD).all()
    assert (rows.tokens[~padding] != PAD).all()


def test_arithmetic_takes_products_before_sums():
    assert solve("mod_arith", ["2", "+", "3", "*", "4", "-", "1", "="]) == "3"


@pytest.mark.parametrize(
    ("name", "vocabulary", "answers"),
    [("parity", 3, 2), ("even_pairs", 3, 2), ("cycle_nav", 9, 5), ("mod_arith", 10, 5)],
)
def test_vocabularies_and_classes_are_those_of_the_paper(name, vocabulary, answers):
    task = get_task(name)
    assert (task.vocab_size, task.classes) == (vocabulary, answers)
    rows = task.rows(0, "test", 0, 4000, 40, 256)
    counts = np.bincount(rows.answers - task.first_answer, minlength=answers)
    assert len(counts) == answers
    # Products with 0 make the 0 of arithmetic a little more frequent.
    assert np.abs(counts / 4000 - task.chance).max() < 0.04
    assert task.scaled(task.chance) == pytest.approx(0)
    assert task.scaled(1.0) == pytest.approx(1)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_follows_from_seed_stream_and_number(name):
    task = get_task(name)
    whole = task.rows(1, "train", 0, 30, 3, 40)
    part = task.rows(1, "train", 17, 5, 3, 40)
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[17:22], other)
    for seed, stream in ((2, "train"), (1, "test")):
        assert not np.array_equal(task.rows(seed, stream, 0, 30, 3, 40).tokens, whole.tokens)


def test_accuracy_by_length_counts_every_row_once():
    rows = get_task("parity").rows(0, "test", 0, 500, 40, 256)
    right = rows.lengths < 100
    bins = by_length(rows, right, 40, 256, 9)
    assert sum(entry.rows for entry in bins) == 500
    assert (bins[0].low, bins[-1].high) == (40, 256)
    assert (bins[0].accuracy, bins[-1].accuracy) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("written", "name"),
    [("cycle navigation", "cycle_nav"), ("Even-Pairs", "even_pairs"), ("modular_arithmetic", "mod_arith")],
)
def test_a_task_may_be_written_as_the_papers_do(written, name):
    assert get_task(written).name == name


def test_wrong_words_are_refused():
    with pytest.raises(ConfigError, match=r"task is 'partiy'.*did you mean 'parity'"):
        get_task("partiy")
    with pytest.raises(ConfigError, match="even lengths"):
        get_task("mod_arith").rows(0, "train", 0, 1, 3, 3)
    parity = published("parity", "[0:1]")
    assert parity is not None
    assert parity.mean == 100.0
    assert published("parity", "other") is None
