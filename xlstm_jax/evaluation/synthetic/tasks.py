"""All synthetic tasks, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.evaluation.synthetic.brackets import BracketedArithmetic, SolveEquation
from xlstm_jax.evaluation.synthetic.copying import Copy, NGramLookup
from xlstm_jax.evaluation.synthetic.counting import Majority, MajorityCount
from xlstm_jax.evaluation.synthetic.groups import WordProblem
from xlstm_jax.evaluation.synthetic.lookup import NearestNeighbour, Needle, PhoneBook
from xlstm_jax.evaluation.synthetic.mqar import MQAR
from xlstm_jax.evaluation.synthetic.regular import CycleNavigation, EvenPairs, ModularArithmetic, Parity
from xlstm_jax.evaluation.synthetic.strings import (
    BucketSort,
    MissingDuplicate,
    OddsFirst,
    Repetition,
    ReverseString,
    Set,
    StackManipulation,
)
from xlstm_jax.evaluation.synthetic.task import Task

FORMAL = (
    Parity("parity"),
    EvenPairs("even_pairs"),
    CycleNavigation("cycle_nav"),
    ModularArithmetic("mod_arith"),
    BracketedArithmetic("mod_arith_brackets"),
    SolveEquation("solve_equation"),
    ReverseString("reverse_string"),
    StackManipulation("stack_manipulation"),
    BucketSort("bucket_sort"),
    MissingDuplicate("missing_duplicate"),
    OddsFirst("odds_first"),
    Repetition("repetition"),
    Set("set"),
    Majority("majority"),
    MajorityCount("majority_count"),
)
"""The fifteen formal languages, as the xLSTM paper has them (arXiv 2405.04517, B.1.1)."""

SLICE = (
    BracketedArithmetic("mod_arith_brackets_slice", operators="+-**"),
    SolveEquation("solve_equation_slice", operators="+-**"),
    ReverseString("reverse_string_slice", alphabet=2),
    StackManipulation("stack_manipulation_slice", alphabet=2, empty=True),
    BucketSort("bucket_sort_slice", alphabet=5, act=True),
    MissingDuplicate("missing_duplicate_slice", at_place=True),
    OddsFirst("odds_first_slice", alphabet=2),
    Repetition("repetition_slice", alphabet=2),
)
"""Those that SLiCE (arXiv 2505.17761) has in other sizes; it shares the others."""

GROUPS = (
    WordProblem("s3", group="s3"),
    WordProblem("s4", group="s4"),
    WordProblem("a5", group="a5"),
    WordProblem("s5", group="s5"),
    WordProblem("z60", group="z60"),
    WordProblem("a4xz5", group="a4xz5"),
)
"""A5 and S5 are not solvable; Z60 and A4 x Z5 are, and have as many elements as A5."""

RECALL = (
    MQAR("mqar"),
    Copy("copy"),
    NGramLookup("ngram_lookup"),
    NGramLookup("ngram_lookup_prefix", order="prefix"),
    PhoneBook("phone_book"),
    Needle("needle"),
    NearestNeighbour("nearest_neighbour"),
)

TASKS: dict[str, Task] = {task.name: task for task in (*FORMAL, *SLICE, *GROUPS, *RECALL)}

_IN_FULL = {
    "cycle_navigation": "cycle_nav",
    "modular_arithmetic": "mod_arith",
    "duplicate_string": "repetition",
    "phonebook": "phone_book",
    "nearest_neighbor": "nearest_neighbour",
    "nns": "nearest_neighbour",
}


def get_task(name: str, fields: Mapping[str, Any] | None = None) -> Task:
    """The task of that name, also as the papers write it (`cycle navigation`, `even-pairs`), with these fields changed.

    Raises:
        ConfigError: for a name that no task has, or a field that this one has not.
    """
    spelt = name.strip().lower().replace("-", "_").replace(" ", "_")
    spelt = _IN_FULL.get(spelt, spelt)
    if spelt not in TASKS:
        raise ConfigError(f"task is {name!r}, but must be one of {', '.join(TASKS)}{near_miss(spelt, TASKS)}")
    task, fields = TASKS[spelt], fields or {}
    known = task_fields(task)
    for field in fields:
        if field not in known:
            has = f"its fields are {', '.join(known)}" if known else "it has no fields"
            raise ConfigError(f"the task {spelt} has no field {field!r}{near_miss(field, known)}; {has}")
    return dataclasses.replace(task, **fields)


def task_fields(task: Task) -> dict[str, Any]:
    """The values of the fields that a task has beside its name."""
    return {field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.name != "name"}
