"""Sphinx: pages in Markdown, reference pages from the docstrings."""

import re
import sys
from importlib import metadata
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import reference

project = "xlstm-jax"
author = copyright = "the xlstm-jax authors"
release = metadata.version("xlstm-jax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "xlstm_help", "mathml", "generated"]
suppress_warnings = ["ref.python"]  # types are named by their last word, which two of ours may share
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_title = "xlstm-jax"
exclude_patterns = ["build", "generated"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `code` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "DTypeLike", "PathLike")}
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}  # a config is told by its fields
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True


def setup(app):
    ModuleAnalyzer.analyze = without_overloads(ModuleAnalyzer.analyze)
    app.connect("autodoc-process-docstring", to_rst, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", name_aliases)


def without_overloads(analyze):
    """Show the whole signature of a function: its overloads say what is returned, but not all that is taken."""

    def analyze_and_forget(self):
        analyze(self)
        self.overloads = {}

    return analyze_and_forget


def name_aliases(app, what, name, obj, options, signature, returned):
    """Call an alias by its name inside unions too."""
    return tuple(text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returned))


def to_rst(app, what, name, obj, options, lines):
    lines[:] = reference.as_rst("\n".join(lines)).split("\n")
