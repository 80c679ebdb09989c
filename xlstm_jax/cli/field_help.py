"""What `--help` tells of the fields of a config: type, range or choices, the value that holds, and what it is for."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from xlstm_jax.cli.options import named_options
from xlstm_jax.cli.parser import help_width
from xlstm_jax.config import field_kind, public_fields, to_json, type_hints
from xlstm_jax.models.configs import SubModelConfig


def fields_help(config: Any) -> str:
    """All fields of a config, a section a sub-config, as wide as the terminal."""
    width = help_width()
    return "\n".join(_section(config, config, "", (), width)).strip("\n")


def _section(config: Any, resolved: Any, path: str, above: tuple[tuple[str, Any], ...], width: int) -> Iterator[str]:
    """The fields of one config, then those of its sub-configs; `resolved` is the same with what follows from parents
    filled in, `above` the path and the resolved config of each parent, the nearest first."""
    kind: Any = type(config)
    if path:
        yield f"\n{path} ({kind.__name__})"
        yield from _wrapped(_class_text(kind), width, 2)
    parts = dict(resolved.resolved()) if isinstance(resolved, SubModelConfig) else {}
    inner = []
    for field in public_fields(config):
        name, value = f"{path}.{field.name}".lstrip("."), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner.append((value, parts.get(field.name) or value, name))
            continue
        held = getattr(resolved, field.name)
        source = "" if held == value else f"(from {_source(field.name, held, above)})"
        line, text = f"  --{name} {_shown(held)}", _wanted(kind, name, above)
        if described := field_texts(kind).get(field.name):
            text = f"{text}. {described}"
        if len(line) + 2 + len(source) > width:
            source, text = "", f"{source} {text}"
        yield f"{line}  {source}".rstrip()
        yield from _wrapped(text, width, 6)
    for value, held, name in inner:
        yield from _section(value, held, name, ((path, resolved), *above), width)


def _wanted(kind: Any, path: str, above: tuple[tuple[str, Any], ...]) -> str:
    """What the field at a path takes; where it tells the config from others that could stand there, all their names."""
    *_, holder, name = ["", *path.split(".")]
    parent: Any = type(above[0][1]) if above else None
    names = named_options(type_hints(parent)[holder]) if above and name == "name" else {}
    return f"one of {', '.join(map(repr, names))}" if names else field_kind(kind, name).wanted


def _source(name: str, held: Any, above: tuple[tuple[str, Any], ...]) -> str:
    """Where an inherited value comes from: the highest of the parents that have it too. If none has, the nearest with a
    field of that name makes it, or the highest where no parent has such a field."""
    own = [(path, config) for path, config in above if hasattr(config, name)]
    if not own:
        return next(path for path, _ in reversed(above) if path)
    same = list(itertools.takewhile(lambda parent: getattr(parent[1], name) == held, own))
    return f"{same[-1][0]}.{name}" if same else own[0][0]


def _shown(value: Any) -> str:
    """A value as it could be typed."""
    text = value if isinstance(value, str) else json.dumps(to_json(value))
    return text if text and not any(c in text for c in " '\"[{*") else f"'{text}'"


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def _class_text(kind: type) -> str:
    """The first paragraph of a class's docstring, unless `dataclass` has made it up."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{kind.__name__}(") else " ".join(text.partition("\n\n")[0].split())


@functools.cache
def field_texts(kind: type) -> dict[str, str]:
    """The string that follows each field in the source of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            body = ast.parse(inspect.cleandoc(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in itertools.pairwise(statements):
            described = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if described and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                texts[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[attr-defined]
    return texts
