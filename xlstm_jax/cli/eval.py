"""`xlstm eval SUITE`: what a model can do, measured."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from xlstm_jax.cli.parser import Parser
from xlstm_jax.evaluation.suite import RESULT, Suite, evaluate, suites


def main(argv: Sequence[str]) -> int:
    """Run `xlstm eval ARGV`; returns the exit code."""
    found = {suite.name: suite for suite in suites()}
    parser = Parser(prog="xlstm eval", description="What a model can do, measured.")
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
    arguments = vars(parser.parse_args(argv))
    suite, out, as_json = found[arguments.pop("suite")], arguments.pop("out"), arguments.pop("json")
    evaluate(suite, suite.config(**arguments), Path(out) if out else None, as_json=as_json)
    return 0


def _add_options(parser: argparse.ArgumentParser, suite: Suite) -> None:
    fields = dataclasses.fields(suite.config)
    for field in fields:
        needed = field.default is dataclasses.MISSING
        default = {"required": True} if needed else {"default": field.default}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **default, **field.metadata)
    place = suite.place(**{field.name: field.name.upper() for field in fields})
    parser.add_argument("--out", metavar="FOLDER", help=f"for {RESULT} and {suite.picture_name} (default {place})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to standard error")
