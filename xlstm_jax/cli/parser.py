"""The parser of every verb's command line: its complaints are one sentence, and it knows verbs that take fields."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from xlstm_jax.config import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` for a wrong call, where `argparse` prints its usage and leaves; options are not cut short,
    and texts keep their lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        shown: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **shown | kwargs)

    def error(self, message: str) -> NoReturn:
        if (lacking := re.match(r"argument (\S+): expected one argument", message)) is not None:
            message = f"{lacking[1]} needs a value after it"
        raise ConfigError(f"{message} (`{self.prog} --help` tells more)")


class ExperimentParser(Parser):
    """The parser of a verb that takes an experiment and then, beside its own options, fields of it.

    `--help` is an option like any other, because what it tells depends on the experiment.
    """

    def __init__(self, verb: str) -> None:
        super().__init__(prog=f"xlstm {verb}", add_help=False)
        self.add_argument("target", nargs="?")
        self.add_argument("-h", "--help", action="store_true")

    def parse_with_fields(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The values of the verb's own options, and the words that are left, for `cli.options`, in their order.

        Raises:
            ConfigError: if a field comes before the experiment that it is one of.
        """
        values, fields = self.parse_known_args(words)
        target, order = values.target, list(words)
        if target is not None and "=" in target and not Path(target).exists():
            fields, target = [target, *fields], None
        if fields and (target is None or order.index(fields[0]) < order.index(target)):
            raise ConfigError(f"{self.prog} takes a preset, a run or a file first, but got {fields[0]!r}")
        return values, fields
