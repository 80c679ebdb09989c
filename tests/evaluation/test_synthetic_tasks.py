"""Synthetic tasks: every row's targets found again by plain Python, and lengths, streams, sizes, statistics."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.synthetic.accuracy import Marks, by_length
from xlstm_jax.evaluation.synthetic.groups import multiplication_table
from xlstm_jax.evaluation.synthetic.task import PAD, Task, distinct
from xlstm_jax.evaluation.synthetic.tasks import FORMAL, GROUPS, SLICE, TASKS, get_task

SEVERAL: list[Task] = [
    *(task for task in TASKS.values() if task.name != "mqar"),
    get_task("mqar", {"vocab_size": 64}),
    get_task("mqar", {"vocab_size": 64, "random_non_queries": False, "passes": 2, "power": 1.0}),
    get_task("ngram_lookup", {"ngram": 1, "answer": 2}),
    get_task("ngram_lookup_prefix", {"ngram": 2, "answer": 1}),
    get_task("phone_book", {"names": 3, "digits": 2}),
    get_task("needle", {"needles": 3, "letters": 1, "digits": 2}),
    get_task("nearest_neighbour", {"angles": 5, "values": 3}),
]


def lengths_for(task: Task) -> tuple[int, int]:
    first = int(task.possible(400)[0])
    return first, max(40, first + 60)


# -- every task again, as a person would do it -------------------------------------------------------------------------


def expression(symbols: list[str]) -> int:
    """The value of a bracketed expression, by reading it from the left."""
    rest = list(symbols)

    def read() -> int:
        symbol = rest.pop(0)
        if symbol == "-":
            return -int(rest.pop(0))
        if symbol != "(":
            return int(symbol)
        value = read()
        if rest[0] != ")":
            operator, other = rest.pop(0), read()
            value = {"+": value + other, "-": value - other, "*": value * other}[operator]
        assert rest.pop(0) == ")"
        return value

    value = read()
    assert not rest
    return value % 5


def without_brackets(symbols: list[str]) -> int:
    """Split at + and -, then multiply."""
    total, sign, product = 0, 1, int(symbols[0])
    for operator, number in zip(symbols[1::2], symbols[2::2], strict=True):
        if operator == "*":
            product *= int(number)
        else:
            total, sign, product = total + sign * product, 1 if operator == "+" else -1, int(number)
    return (total + sign * product) % 5


def at_end(symbols: list[str], answer: Any) -> dict[int, str]:
    return {len(symbols) - 1: str(answer)}


def formal(name: str, task: Any, symbols: list[str]) -> dict[int, str]:
    if name == "parity":
        return at_end(symbols, symbols.count("1") % 2)
    if name == "even_pairs":
        pairs = ["".join(pair) for pair in itertools.pairwise(symbols)]
        return at_end(symbols, "ab"[(pairs.count("ab") + pairs.count("ba")) % 2])
    if name == "cycle_nav":
        return at_end(symbols, sum({"stay": 0, "+1": 1, "-1": -1}[move] for move in symbols) % 5)
    if name == "mod_arith":
        assert symbols[-1] == "="
        return at_end(symbols, without_brackets(symbols[:-1]))
    if name == "mod_arith_brackets":
        assert symbols[-1] == "="
        return at_end(symbols, expression(symbols[:-1]))
    if name == "solve_equation":
        *left, equals, value, act = symbols
        assert (equals, act, left.count("x")) == ("=", "[ACT]", 1)
        fit = [d for d in "01234" if str(expression([d if s == "x" else s for s in left])) == value]
        assert len(fit) == 1 or "*" in task.operators
        return at_end(symbols, "|".join(fit))
    if name in ("majority", "majority_count"):
        counts = {symbol: symbols.count(symbol) for symbol in symbols}
        often = max(counts.values())
        first = next(symbol for symbol in symbols if counts[symbol] == often)
        return at_end(symbols, first if name == "majority" else min(often, 63))
    if name == "missing_duplicate":
        half, place = len(symbols) // 2, symbols.index("[MIS]")
        whole = [a if b == "[MIS]" else b for a, b in zip(symbols[:half], symbols[half:], strict=True)]
        assert whole == symbols[:half]
        return {place if task.at_place else len(symbols) - 1: symbols[place - half]}
    act = symbols.index("[ACT]") if "[ACT]" in symbols else (len(symbols) + 1) // 2
    string = symbols[:act]
    assert set(symbols[act + 1 :]) <= {"[PAD]"}
    assert "[PAD]" not in string
    answer = transduced(name, task, string)
    first = act if "[ACT]" in symbols else act - 1
    return {first + i: symbol for i, symbol in enumerate(answer)}


def transduced(name: str, task: Any, string: list[str]) -> list[str]:
    if name == "reverse_string":
        return string[::-1]
    if name == "repetition":
        return string
    if name == "odds_first":
        return string[0::2] + string[1::2]
    if name == "bucket_sort":
        return sorted(string, key=int)
    if name == "set":
        return list(dict.fromkeys(string))
    assert name == "stack_manipulation"
    given_, stack = [symbol for symbol in string if symbol.startswith("ST")], []
    assert given_ == string[: len(given_)] != []
    for symbol in string:
        if symbol != "POP":
            stack.append("ST" + symbol[2:])
        elif stack:
            stack.pop()
    return [*stack, "[EMPTY]"][: len(string)] if task.empty else stack


def twos(symbols: list[str]) -> list[tuple[str, str]]:
    return list(zip(symbols[0::2], symbols[1::2], strict=True))


def recalled(name: str, task: Any, symbols: list[str], asked: list[int]) -> dict[int, str]:
    if name == "mqar":
        pairs = dict(twos(symbols[: task.context]))
        assert len(pairs) == task.pairs == len(set(pairs.values()))
        assert symbols[: task.context] == [s for pair in pairs.items() for s in pair] * task.passes
        assert all(1 <= int(key) < 32 <= int(value) < 64 for key, value in pairs.items())
        assert sorted(symbols[place] for place in asked) == sorted(pairs)
        assert all(place >= task.context and place % 2 == 0 for place in asked)
        if not task.random_non_queries:
            assert all((symbols[p] != "0") == (p in asked) for p in range(task.context, len(symbols)))
        return {place: pairs[symbols[place]] for place in asked}
    text = "".join(symbols).split("[PAD]")[0]
    if name == "copy":
        string, copied = text.removeprefix("$").split("|")
        assert copied == string
        return {len(string) + 1 + i: letter for i, letter in enumerate(string)}
    if name in ("ngram_lookup", "ngram_lookup_prefix"):
        n = task.ngram
        if name == "ngram_lookup":
            string, behind = text.removeprefix("$").split("|")
            gram, fed, first = behind[:n], behind[n:], len(string) + 1 + n
        else:
            gram, string, fed = text.removeprefix("$").split("|")
            first = n + len(string) + 2
        answer = string[string.index(gram) + n :][: task.answer]
        assert len(gram) == n
        assert fed == answer[:-1]
        return {first + i: letter for i, letter in enumerate(answer)}
    if name == "phone_book":
        *lines, query = "".join(f"{s} " if s[0] in "fl" else s for s in symbols).split("\\n")
        book, examples = lines[: lines.index("")], lines[lines.index("") + 1 :]
        numbers = dict(line.split(":") for line in book)
        assert len(numbers) == len(book) == task.entries(len(symbols)) >= 3
        assert all(number[0] in "6789" and len(number) == task.digits for number in numbers.values())
        assert examples.pop() == ""
        assert len(set(examples)) == 2
        assert set(examples) < set(book)
        who, fed = query.split(":")
        assert who not in {example.split(":")[0] for example in examples}
        assert fed == numbers[who][:-1]
        return {len(symbols) - task.digits + i: digit for i, digit in enumerate(numbers[who])}
    if name == "needle":
        end = len(symbols) - task.letters - task.digits
        text, query, needles = "".join(symbols[:end]), "".join(symbols[end:]), {}
        while "=" in text:
            place = text.index("=")
            key, number = text[place - task.letters : place], text[place + 1 : place + 1 + task.digits]
            assert text[place + 1 + task.digits] == " "
            needles[key] = number
            text = text[: place - task.letters] + text[place + task.digits + 2 :]
        filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
        assert text == (filler * 9)[: len(text)]
        assert len(needles) == task.needles
        key, fed = query.split("?")
        assert fed == needles[key][:-1]
        return {len(symbols) - task.digits + i: digit for i, digit in enumerate(needles[key])}
    assert name == "nearest_neighbour"
    wanted = int(symbols[0].removeprefix("angle"))

    def apart(pair: tuple[str, str]) -> int:
        turn = (int(pair[0].removeprefix("angle")) - wanted) % task.angles
        return min(turn, task.angles - turn)

    return at_end(symbols, min(twos(symbols[1:]), key=apart)[1])


def solved(task: Task, symbols: list[str], asked: list[int]) -> dict[int, str]:
    name = task.name.removesuffix("_slice")
    if task in GROUPS:
        return products(name, symbols)
    known = {formal_task.name for formal_task in FORMAL}
    return formal(name, task, symbols) if name in known else recalled(name, task, symbols, asked)


def products(group: str, symbols: list[str]) -> dict[int, str]:
    """Of permutations, which are applied to a hand of cards one after another."""
    table = elements(group)
    cards = list(range(len(table[0])))
    found = {}
    for place, symbol in enumerate(symbols):
        cards = [table[int(symbol)][card] for card in cards]
        found[place] = str(table.index(cards))
    return found


def elements(group: str) -> list[list[int]]:
    if group == "z60":
        return [[(i + turn) % 60 for i in range(60)] for turn in range(60)]
    if group == "a4xz5":
        return [a + [4 + (i + turn) % 5 for i in range(5)] for a in elements("a4") for turn in range(5)]
    every = [list(p) for p in itertools.permutations(range(int(group[1])))]
    return every if group[0] == "s" else [p for p in every if round(np.linalg.det(np.eye(len(p))[p])) == 1]


@pytest.mark.parametrize("task", SEVERAL, ids=lambda task: task.name)
def test_targets_are_right_and_stand_where_they_should(task: Task) -> None:
    low, high = lengths_for(task)
    rows = task.rows(3, "train", 0, 300, low, high)
    symbols = task.symbols
    assert rows.inputs.shape == rows.targets.shape == rows.mask.shape == (300, high)
    assert set(rows.lengths) <= set(task.lengths(low, high))
    assert rows.lengths.max() > rows.lengths.min()
    for inputs, targets, mask, length in zip(*rows, strict=True):
        own = [symbols[token] for token in inputs[:length]]
        found = {int(place): symbols[targets[place]] for place in np.flatnonzero(mask)}
        wanted = solved(task, own, list(found))
        if "|" in "".join(wanted.values()):  # an equation that more than one digit solves
            assert found[length - 1] in wanted[length - 1].split("|")
        else:
            assert found == wanted
        assert (inputs[length:] == PAD).all()
        assert len(found) <= task.max_targets(length)
        assert not targets[~mask].any()
    asked = rows.asked(task.max_targets(high))
    assert asked.mask.sum() == rows.mask.sum()
    for row in range(10):
        own = asked.mask[row]
        assert list(asked.positions[row][own]) == list(np.flatnonzero(rows.mask[row]))
        assert list(asked.targets[row][own]) == list(rows.targets[row][rows.mask[row]])
        assert sorted(own, reverse=True) == list(own)


@given(
    name=st.sampled_from([task.name for task in SEVERAL if task.name != "mqar"]),
    seed=st.integers(0, 2**32 - 1),
    start=st.integers(0, 10**9),
    wider=st.integers(0, 70),
)
@settings(max_examples=60, deadline=None)
def test_any_row_at_any_width_is_right_and_follows_from_its_number(
    name: str, seed: int, start: int, wider: int
) -> None:
    task = TASKS[name]
    low = int(task.possible(400)[0])
    whole = task.rows(seed, "train", start, 4, low, low + wider)
    for one, other in zip(whole.part(2, 1), task.rows(seed, "train", start + 2, 1, low, low + wider), strict=True):
        np.testing.assert_array_equal(one, other)
    for inputs, targets, mask, length in zip(*whole, strict=True):
        own = [task.symbols[token] for token in inputs[:length]]
        found = {int(place): task.symbols[targets[place]] for place in np.flatnonzero(mask)}
        wanted = solved(task, own, list(found))
        assert found.keys() == wanted.keys()
        assert all(found[place] in answer.split("|") for place, answer in wanted.items()) or "|" in found.values()


# -- sizes and statistics ----------------------------------------------------------------------------------------------

PAPER = {
    **{
        "parity": (3, 2),
        "even_pairs": (3, 2),
        "cycle_nav": (9, 5),
        "mod_arith": (10, 5),
        "mod_arith_brackets": (12, 5),
    },
    **{"solve_equation": (14, 5), "reverse_string": (12, 10), "stack_manipulation": (11, 4), "bucket_sort": (11, 10)},
    **{"missing_duplicate": (11, 9), "odds_first": (12, 10), "repetition": (12, 10), "set": (128, 126)},
    **{"majority": (64, 63), "majority_count": (64, 63)},
}


def test_vocabularies_and_chance_are_those_of_the_papers() -> None:
    assert {task.name: (task.vocab_size, round(1 / task.chance)) for task in FORMAL} == PAPER
    assert {task.name: task.vocab_size for task in GROUPS} == {
        **{"s3": 6, "s4": 24, "a5": 60, "s5": 120, "z60": 60, "a4xz5": 60}
    }
    assert [task.vocab_size for task in SLICE] == [12, 14, 4, 8, 7, 11, 4, 4]
    for task in TASKS.values():
        assert task.scaled(task.chance) == pytest.approx(0)
        assert task.scaled(1.0) == pytest.approx(1)
        assert task.question
        assert task.source


@pytest.mark.parametrize("name", ["parity", "even_pairs", "cycle_nav", "mod_arith", "solve_equation"])
def test_classes_are_balanced(name: str) -> None:
    task = TASKS[name]
    answers = task.rows(0, "test", 0, 4000, 40, 256).asked(1).targets[:, 0]
    counts = np.bincount(answers - answers.min())
    # Products with 0 make the 0 of arithmetic a little more frequent.
    assert np.abs(counts / 4000 - task.chance).max() < 0.04


@pytest.mark.parametrize("group", ["s3", "s4", "a4", "a5", "s5", "z60", "a4xz5"])
def test_groups_are_groups(group: Any) -> None:
    table = multiplication_table(group)
    size = len(table)
    assert (table[0] == np.arange(size)).all()
    assert (table[:, 0] == np.arange(size)).all()
    assert all(sorted(line) == list(range(size)) for line in (*table, *table.T))
    a, b, c = np.random.default_rng(0).integers(0, size, (3, 2000))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    assert (table == table.T).all() == (group == "z60")


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> float:
    """In standard deviations of the statistic, whose mean is its degrees of freedom."""
    total, freedom = sum(counts.values()), len(expected) - 1
    assert set(counts) <= set(expected)
    statistic = sum((counts[key] - total * p) ** 2 / (total * p) for key, p in expected.items())
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_query_slots_are_drawn_one_after_another_by_their_weights(power: float) -> None:
    """(slot of the first key, slot of the second) has the probability w1 w2 / (1 - w1)."""
    task: Any = get_task("mqar", {"vocab_size": 32, "pairs": 2, "power": power, "random_non_queries": False})
    rows = task.rows(1, "train", 0, 20_000, 20, 20)
    first, second = (np.argmax(rows.inputs[:, 4:] == rows.inputs[:, [place]], axis=1) // 2 for place in (0, 2))
    weights = [(g + 1) ** (power - 1) for g in range(8)]
    w = [weight / sum(weights) for weight in weights]
    expected = {(g, h): w[g] * w[h] / (1 - w[g]) for g in range(8) for h in range(8) if g != h}
    assert abs(chi_square(Counter(zip(first.tolist(), second.tolist(), strict=True)), expected)) < 4
    np.testing.assert_allclose(task.slot_weights(8), w)
    keys = Counter(rows.inputs[:, 0].tolist())
    assert abs(chi_square(keys, dict.fromkeys(range(1, 16), 1 / 15))) < 4


def test_mqar_is_laid_out_as_zoologys_example() -> None:
    """Keys from 1 to V/2 - 1, values from V/2; the rest of a row is blank, or any token."""
    blank = get_task("mqar", {"vocab_size": 12, "pairs": 2, "random_non_queries": False}).rows(
        0, "test", 0, 3000, 8, 10
    )
    assert sorted(set(blank.inputs[:, 0])) == [1, 2, 3, 4, 5]
    assert sorted(set(blank.inputs[:, 1])) == [6, 7, 8, 9, 10, 11]
    noise = get_task("mqar", {"vocab_size": 16, "pairs": 2}).rows(0, "test", 0, 3000, 14, 14)
    rest = noise.inputs[:, 5::2]
    assert abs(chi_square(Counter(rest.ravel().tolist()), dict.fromkeys(range(16), 1 / 16))) < 4


def test_different_numbers_are_drawn_as_a_shuffle_does() -> None:
    words = np.random.Philox(3).random_raw(24_000).reshape(-1, 3)
    drawn = Counter(map(tuple, distinct(words, 4).tolist()))
    every = list(itertools.permutations(range(4), 3))
    assert abs(chi_square(drawn, dict.fromkeys(every, 1 / len(every)))) < 4


def test_needles_stand_at_any_depth_and_symbols_are_uniform() -> None:
    needle = TASKS["needle"].rows(0, "test", 0, 6000, 40, 40)
    depths = Counter((np.argmax(needle.inputs == ord("="), axis=1) - 3).tolist())
    assert abs(chi_square(depths, dict.fromkeys(range(19), 1 / 19))) < 4
    string = TASKS["reverse_string"].rows(0, "test", 0, 2000, 20, 20).inputs[:, :10]
    assert abs(chi_square(Counter(string.ravel().tolist()), dict.fromkeys(range(1, 11), 0.1))) < 4


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_row_follows_from_seed_stream_and_number(name: str) -> None:
    task = TASKS[name]
    low, high = lengths_for(task)
    whole = task.rows(1, "train", 0, 30, low, high)
    part = task.rows(1, "train", 17, 5, low, high)
    for one, other in zip(whole.part(17, 5), part, strict=True):
        np.testing.assert_array_equal(one, other)
    for seed, stream in ((2, "train"), (1, "test"), (1, "validation")):
        assert not np.array_equal(task.rows(seed, stream, 0, 30, low, high).inputs, whole.inputs)  # type: ignore[arg-type]


def test_rows_do_not_repeat_and_no_row_of_a_test_is_learnt_from() -> None:
    """Strings of 20 letters, pairs of keys and values, words of S5: two are equal with less than 1e-25."""
    for task, length in ((TASKS["copy"], 42), (TASKS["mqar"], 64), (TASKS["s5"], 20)):
        streams = [task.rows(0, stream, 0, 2000, length, length).inputs for stream in ("train", "validation", "test")]  # type: ignore[arg-type]
        assert len({row.tobytes() for rows in streams for row in rows}) == 6000


def test_the_four_first_languages_have_the_rows_that_they_had() -> None:
    """So that figures from before can be made again."""
    known = {
        "parity": [1, 2, 1, 1, 1, 2],
        "even_pairs": [1, 2, 1, 1, 1, 2],
        "cycle_nav": [3, 3, 1, 1, 1, 2],
        "mod_arith": [7, 3, 8, 1, 5, 2],
    }
    for name, inputs in known.items():
        assert TASKS[name].rows(0, "train", 1, 1, 3, 40).inputs[0, :6].tolist() == inputs


# -- marks and mistakes ------------------------------------------------------------------------------------------------


def test_accuracy_counts_targets_rows_and_positions() -> None:
    """Who is right up to position 99 has the rows that are no longer, and all of the first ranges of positions."""
    rows = TASKS["s3"].rows(0, "test", 0, 500, 40, 256)
    asked = rows.asked(256)
    right = asked.mask & (asked.positions < 99)
    marks = Marks(right, asked.mask, asked.positions, rows.lengths)
    assert marks.tokens == pytest.approx(right.sum() / rows.lengths.sum())
    assert marks.sequences == pytest.approx((rows.lengths < 100).mean())
    bins = by_length(marks, TASKS["s3"], 1, 256, 9)
    assert (bins[0].low, bins[-1].high) == (1, 256)
    assert (bins[0].accuracy, bins[-1].accuracy) == (1.0, 0.0)
    assert sum(entry.rows for entry in bins) == rows.lengths.sum()

    parity = TASKS["parity"].rows(0, "test", 0, 500, 40, 256)
    asked = parity.asked(1)
    marks = Marks((parity.lengths < 100)[:, None], asked.mask, asked.positions, parity.lengths)
    bins = by_length(marks, TASKS["parity"], 40, 256, 9)
    assert sum(entry.rows for entry in bins) == 500
    assert (bins[0].low, bins[-1].high) == (40, 256)
    assert (bins[0].accuracy, bins[-1].accuracy) == (1.0, 0.0)
    assert marks.tokens == marks.sequences == marks.accuracy(TASKS["parity"])


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("cycle navigation", "cycle_nav"),
        ("Even-Pairs", "even_pairs"),
        ("modular_arithmetic", "mod_arith"),
        ("phonebook", "phone_book"),
        ("MQAR", "mqar"),
    ],
)
def test_a_task_may_be_written_as_the_papers_do(written: str, name: str) -> None:
    assert get_task(written).name == name


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("partiy", {}, r"task is 'partiy'.*did you mean 'parity'"),
        (
            "mqar",
            {"pair": 3},
            r"the task mqar has no field 'pair' \(did you mean 'pairs'\?\); its fields are vocab_size",
        ),
        ("parity", {"pairs": 3}, "the task parity has no field 'pairs'; it has no fields"),
        ("mqar", {"pairs": 0}, "MQAR.pairs is 0, but must be a whole number >= 1"),
        ("mqar", {"vocab_size": 7}, "MQAR.vocab_size is 7, but must be even"),
        ("mqar", {"vocab_size": 8, "pairs": 4}, "MQAR.pairs is 4, but a vocabulary of 8 has 3 keys"),
        ("mqar", {"power": 0.0}, "MQAR.power is 0.0, but must be a number > 0"),
        ("s3", {"group": "s6"}, r"WordProblem.group is 's6', but must be one of 's3'"),
        ("mod_arith_brackets", {"operators": "+/"}, r"BracketedArithmetic.operators is '\+/'"),
        ("ngram_lookup", {"order": "infix"}, "NGramLookup.order is 'infix'"),
        ("needle", {"letters": 1, "needles": 27}, "Needle.needles is 27, but there are 26 keys"),
        ("needle", {"letters": 5}, "Needle.letters is 5"),
    ],
)
def test_wrong_words_and_sizes_are_refused(name: str, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        get_task(name, fields)


@pytest.mark.parametrize(
    ("name", "low", "high", "sentence"),
    [
        ("mod_arith", 3, 3, "rows of mod_arith have even lengths from 2, but 3 to 3 were asked for"),
        ("bucket_sort", 4, 4, "odd lengths from 1"),
        ("mqar", 8, 15, "even lengths from 16, which its pairs and queries need, to below its vocab_size = 8192"),
        ("copy", 3, 3, "even lengths from 4"),
        ("phone_book", 10, 80, "lengths of 42 [+] 14 for each of 3 to 4096 lines"),
        ("needle", 3, 9, "lengths from 22"),
        ("nearest_neighbour", 4, 4, "odd lengths from 3"),
    ],
)
def test_lengths_that_no_row_has_are_refused(name: str, low: int, high: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TASKS[name].rows(0, "train", 0, 1, low, high)
    with pytest.raises(ValueError, match="a row has 40 targets, but at most 3"):
        TASKS["s3"].rows(0, "train", 0, 1, 40, 40).asked(3)
