"""The commands: a page for every verb of `xlstm`, and for every word that can follow one, found in its own parser."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from pathlib import Path
from unittest import mock

DOCS = Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """The text of every page, by its file's name."""
    from xlstm_jax.cli import VERBS

    return {name: text for verb, what in VERBS.items() for name, text in _pages((verb,), what).items()}


def verbs() -> str:
    """The list of the verbs' pages, for the page of all commands."""
    from xlstm_jax.cli import VERBS

    return "\n".join(["```{toctree}", ":maxdepth: 2", *(f"commands/{verb}" for verb in VERBS), "```", ""])


def _pages(words: tuple[str, ...], what: str) -> dict[str, str]:
    below = words_after(words)
    title = f"xlstm {' '.join(words)}"
    lines = [f"# {title}", "", f"{what[:1].upper()}{what[1:]}.", ""]
    if told := [f"[{_title(path)}](../{path.name})" for path in sorted(DOCS.glob("*.md")) if _is_told(title, path)]:
        lines += [f"Told of on: {', '.join(told)}.", ""]
    lines += [f"```{{xlstm-help}} {' '.join(words)}", "```", ""]
    if below:
        lines += ["```{toctree}", *("-".join([*words, word]) for word in below), "```", ""]
    pages = {f"{'-'.join(words)}.md": "\n".join(lines)}
    for word, summary in below.items():
        pages |= _pages((*words, word), summary)
    return pages


def words_after(words: tuple[str, ...]) -> dict[str, str]:
    """What can follow these words of a command line, with a line each: none where options follow."""
    from xlstm_jax.cli import main

    seen: list[argparse.ArgumentParser] = []
    record = mock.patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: seen.append(parser))
    with record, contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    found = [one for parser in seen for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return {choice.dest: choice.help or "" for one in found for choice in one._choices_actions}


def _is_told(title: str, page: Path) -> bool:
    """Whether a page has such a command line in a block of code."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return any(re.search(rf"^{title}\b", block, re.MULTILINE) for block in blocks)


def _title(page: Path) -> str:
    return page.read_text().partition("\n")[0].removeprefix("# ")
