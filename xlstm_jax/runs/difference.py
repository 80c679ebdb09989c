"""What may not change in the config of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from xlstm_jax.runs.errors import ConfigChangedError, DamagedRunError

ABSENT = "(absent)"
"""Stands for the value of a key that one of two configs does not have."""


class Difference(NamedTuple):
    """A key (dotted) and its values in the recorded and in the new config."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} is {_shown(self.old)} in the run and {_shown(self.new)} now"


def difference(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Iterable[str] = ()) -> list[Difference]:
    """The keys in which two configs (as JSON dicts) differ, except those that may change.

    Lists are compared as wholes. Compare complete dicts: read an old file through the config classes first, so that a
    field that was added since stands at its default.

    Args:
        old, new: the recorded config and the one asked for.
        may_change: dotted prefixes: `"logging"` stands for the key and all below it; a `*` stands for any one part
            (`"optimizers.*.name"`).
    """
    patterns = [p.split(".") for p in may_change]
    return [d for d in _walk(old, new, ()) if not any(_matches(p, d.key.split(".")) for p in patterns)]


def refuse_differences(
    run: object, old: Mapping[str, Any], new: Mapping[str, Any], may_change: Iterable[str] = ()
) -> None:
    """Raise unless a run with the config `old` may be continued with `new`.

    Raises:
        ConfigChangedError: naming each key, its two values and the way to start a copy.
    """
    found = difference(old, new, may_change)
    if found:
        listed = "; ".join(str(d) for d in found)
        raise ConfigChangedError(
            f"{run} cannot be continued, because {listed} (to train on from it with other values, start a copy: "
            f"--fork NAME)"
        )


def refuse_another_config(
    path: object, present: Mapping[str, Any], step: int, saved: Mapping[str, Any], may_change: Iterable[str] = ()
) -> None:
    """Raise unless a config file says what it said when a checkpoint was saved.

    The checkpoint's manifest is sealed and the file is not: a flipped bit in a number of it would be another model that
    takes the same weights. A field that the saved config lacks was added since, and stands at its default.

    Raises:
        DamagedRunError: naming each key and its two values.
    """
    found = [d for d in difference(saved, present, may_change) if d.old is not ABSENT]
    if found:
        listed = "; ".join(f"{d.key} is {_shown(d.new)}, and was {_shown(d.old)}" for d in found)
        raise DamagedRunError(f"{path} is not what it was when the checkpoint of step {step} was saved: {listed}")


def _walk(old: Any, new: Any, path: tuple[str, ...]) -> list[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(old) + [k for k in new if k not in old]
        return [d for k in keys for d in _walk(old.get(k, ABSENT), new.get(k, ABSENT), (*path, str(k)))]
    # True == 1 in Python, but not in a config.
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if same else [Difference(".".join(path), old, new)]


def _matches(pattern: list[str], key: list[str]) -> bool:
    return len(key) >= len(pattern) and all(p in ("*", k) for p, k in zip(pattern, key, strict=False))


def _shown(value: Any) -> str:
    text = value if value is ABSENT else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
