"""Dataclass configs: checked against their annotations when made, and in and out of JSON.

Dataclasses are the only schema of this package. Ranges and choices stand in the type (`Annotated[int, AtLeast(1)]`,
`Literal["a", "b"]`), so that one reading of the annotations checks a value, names what would be right, and describes
the field in a help. `to_json` writes every public field, `from_json` reads it back to an equal object. Fields whose
names start with an underscore are derived and never written.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import numbers
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration value that cannot be used; the message names the field, the value and what would be right."""


def near_miss(word: object, words: Iterable[str]) -> str:
    """` (did you mean 'x'?)` if `word` is close to one of `words`, else the empty string."""
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# -- what may stand in an annotation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """A bound of a number, as in `Annotated[float, Above(0), AtMost(1)]`."""

    bound: float
    sign: ClassVar[str]
    holds: ClassVar[Callable[[Any, Any], bool]]

    def __str__(self) -> str:
        power = self.bound.bit_length() - 1 if isinstance(self.bound, int) else 0
        return f"{self.sign} {f'2**{power}' if power > 30 and self.bound == 2**power else self.bound}"


class AtLeast(Bound):
    sign, holds = ">=", operator.ge


class Above(Bound):
    sign, holds = ">", operator.gt


class AtMost(Bound):
    sign, holds = "<=", operator.le


class Below(Bound):
    sign, holds = "<", operator.lt


@dataclass(frozen=True)
class OneOf:
    """Choices that are known only when the module is imported, as in `Annotated[str, OneOf(tuple(TABLE))]`."""

    choices: tuple[Any, ...]


