"""Dataclass configs in and out of JSON, and the checks that their `__post_init__` methods share.

Dataclasses are the only schema of this package. `to_json` writes every public field, `from_json` reads it back to an
equal object: types are taken from the annotations, and a key that no field has, or a value of another type, is an error
that names the path, what was found and what would be right. Fields whose names start with an underscore are derived
and never written.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration value that cannot be used; the message names the field, the value and what would be right."""


# ---------------------------------------------------------------------------------------------------------------------
# Checks for `__post_init__`
# ---------------------------------------------------------------------------------------------------------------------


def near_miss(word: object, words: Iterable[str]) -> str:
    """` (did you mean 'x'?)` if `word` is close to one of `words`, else the empty string."""
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(owner: object, field: str, choices: Iterable[Any]) -> None:
    """Raise `ConfigError` unless `owner.field` is one of `choices`."""
    value, options = getattr(owner, field), tuple(choices)
    if value not in options:
        listed = ", ".join(repr(o) for o in options)
        hint = near_miss(value, [o for o in options if isinstance(o, str)])
        raise ConfigError(f"{type(owner).__name__}.{field} is {value!r}, but must be one of {listed}{hint}")


def check_number(
    owner: object,
    field: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    integer: bool = False,
    optional: bool = False,
) -> None:
    """Raise `ConfigError` unless `owner.field` is a finite number in the given range (or None, if `optional`)."""
    value = getattr(owner, field)
    if value is None and optional:
        return
    name = f"{type(owner).__name__}.{field}"
    kind = "a whole number" if integer else "a number"
    wanted = " and ".join(
        f"{sign} {bound}"
        for sign, bound in ((">=", at_least), (">", above), ("<=", at_most), ("<", below))
        if bound is not None
    )
    wanted = f"{kind}{' ' + wanted if wanted else ''}"
    right_type = isinstance(value, int) if integer else isinstance(value, (int, float))
    if isinstance(value, bool) or not right_type or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}, but must be {wanted}")
    inside = (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not inside:
        raise ConfigError(f"{name} is {value!r}, but must be {wanted}")


def check_types(owner: Any) -> None:
    """Raise `ConfigError` unless fields that hold a flag or another config do hold one.

    Other fields have checks of their own; these two kinds would pass for true, or fail far from where they were set.
    """
    kind: Any = type(owner)
    hints = _type_hints(kind)
    for f in public_fields(owner):
        value, hint = getattr(owner, f.name), hints[f.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if not all(k in (bool, type(None)) or dataclasses.is_dataclass(k) for k in kinds):
            continue
        if not isinstance(value, tuple(kinds)):
            wanted = " or ".join(_describe(k) for k in kinds)
            raise ConfigError(f"{type(owner).__name__}.{f.name} is {value!r}, but must be {wanted}")


@functools.cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


# ---------------------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------------------


def public_fields(config: Any) -> list[dataclasses.Field]:
    """The fields of a dataclass (type or instance) that are serialised: those without a leading underscore."""
    return [f for f in dataclasses.fields(config) if not f.name.startswith("_")]


def to_json(value: Any, path: str = "config") -> Any:
    """Plain dicts, lists, strings, numbers, booleans and None for a config value.

    Raises:
        ConfigError: for a value that JSON cannot hold, naming its path.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name), f"{path}.{f.name}") for f in public_fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v, f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value!r}, which JSON cannot hold")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{path} is {value!r} of type {type(value).__name__}, which a config cannot hold")


def from_json(target: type[T], data: Any, path: str | None = None) -> T:
    """The inverse of `to_json`: `data` as an object of type `target`.

    Args:
        target: a dataclass type (or any annotation made of dataclasses, `Literal`, unions, containers and scalars).
        data: what `json.load` returned.
        path: how to name the value in errors; the name of `target` if None.

    Raises:
        ConfigError: for an unknown key (with the near miss), a missing key or a value of the wrong type.
    """
    return _parse(target, data, path or str(getattr(target, "__name__", target)))


def dumps(config: Any) -> str:
    """The JSON text of a config, indented, with a newline at its end."""
    return json.dumps(to_json(config), indent=2, ensure_ascii=False) + "\n"


def _parse(target: Any, data: Any, path: str) -> Any:
    if target is Any or isinstance(target, TypeVar):
        return data
    if dataclasses.is_dataclass(target):
        return _parse_dataclass(target, data, path)
    origin, args = get_origin(target), get_args(target)
    if origin is Literal:
        if data not in args or type(data) not in {type(a) for a in args}:
            listed = ", ".join(repr(a) for a in args)
            hint = near_miss(data, [a for a in args if isinstance(a, str)])
            raise ConfigError(f"{path} is {data!r}, but must be one of {listed}{hint}")
        return data
    if origin in (Union, types.UnionType):
        return _parse_union(args, data, path)
    if origin is tuple and isinstance(data, (list, tuple)):
        return _parse_tuple(args, data, path)
    if (origin or target) is list and isinstance(data, (list, tuple)):
        return [_parse(args[0] if args else Any, v, f"{path}[{i}]") for i, v in enumerate(data)]
    if (origin or target) is dict and isinstance(data, Mapping):
        value_type = args[1] if args else Any
        return {k: _parse(value_type, v, f"{path}.{k}") for k, v in data.items()}
    if target in (None, type(None)) and data is None:
        return None
    if target is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if target in (int, str, bool) and type(data) is target:
        return data
    if target is Path and isinstance(data, str):
        return Path(data)
    raise ConfigError(f"{path} is {data!r}, but must be {_describe(target)}")


def _parse_dataclass(target: Any, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} is {data!r}, but must be an object with the fields of {target.__name__}")
    hints = _type_hints(target)
    known = {f.name: f for f in public_fields(target)}
    for key in data:
        if key not in known:
            raise ConfigError(f"{path} has no field {key!r}{near_miss(key, known)}; its fields are {', '.join(known)}")
    values = {k: _parse(hints[k], v, f"{path}.{k}") for k, v in data.items()}
    missing = [
        name
        for name, f in known.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}")
    return target(**values)


def _parse_union(options: tuple[Any, ...], data: Any, path: str) -> Any:
    def unlike(option: Any) -> tuple[bool, int]:
        """An exact scalar type first, so that 1 stays an int in `int | float` and `float | int` alike; of dataclasses
        the one that has most of the keys, which is also the one that a wrong key or value is reported for."""
        known = {f.name for f in public_fields(option)} if dataclasses.is_dataclass(option) else set()
        return type(data) is not option, -len(known & set(data)) if isinstance(data, Mapping) else 0

    errors = []
    for option in sorted(options, key=unlike):
        try:
            return _parse(option, data, path)
        except ConfigError as error:
            errors.append((option, error))
    structured = [e for o, e in errors if dataclasses.is_dataclass(o) and isinstance(data, Mapping)]
    if structured:
        raise structured[0]
    raise ConfigError(f"{path} is {data!r}, but must be {' or '.join(_describe(o) for o in options)}")


def _parse_tuple(args: tuple[Any, ...], data: Any, path: str) -> tuple:
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_parse(args[0], v, f"{path}[{i}]") for i, v in enumerate(data))
    if args and len(args) != len(data):
        raise ConfigError(f"{path} is {data!r}, but must hold {len(args)} values")
    return tuple(
        _parse(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args or (Any,) * len(data), data, strict=True))
    )


def _describe(target: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(target) or getattr(target, "__name__", None) or str(target).replace("typing.", "")
