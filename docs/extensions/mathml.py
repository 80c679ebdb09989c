"""Formulas as MathML, which browsers draw themselves: the pages need no script and no network."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def mathml(node: nodes.Element, display: str) -> str:
    # The converter knows LaTeX's aligned rows by the name that they have outside of a formula.
    return convert(node.astext().replace("{aligned}", "{align*}"), display=display)


def inline(self, node: nodes.Element) -> None:
    self.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block(self, node: nodes.Element) -> None:
    self.body.append(f'<div class="math">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