# What an array has along an axis, and what is counted on a device: JAX holds both in 32 bits.
PositiveInt = Annotated[int, AtLeast(1), Below(2**31)]
NonNegativeInt = Annotated[int, AtLeast(0), Below(2**31)]
SizeOrUnset = Annotated[int, AtLeast(-1), Below(2**31)]
# A block is built by itself: more of them come to no end.
Depth = Annotated[int, AtLeast(1), AtMost(10_000)]
# JAX makes a random key of the last 32 bits.
Seed = Annotated[int, AtLeast(0), Below(2**32)]
# What only Python counts.
AnyPositiveInt = Annotated[int, AtLeast(1)]
AnyNonNegativeInt = Annotated[int, AtLeast(0)]
PositiveFloat = Annotated[float, Above(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
Share = Annotated[float, AtLeast(0), AtMost(1)]
DropoutRate = Annotated[float, AtLeast(0), Below(1)]


class Kind(NamedTuple):
    """An annotation, read."""

    take: Callable[[Any, str | None], Any]
    """(value, path) -> the value as the annotation has it. With a path the value is from JSON, and what is wrong inside
    it is told with its path; else it is given in Python. Raises `_Unfit` where it is not of this kind."""
    wanted: str
    """What would be right, to stand after "must be"."""
    choices: tuple[Any, ...] = ()
    scalar: type | None = None
    """The type whose values are of this kind without conversion."""

    def refuse(self, path: str, value: Any) -> ConfigError:
        """The error for a value that is not of this kind."""
        hint = near_miss(value, [c for c in self.choices if isinstance(c, str)])
        return ConfigError(f"{path} is {value!r}, but must be {self.wanted}{hint}")


class _Unfit(Exception):
    """A value is not of the kind that takes it; who knows its name says so."""


@functools.cache
def kind_of(annotation: Any) -> Kind:
    """How values of an annotation made of dataclasses, `Literal`, unions, containers and scalars are taken."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for note in args[1:]:
            if isinstance(note, OneOf):
                return _literal(note.choices)
        return _number(args[0], tuple(note for note in args[1:] if isinstance(note, Bound)))
    if origin is Literal:
        return _literal(args)
    if origin in (Union, types.UnionType):
        return _union(args)
    if (origin or annotation) in (list, tuple):
        return _sequence(origin or annotation, args)
    if (origin or annotation) is dict:
        return _dict(kind_of(args[1] if args else Any))
    if dataclasses.is_dataclass(annotation):
        return _dataclass(annotation)
    if annotation in (int, float):
        return _number(annotation, ())
    if annotation in (None, type(None)):
        return Kind(lambda value, path: _only(value is None, value), "None", scalar=type(None))
    if annotation in (str, bool):
        wanted = "a text" if annotation is str else "true or false"
        return Kind(lambda value, path: _only(isinstance(value, annotation), value), wanted, scalar=annotation)
    if annotation is Path:
        return Kind(lambda value, path: Path(_only(isinstance(value, (str, Path)), value)), "a path")
    return Kind(lambda value, path: value, "anything")


def _only(fits: bool, value: Any) -> Any:
    if not fits:
        raise _Unfit
    return value


def _number(scalar: Any, bounds: tuple[Bound, ...]) -> Kind:
    # NumPy's scalars are registered as such numbers too; they become Python's, which JSON can hold.
    abstract = numbers.Integral if scalar is int else numbers.Real
    tests = [(type(bound).holds, bound.bound) for bound in bounds]

    def take(value: Any, path: str | None) -> Any:
        if type(value) is not scalar:
            if isinstance(value, bool) or not isinstance(value, abstract):
                raise _Unfit
            try:
                value = scalar(value)
            except OverflowError:
                raise _Unfit from None
        if scalar is float and not math.isfinite(value):
            raise _Unfit
        for holds, bound in tests:
            if not holds(value, bound):
                raise _Unfit
        return value

    noun = "a whole number" if scalar is int else "a number"
    return Kind(take, f"{noun} {' and '.join(map(str, bounds))}".strip(), scalar=scalar)


def _literal(choices: tuple[Any, ...]) -> Kind:
    kinds = {type(choice) for choice in choices}

    def take(value: Any, path: str | None) -> Any:
        return _only(type(value) in kinds and value in choices, value)

    listed = ", ".join(map(repr, choices))
    return Kind(take, f"one of {listed}" if len(choices) > 1 else listed, choices)


def _sequence(made: Any, args: tuple[Any, ...]) -> Kind:
    any_length = made is list or args[1:] == (Ellipsis,) or not args
    kinds = [kind_of(argument) for argument in args[: 1 if any_length else None] or (Any,)]

    def take(value: Any, path: str | None) -> Any:
        if not isinstance(value, (list, tuple)) or not (any_length or len(value) == len(kinds)):
            raise _Unfit
        own = kinds * len(value) if any_length else kinds
        items = [_inside(k, v, path and f"{path}[{i}]") for i, (k, v) in enumerate(zip(own, value, strict=True))]
        same = type(value) is tuple and made is tuple and all(map(operator.is_, items, value))
        return value if same else made(items)

    several = re.sub(r"^an? ((?:whole )?\w+)", r"\1s", kinds[0].wanted)
    count = "a list of" if any_length else {1: "one", 2: "two", 3: "three"}.get(len(kinds), len(kinds))
    return Kind(take, f"{count} {several}", kinds[0].choices)


def _dict(kind: Kind) -> Kind:
    def take(value: Any, path: str | None) -> Any:
        if not isinstance(value, Mapping):
            raise _Unfit
        return {k: _inside(kind, v, path and f"{path}.{k}") for k, v in value.items()}

    return Kind(take, "a dict")


def _dataclass(target: Any) -> Kind:
    def take(value: Any, path: str | None) -> Any:
        if path is None or isinstance(value, target):
            return _only(isinstance(value, target), value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}, but must be an object with the fields of {target.__name__}")
        known = {f.name: f for f in public_fields(target)}
        for key in value:
            if key not in known:
                listed = ", ".join(known)
                raise ConfigError(f"{path} has no field {key!r}{near_miss(key, known)}; its fields are {listed}")
        # Without the bounds, of which the object itself will tell.
        hints = type_hints(target)
        values = {key: _inside(kind_of(hints[key]), inner, f"{path}.{key}") for key, inner in value.items()}
        missing = [
            name
            for name, f in known.items()
            if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{path} lacks {', '.join(missing)}")
        return target(**values)

    return Kind(take, target.__name__)


def _union(options: tuple[Any, ...]) -> Kind:
    kinds = {option: kind_of(option) for option in options}
    # An exact scalar type first, so that 1 stays an int in `int | float` and `float | int` alike.
    exact = {kind.scalar: kind for kind in kinds.values() if kind.scalar is not None}
    structures = [option for option in options if dataclasses.is_dataclass(option)]

    def take(value: Any, path: str | None) -> Any:
        if path is not None and structures and isinstance(value, Mapping):
            return _take_structure(structures, value, path)
        first = exact.get(type(value))
        for kind in ([first] if first else []) + [kind for kind in kinds.values() if kind is not first]:
            try:
                return kind.take(value, path)
            except (_Unfit, ConfigError):
                continue
        raise _Unfit

    wanted = " or ".join(kind.wanted for kind in kinds.values())
    if len(kinds) > 2:
        wanted = wanted.replace(" or ", ", ", len(kinds) - 2)
    return Kind(take, wanted, tuple(choice for kind in kinds.values() for choice in kind.choices))


def _take_structure(options: list[Any], data: Mapping, path: str) -> Any:
    """Of several dataclasses the one whose `name: Literal[...]` is that of the data; without such names the one that
    has most of its keys, which is also the one that a wrong key or value is reported for."""
    names = {name: option for option in options for name in discriminators(option)}
    if names and "name" in data:
        if data["name"] not in tuple(names):
            raise _literal(tuple(names)).refuse(f"{path}.name", data["name"])
        return kind_of(names[data["name"]]).take(data, path)
    errors = []
    for option in sorted(options, key=lambda option: -len({f.name for f in public_fields(option)} & set(data))):
        try:
            return kind_of(option).take(data, path)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def discriminators(option: Any) -> tuple[Any, ...]:
    """The values of a dataclass's field `name`, where its type is a `Literal`: they tell it from others in a union."""
    hint = type_hints(option).get("name")
    return get_args(hint) if get_origin(hint) is Literal else ()


def _inside(kind: Kind, value: Any, path: str | None) -> Any:
    """A value inside another: with a path, what is wrong with it is told here."""
    try:
        return kind.take(_plain(value), path)
    except _Unfit:
        if path is None:
            raise
        raise kind.refuse(path, value) from None


def _plain(value: Any) -> Any:
    """The Python values of an array or of a scalar from one; anything else as it is."""
    if not (hasattr(value, "tolist") and hasattr(value, "ndim")):
        return value
    try:
        return value.tolist()
    except Exception:  # what is traced, or not on this machine, has no values
        return value


# -- configs -----------------------------------------------------------------------------------------------------------


class Config:
    """Base of config dataclasses: every public field is checked against its annotation when an object is made.

    Lists become tuples and whole numbers become floats, where the annotation says so, and what an array of NumPy, JAX
    or PyTorch holds becomes Python's. Rules between fields belong into the `__post_init__` of the class, after
    `super().__post_init__()`.
    """

    def __post_init__(self) -> None:
        values = vars(self)
        owner: Any = type(self)
        for name, default, kind in _checks(owner):
            value = values[name]
            if value is default:
                continue
            try:
                taken = kind.take(_plain(value), None)
            except _Unfit:
                raise kind.refuse(f"{owner.__name__}.{name}", value) from None
            if taken is not value:
                object.__setattr__(self, name, taken)  # the class may be frozen

    def to_dict(self) -> dict[str, Any]:
        """The public fields as JSON values; private (derived) fields are left out."""
        return to_json(self, type(self).__name__)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: for an unknown field or a value that does not fit, naming it.
        """
        return from_json(cls, data)


@functools.cache
def _checks(kind: Any) -> list[tuple[str, Any, Kind]]:
    """(name, a default that needs no check, how values are taken) of every public field."""
    checks = []
    for f in public_fields(kind):
        taker, default = field_kind(kind, f.name), f.default
        try:
            sound = taker.take(default, None) is default
        except _Unfit:
            sound = False
        checks.append((f.name, default if sound else dataclasses.MISSING, taker))
    return checks


def field_kind(config: Any, name: str) -> Kind:
    """How values of a field of a dataclass are taken, bounds included."""
    return kind_of(type_hints(config, bounds=True)[name])


@functools.cache
def type_hints(kind: Any, bounds: bool = False) -> dict[str, Any]:
    """The annotations of a dataclass as types; what `Annotated` says of them only on demand."""
    return typing.get_type_hints(kind, include_extras=bounds)


def public_fields(config: Any) -> list[dataclasses.Field]:
    """The fields of a dataclass (type or instance) that are serialised: those without a leading underscore."""
    return [f for f in dataclasses.fields(config) if not f.name.startswith("_")]


# -- JSON --------------------------------------------------------------------------------------------------------------


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
    kind: Any = target
    return _inside(kind_of(kind), data, path or str(getattr(target, "__name__", target)))


def dumps(config: Any) -> str:
    """The JSON text of a config, indented, with a newline at its end."""
    return json.dumps(to_json(config), indent=2, ensure_ascii=False) + "\n"
