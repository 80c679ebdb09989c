"""Command-line options for every field of a config dataclass: `--training.steps 100`, `--steps 100`, `--set PATH=JSON`.

`tyro` makes the options from the dataclasses. Around it: private fields and values that an option cannot express stay
out, sub-configs that a preset has left off stay off, and a field may be named without its path where that is clear.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from xlstm_jax.config import ConfigError, from_json, near_miss, public_fields, to_json

T = TypeVar("T")


def apply_options(config: T, options: Sequence[str], assignments: Sequence[str] = (), prog: str = "xlstm") -> T:
    """A copy of a config with the given fields changed.

    Args:
        config: a dataclass; its values are the defaults.
        options: `--path.to.field VALUE` or, where it is clear which is meant, `--field VALUE`.
        assignments: `PATH=JSON` for any field or whole sub-config, applied after the options.
        prog: the name of the command in messages.

    Raises:
        ConfigError: for a field or value that does not fit.
        SystemExit: by tyro, after printing what is wrong with an option (code 2), or for `--help` (code 0).
    """
    # Built only after tyro is done, so that what `__post_init__` refuses comes out as our own error.
    changed: T = tyro.cli(  # type: ignore[attr-defined]
        type(config),
        prog=prog,
        args=_full_names(config, options),
        default=config,
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        registry=_registry(),
    ).build()
    for assignment in assignments:
        changed = _assign(changed, assignment)
    return changed


def option_types(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, type) of every field that has an option; sub-configs come apart into theirs."""
    hints = typing.get_type_hints(type(config))
    for field in public_fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from option_types(value, f"{prefix}{field.name}.")
        elif _has_option(hints[field.name]):
            yield f"{prefix}{field.name}", hints[field.name]


def _full_names(config: Any, options: Sequence[str]) -> list[str]:
    """Write `--steps` as `--training.steps`: the least deep field of that name, if there is one only.

    Raises:
        ConfigError: for a name that no field has, or that several have, or a single value of the wrong type.
    """
    types_of = dict(option_types(config))
    written = []
    for position, option in enumerate(options):
        name, equals, value = option.partition("=")
        if not name.startswith("--") or name == "--help":
            written.append(option)
            continue
        path = name[2:].replace("-", "_")
        if path not in types_of:
            path = _only_path(path, list(types_of))
        following = value if equals else next(iter(options[position + 1 : position + 2]), None)
        if following is not None:
            _check_word(path, types_of[path], following)
        written.append(f"--{path}{equals}{value}")
    return written


def _check_word(path: str, hint: Any, word: str) -> None:
    """Refuse a word that cannot become a value of a plain type; tyro would too, in words of its own."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if any(_can_be(kind, word) for kind in kinds):
        return
    choices = [str(choice) for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    names = {int: "a whole number", float: "a number", bool: "True or False", type(None): "None"}
    listed = f"one of {', '.join(map(repr, choices))}"
    wanted = " or ".join(dict.fromkeys(listed if typing.get_origin(k) is Literal else names[k] for k in kinds))
    raise ConfigError(f"{path} is {word!r}, but must be {wanted}{near_miss(word, choices)}")


def _can_be(kind: Any, word: str) -> bool:
    """Whether a word can become a value of this type, as far as one word tells."""
    if typing.get_origin(kind) is Literal:
        return word in map(str, typing.get_args(kind))
    if kind in (int, float):
        try:
            kind(word)
        except ValueError:
            return False
    if kind is bool:
        return word in ("True", "False")
    return word == "None" if kind is type(None) else True


def _only_path(name: str, paths: Sequence[str]) -> str:
    found = [path for path in paths if path.endswith(f".{name}")]
    if not found:
        hint = _nearest(name, paths)
        raise ConfigError(
            f"there is no field {name!r}{hint}; `--help` lists them, and `--set PATH=JSON` reaches those that have no "
            "option"
        )
    depth = min(path.count(".") for path in found)
    nearest = [path for path in found if path.count(".") == depth]
    if len(nearest) > 1:
        raise ConfigError(f"--{name} could mean {' or '.join(f'--{path}' for path in nearest)}; give the whole path")
    return nearest[0]


def _nearest(name: str, paths: Sequence[str]) -> str:
    """The near miss by the last word, wherever that field is: `model.num_head` looks like `model.lm_head_dtype`, but
    means `num_heads`. With its path if that is near too."""
    lasts = {path.rpartition(".")[2] for path in paths}
    parent, _, last = name.rpartition(".")
    close = difflib.get_close_matches(last, lasts, n=1)
    if not close:
        return near_miss(name, paths)
    whole = [path for path in paths if parent and path.endswith(f".{close[0]}")]
    return near_miss(name, whole) or near_miss(close[0], close)


def _assign(config: T, assignment: str) -> T:
    """Apply one `PATH=JSON`; the value is taken as a text if it is not JSON."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set takes PATH=JSON, but got {assignment!r}; for example training.steps=100")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    data = to_json(config)
    inner, (*parents, last) = data, path.split(".")
    for depth, name in enumerate(parents):
        if not isinstance(inner, dict) or name not in inner:
            known = inner if isinstance(inner, dict) else ()
            raise ConfigError(f"--set: there is no field {'.'.join(parents[: depth + 1])!r}{near_miss(name, known)}")
        if inner[name] is None:
            raise ConfigError(f"--set: {'.'.join(parents[: depth + 1])} is off (null); set it to an object first")
        inner = inner[name]
    if not isinstance(inner, dict):
        raise ConfigError(f"--set: there is no field {path!r}")
    inner[last] = value
    return from_json(type(config), data, "experiment")


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.struct_rule
    def public_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
        default = info.default
        if not dataclasses.is_dataclass(default) or isinstance(default, type):
            return None
        cls = type(default)
        hints, texts = typing.get_type_hints(cls), field_texts(cls)
        kept, fields = {}, []
        for field in public_fields(cls):
            value = getattr(default, field.name)
            if dataclasses.is_dataclass(value):
                fields.append(StructFieldSpec(field.name, type(value), value, texts.get(field.name)))
            elif _has_option(hints[field.name]):
                fields.append(StructFieldSpec(field.name, hints[field.name], value, texts.get(field.name, "")))
            else:
                kept[field.name] = value
        return StructConstructorSpec(lambda **given: _Pending(cls, kept | given), tuple(fields))

    return registry


class _Pending(NamedTuple):
    """A dataclass to be, and its values; those that are sub-configs are pending too."""

    cls: type
    values: dict[str, Any]

    def build(self) -> Any:
        return self.cls(**{k: v.build() if isinstance(v, _Pending) else v for k, v in self.values.items()})


def _has_option(hint: Any) -> bool:
    """Whether the words of a command line can express such a value: no mappings, no `Any`, no sub-configs."""
    if hint is Any or dataclasses.is_dataclass(hint):
        return False
    origin = typing.get_origin(hint)
    if (origin or hint) is dict:
        return False
    if origin in (typing.Union, types.UnionType, list, tuple):
        return all(_has_option(argument) for argument in typing.get_args(hint) if argument is not Ellipsis)
    return True


@functools.cache
def field_texts(cls: type) -> dict[str, str]:
    """The string that follows each field in the source of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
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
