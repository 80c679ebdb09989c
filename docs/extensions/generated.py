"""Writes the pages that are made from the code, before Sphinx looks for pages; git ignores them."""

from __future__ import annotations

from pathlib import Path

import benchmark_records
import commands
import reference
import results
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import find_pending_xref_condition

FOLDERS = ("reference", "commands", "generated")


def pages() -> dict[str, str]:
    """Every page that is made, by its place below `docs`."""
    made = {f"reference/{name}": text for name, text in reference.pages().items()}
    made |= {f"commands/{name}": text for name, text in commands.pages().items()}
    made["generated/verbs.md"] = commands.verbs()
    made["generated/benchmarks.md"] = benchmark_records.page()
    made["generated/results.md"] = results.page()
    return made


def write(app: Sphinx) -> None:
    made = pages()
    docs = Path(app.srcdir)
    for folder in FOLDERS:
        for old in (docs / folder).glob("*"):
            if f"{folder}/{old.name}" not in made:
                old.unlink()
    for name, text in made.items():
        path = docs / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:  # what has not changed is not read again
            path.write_text(text)


class OwnNamesAlone(SphinxTransform):
    """Takes the links off types that are not of this package: Sphinx would look each up among all our names, by its
    last word."""

    default_priority = 200

    def apply(self) -> None:
        own = reference.all_names()
        for node in list(self.document.findall(pending_xref)):
            if node.get("refdomain") == "py" and node["reftarget"].split(".")[-1] not in own:
                short = find_pending_xref_condition(node, "resolved")
                node.replace_self(node.children if short is None else short.children)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.add_transform(OwnNamesAlone)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
