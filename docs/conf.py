"""Sphinx: pages in Markdown, reference pages from the docstrings."""

import re
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the extensions beside this file

project = "xlstm-jax"
author = copyright = "the xlstm-jax authors"
release = metadata.version("xlstm-jax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands", "mathml"]
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["math.css"]
html_title = "xlstm-jax"
exclude_patterns = ["build"]
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
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True


def setup(app):
    keep_texts_of_fields(app)
    app.connect("autodoc-process-signature", name_aliases)


def name_aliases(app, what, name, obj, options, signature, returned):
    """Call an alias by its name inside unions too."""
    return tuple(text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returned))


def keep_texts_of_fields(app):
    """Leave the text below a field as it is: napoleon takes what stands before a colon in it for a type."""
    kept = {}

    def keep(app, what, name, obj, options, lines):
        kept[name] = list(lines)

    def put_back(app, what, name, obj, options, lines):
        if what == "attribute":
            lines[:] = kept[name]

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", put_back, priority=600)
