"""The reference: a page for every public module, written from the code when the documentation is made.

A module is public if nothing on its path begins with an underscore and it is not of the command line, which has its own
pages. Its page shows what it defines under a name without an underscore: classes with their bases, fields (type and
default) and methods, functions, type aliases, and constants that have a text; and what its `__all__` says beside that.
A package lists what it hands on. Of the models the private members that have a text are shown too: other packages of
the field have the same ones.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import indent
from types import FunctionType, ModuleType
from typing import Any

PACKAGE = "xlstm_jax"
LEFT_OUT = (f"{PACKAGE}.cli", f"{PACKAGE}.evaluation.lm_eval.harness")
"""What is no library, and what imports an extra that the documentation is made without."""
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
LONGEST_VALUE = 300
"""Characters of a constant's value that are shown."""


@dataclass
class Source:
    """What a module's source says at its top level."""

    name: str
    text: str = ""
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name here, to the module of ours that it comes from and its name there."""

    @functools.cached_property
    def shown(self) -> list[str]:
        """The names that have an entry on the module's page."""
        own = [name for name in self.defined if _is_shown(self, name)]
        handed = [] if self.is_package else getattr(self.module, "__all__", [])
        return own + [name for name in handed if name in self.imported]

    @property
    def is_package(self) -> bool:
        return bool(importlib.util.find_spec(self.name).submodule_search_locations)

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(self.name)


def public_modules() -> list[str]:
    """The names of all public modules, packages before what is in them."""
    package = importlib.import_module(PACKAGE)
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.")]
    return [PACKAGE, *sorted(name for name in found if _is_public(name))]


def _is_public(name: str) -> bool:
    hidden = any(part.startswith("_") for part in name.split("."))
    return not hidden and not any(f"{name}.".startswith(f"{prefix}.") for prefix in LEFT_OUT)


@functools.cache
def source_of(name: str) -> Source:
    tree = ast.parse(importlib.util.find_spec(name).loader.get_source(name))
    source = Source(name, ast.get_docstring(tree) or "")
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                source.imported[alias.asname or alias.name] = (node.module, alias.name)
    source.defined, source.texts = _names(tree.body)
    if source.is_package:  # what it loads when it is first asked for
        late = {name: getattr(source.module, name, None) for name in getattr(source.module, "__all__", [])}
        found = {name: value for name, value in late.items() if isinstance(value, type | FunctionType)}
        source.imported |= {name: (value.__module__, value.__name__) for name, value in found.items()}
    return source


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements, those inside an `if` included: what a package loads late it imports for type checkers alone."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements(node.body)


