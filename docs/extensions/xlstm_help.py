"""The directive `xlstm-help VERB`: what the command itself prints for `xlstm VERB --help`."""

import contextlib
import io
import os
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

WIDTH = 84
"""Characters in a line, as many as the pages show without scrolling."""


def help_of(words: list[str]) -> str:
    from xlstm_jax.cli import main

    out = io.StringIO()
    width = mock.patch.dict(os.environ, COLUMNS=str(WIDTH))
    with width, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    if not out.getvalue():
        raise RuntimeError(f"xlstm {' '.join(words)} --help printed nothing")
    return out.getvalue().rstrip()


class Help(Directive):
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        return [nodes.literal_block(text := help_of(self.arguments), text, language="none")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("xlstm-help", Help)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
