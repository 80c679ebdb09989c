"""The parser of every verb's command line: its complaints are one sentence, and it knows verbs that take fields."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from xlstm_jax.config import ConfigError

MIN_WIDTH, MAX_WIDTH = 80, 120


def help_width() -> int:
    """Columns that help may take: those of the terminal, within bounds."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, MIN_WIDTH), MAX_WIDTH)


def fitted(text: str) -> str:
    """A text at the width of help: its paragraphs filled, but the entries of lists, which are indented, each for
    itself, with what does not fit below their own words."""
    return "\n\n".join("\n".join(_fitted(paragraph)) for paragraph in text.strip("\n").split("\n\n"))


def _fitted(paragraph: str) -> Iterator[str]:
    lines, width = paragraph.splitlines(), help_width()
    if not any(line.startswith(" ") for line in lines):
        lines = [" ".join(lines)]
    entries: list[str] = []
    for line in lines:
        if entries and line.startswith(" " * 12):
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line)
    for entry in entries:
        column = re.match(r" +\S.*?  +|usage: \w+ ", entry)
        below = len(column[0]) if column is not None and len(column[0]) <= width // 2 else 6
        space = " " * (below if entry.startswith((" ", "usage:")) else 0)
        yield from textwrap.wrap(
            entry, width, subsequent_indent=space, break_on_hyphens=False, break_long_words=False
        ) or [""]


class _Help(argparse.HelpFormatter):
    """Descriptions and epilogs are `fitted`."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return fitted(text)


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` for a wrong call, where `argparse` prints its usage and leaves; options are not cut short,
    and texts are `fitted`."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # `argparse` does not tell whether its help could be written

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        shown: dict[str, Any] = {"formatter_class": _Help, "allow_abbrev": False}
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

    def parse_with_fields(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of the verb's own options and, as `fields`, the words that are left, in order, for `cli.options`.

        Raises:
            ConfigError: if a field comes before the experiment that it is one of.
        """
        values, fields = self.parse_known_args(words)
        target, order = values.target, list(words)
        if target is not None and "=" in target and not Path(target).exists():
            fields, target = [target, *fields], None
        if fields and (target is None or order.index(fields[0]) < order.index(target)):
            raise ConfigError(f"{self.prog} takes a preset, a run or a file first, but got {fields[0]!r}")
        values.fields = fields
        return values