def _names(body: list[ast.stmt]) -> tuple[dict[str, ast.stmt], dict[str, str]]:
    """The statements that give names, by name, and the texts below those that are assignments."""
    defined, texts = {}, {}
    for node, after in itertools.pairwise([*body, None]):
        names = []
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        elif isinstance(node, ast.Assign):
            names = [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        for name in names:
            defined[name] = node
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                value = getattr(after.value, "value", None)
                if isinstance(value, str):
                    texts[name] = inspect.cleandoc(value)
    return defined, texts


def home(module: str, name: str) -> str | None:
    """The full name of what a module calls `name`, where it is defined; None if that is not in this package."""
    source, full = source_of(module), f"{module}.{name}"
    if name in source.defined or _is_module(full):
        return full
    return home(*source.imported[name]) if name in source.imported else None


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def all_names() -> set[str]:
    """The last words of all modules, and the names that they show or hand on."""
    modules = public_modules()
    names = {name for module in modules for name in [*source_of(module).shown, *source_of(module).imported]}
    return names | {module.rpartition(".")[2] for module in modules}


def pages() -> dict[str, str]:
    """The text of every page, by its file's name."""
    modules = public_modules()
    return {f"{name}.rst": page(name, [m for m in modules if m.rpartition(".")[0] == name]) for name in modules}


def page(name: str, below: list[str] = ()) -> str:
    """The page of a module, with the modules below it."""
    source = source_of(name)
    parent = name.rpartition(".")[0]
    written = [name, "=" * len(name), "", *([f"In :py:mod:`{parent}`.", ""] if parent else [])]
    written += [f".. automodule:: {name}", "   :no-members:", ""]
    if parent:
        # The list at the side is made anew for every page: with all modules in it, it would take most of the time.
        written = [":orphan:", "", *written]
    if below:
        rows = [(f":py:mod:`~{one}`", first_sentence(source_of(one).text)) for one in below]
        written += ["Modules", "-------", "", *_table(rows)]
    if source.is_package:
        handed = {one: home(name, one) for one in source.imported if not one.startswith("_")}
        if rows := [(f":py:obj:`{one} <{full}>`", _summary(full)) for one, full in handed.items() if full]:
            written += ["Names", "-----", "", *_table(sorted(rows, key=lambda row: row[0].lower()))]
    sections = {"Classes": [], "Functions": [], "Constants and types": []}
    for one in source.shown:
        node = _node(source, one)
        kind = {ast.ClassDef: "Classes", ast.FunctionDef: "Functions"}.get(type(node), "Constants and types")
        sections[kind].append(one)
    for title, names in sections.items():
        if not names:
            continue
        written += [title, "-" * len(title), ""]
        if len(names) > 1:
            rows = [(f":py:obj:`~{name}.{one}`", _summary(f"{name}.{one}")) for one in names]
            written += _table(rows)
        for one in names:
            written += _entry(source, one)
    return "\n".join(written).rstrip() + "\n"


def _is_shown(source: Source, name: str) -> bool:
    node = source.defined[name]
    if name.startswith("_") or (isinstance(node, ast.ClassDef | ast.FunctionDef) and _is_overload(node)):
        return False
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return True
    return name in source.texts or typing.get_origin(getattr(source.module, name, None)) is not None


def _is_overload(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any(ast.unparse(one).endswith("overload") for one in node.decorator_list)


def _summary(full: str) -> str:
    module, _, name = full.rpartition(".")
    if _is_module(full):
        return first_sentence(source_of(full).text)
    node = _node(source_of(module), name)
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return first_sentence(ast.get_docstring(node) or "")
    module, _, name = home(module, name).rpartition(".")
    return first_sentence(source_of(module).texts.get(name, ""))


def _node(source: Source, name: str) -> ast.stmt:
    """The statement that gives what a module calls `name`, here or where it comes from."""
    module, _, there = home(source.name, name).rpartition(".")
    return source_of(module).defined[there]


def first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = next((i for i, c in enumerate(paragraph) if c in ".:;" and paragraph[i + 1 : i + 2] in ("", " ")), None)
    sentence = paragraph if end is None else paragraph[:end]
    return as_rst(sentence if sentence.count("`") % 2 == 0 else paragraph)


def as_rst(text: str) -> str:
    """A text of the code, which knows `code` and lists alone, as reStructuredText: its stars and
    underscores mean themselves, and a letter may follow `code`."""
    parts = CODE.split(text)
    for number, part in enumerate(parts[::2]):
        part = re.sub(r"(?<=\S)\*|\*(?=\S)|(?<=\S )\*|(?<=\w)_(?!\w)", r"\\\g<0>", part)
        parts[2 * number] = rf"\ {part}" if number and part[:1].isalnum() else part
    return "".join(parts)


def _table(rows: list[tuple[str, str]]) -> list[str]:
    written = [".. list-table::", "   :widths: 35 65", "   :class: names", ""]
    for left, right in rows:
        written += [f"   * - {left}", f"     - {right}".rstrip()]
    return [*written, ""]


def _entry(source: Source, name: str) -> list[str]:
    node, full = _node(source, name), f"{source.name}.{name}"
    if isinstance(node, ast.ClassDef):
        return _class(full, getattr(source.module, name))
    if isinstance(node, ast.FunctionDef):
        return [f".. autofunction:: {full}", ""]
    text = source_of(home(source.name, name).rpartition(".")[0]).texts.get(name, "")
    return _assigned("data", full, getattr(node, "annotation", None), node.value, source, text)


def _class(full: str, kind: type) -> list[str]:
    fields: dict[str, list[str]] = {}
    methods: dict[str, None] = {}
    for one in reversed(kind.__mro__):
        node = source_of(one.__module__).defined.get(one.__name__) if one.__module__.split(".")[0] == PACKAGE else None
        if not isinstance(node, ast.ClassDef):
            continue
        defined, texts = _names(node.body)
        for name, statement in defined.items():
            if isinstance(statement, ast.AnnAssign | ast.Assign):
                if ast.unparse(getattr(statement, "annotation", statement)).startswith("ClassVar"):
                    continue
                if name in getattr(kind, "__dataclass_fields__", {}) or name in texts or _is_typed(name, statement):
                    held, there = getattr(statement, "annotation", None), source_of(one.__module__)
                    fields[name] = _assigned("attribute", name, held, statement.value, there, texts.get(name, ""))
            elif isinstance(statement, ast.FunctionDef) and _is_told(kind, name, statement):
                methods[name] = None
    written = [f".. autoclass:: {full}", "   :no-members:", "   :show-inheritance:", ""]
    for entry in fields.values():
        written += indent("\n".join(entry), "   ").split("\n")
    for name in [name for name in methods if name not in fields]:
        what = "autoproperty" if _is_property(kind, name) else "automethod"
        written += [f"   .. {what}:: {full}.{name}", ""]
    return [*written, ""]


def _is_typed(name: str, statement: ast.stmt) -> bool:
    return isinstance(statement, ast.AnnAssign) and not name.startswith("_")


def _is_told(kind: type, name: str, method: ast.FunctionDef) -> bool:
    """Whether a method has an entry: public ones, `__call__`, a class's own `__init__`; not what is done for a
    framework and has no text."""
    if name.startswith("__"):
        return name == "__call__" or (name == "__init__" and name in vars(kind))
    described = bool(ast.get_docstring(method)) or _is_property(kind, name)
    if name.startswith("_"):
        return described and kind.__module__.startswith(f"{PACKAGE}.models.")
    foreign = [base for base in kind.__mro__ if base.__module__.split(".")[0] != PACKAGE]
    return not _is_overload(method) and (described or not any(hasattr(base, name) for base in foreign))


def _is_property(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), property | functools.cached_property)


def _assigned(
    what: str, name: str, annotation: ast.expr | None, value: ast.expr | None, source: Source, text: str
) -> list[str]:
    """A directive for a field or a constant: its type, its value, its text."""
    written = [f".. py:{what}:: {name}"]
    if annotation is not None:
        written.append(f"   :type: {type_text(annotation, source)}")
    shown = value_text(value)
    if shown is not None and len(shown) <= LONGEST_VALUE:
        written.append(f"   :value: {shown}")
    return [*written, "", *(indent(as_rst(text), "   ").split("\n") if text else []), ""]


def value_text(value: ast.expr | None) -> str | None:
    """What a field starts from, as its source says it; None if that is nothing."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field":
        said = {keyword.arg: keyword.value for keyword in value.keywords}
        if (factory := said.get("default_factory")) is None:
            return value_text(said.get("default"))
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        return {"list": "[]", "dict": "{}", "tuple": "()"}.get(text := ast.unparse(factory), f"{text}()")
    return None if value is None else ast.unparse(value)


class _Named(ast.NodeTransformer):
    """Puts the full names of this package's types in the place of the short ones, and takes bounds off numbers."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = getattr(self.source.module, node.id, None)
        if typing.get_origin(value) is typing.Annotated:
            return ast.Name(getattr(value.__origin__, "__name__", str(value.__origin__)))
        full = home(self.source.name, node.id)
        return node if full is None else ast.Name(full)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if ast.unparse(node.value).split(".")[-1] == "Annotated":
            return self.visit(node.slice.elts[0])
        if ast.unparse(node.value).split(".")[-1] == "Literal":
            return node
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return node


def type_text(annotation: ast.expr, source: Source) -> str:
    """An annotation with full names, without the bounds of numbers: Sphinx links them."""
    copy: Any = ast.parse(ast.unparse(annotation), mode="eval").body
    return ast.unparse(_Named(source).visit(copy))
