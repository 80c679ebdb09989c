"""`xlstm eval`: what a model can do, measured: `xlstm eval SUITE ...`, and `xlstm eval RUN ...` for its text."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlstm_jax.cli.parser import Parser
from xlstm_jax.config import near_miss
from xlstm_jax.evaluation.suite import RESULT, Suite, evaluate, suites
from xlstm_jax.runs.errors import RunNotFoundError

OF_A_RUN = "text"
"""The suite of `xlstm eval RUN`; a suite's name comes first, so that a run with such a name is `runs/NAME` there."""


def main(argv: Sequence[str]) -> int:
    """Run `xlstm eval ARGV`; returns the exit code."""
    found = {suite.name: suite for suite in suites()}
    short = f"`xlstm eval RUN ...` is short for `xlstm eval {OF_A_RUN} RUN ...`"
    parser = Parser(prog="xlstm eval", description=f"What a model can do, measured. {short}.")
    commands = parser.add_subparsers(required=True, title="suites", metavar="SUITE", dest="suite")
    for suite in found.values():
        _add_options(
            commands.add_parser(
                suite.name,
                help=suite.summary,
                description=f"{suite.summary[:1].upper()}{suite.summary[1:]}.",
                epilog=suite.examples,
            ),
            suite,
        )
    words = list(argv)
    named = any(not word.startswith("-") for word in words)
    of_a_run = named and words[0] not in found and words[0] not in ("-h", "--help")
    arguments = vars(parser.parse_args([OF_A_RUN, *words] if of_a_run else words))
    suite, out, as_json = found[arguments.pop("suite")], arguments.pop("out"), arguments.pop("json")
    try:
        _find(suite, arguments)
    except RunNotFoundError as error:
        hint = f"; suites are {', '.join(found)}{near_miss(words[0], found)}" if of_a_run else ""
        raise RunNotFoundError(f"{error}{hint}") from None
    evaluate(suite, suite.config(**arguments), Path(out) if out else None, as_json=as_json)
    return 0


def _add_options(parser: argparse.ArgumentParser, suite: Suite) -> None:
    fields = [field for field in dataclasses.fields(suite.config) if field.init]
    for field in fields:
        how: Mapping[str, Any] = field.metadata["how"]
        if field.metadata.get("positional"):
            parser.add_argument(field.name, **how)
            continue
        needed = field.default is dataclasses.MISSING
        default = {"required": True} if needed else {"default": field.default}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **default, **how)
    place = suite.place(**{field.name: field.name.upper() for field in dataclasses.fields(suite.config)})
    names = (RESULT, suite.picture_name, *((suite.page_name,) if suite.page else ()))
    written = f"{', '.join(names[:-1])} and {names[-1]}"
    parser.add_argument("--out", metavar="FOLDER", help=f"for {written} (default {place})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to standard error")


def _find(suite: Suite, arguments: dict[str, Any]) -> None:
    """Put the folders of runs and stores in the place of the words for them."""
    from xlstm_jax.cli.names import find_run, find_store

    for field in dataclasses.fields(suite.config):
        find = {"run": find_run, "store": find_store}.get(field.metadata.get("names") or "")
        value = arguments.get(field.name)
        if find is not None and value is not None:
            found = [str(find(word)) for word in (value if isinstance(value, list) else [value])]
            arguments[field.name] = found if isinstance(value, list) else found[0]
