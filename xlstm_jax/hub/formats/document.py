"""Reading a config.json of another package: each value is taken by name, and checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from xlstm_jax.config import ConfigError


def remarks(document: Mapping[str, Any], stored: Collection[str]) -> list[str]:
    """What of a config.json of any format does not act here as it would elsewhere, a sentence each.

    Args:
        stored: the dtypes of the tensors; empty where others were asked for.
    """
    notes = []
    if quantization := document.get("quantization_config"):
        kind = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        notes.append(
            f"config.json has a quantization_config ({kind!r}), which is not followed: the model computes with the "
            "weights as they are stored"
        )
    if document.get("auto_map"):
        notes.append("config.json names code of its own (auto_map), which is not run")
    named = {name: document[name] for name in ("torch_dtype", "dtype") if document.get(name) not in (None, "auto")}
    if stored and any(str(dtype).removeprefix("torch.") not in stored for dtype in named.values()):
        said = " and ".join(f"{name} is {dtype!r}" for name, dtype in named.items())
        notes.append(f"config.json: {said}, but the tensors are {' and '.join(sorted(stored))}, which holds")
    return notes


class Document:
    """The values of a config.json; what is null or left out has the default of the package that wrote it.

    Args:
        name: how to call it in errors.
    """

    def __init__(self, data: Mapping[str, Any], name: str = "config.json") -> None:
        self.data, self.name = data, name

    def whole(self, *names: str, default: int) -> int:
        """A whole number >= 1, under any of its names."""
        return self._take(names, default, lambda v: type(v) is int and v >= 1, "a whole number >= 1")

    def number(self, *names: str, default: float, at_least: float = 0.0) -> float:
        """A finite number >= `at_least`."""
        value = self._take(
            names,
            default,
            lambda v: type(v) in (int, float) and math.isfinite(v) and v >= at_least,
            f"a number >= {at_least:g}",
        )
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        return self._take(names, default, lambda v: type(v) is bool, "true or false")

    def only(self, name: str, values: tuple[Any, ...], why: str) -> None:
        """Raise `ConfigError` if the value is there and none of `values`."""
        value = self.data.get(name)
        if value is not None and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in values
        ):
            raise ConfigError(f"{self.name}: {name} is {value!r}, but {why}")

    def _take(self, names: tuple[str, ...], default: Any, fits: Any, what: str) -> Any:
        given = {name: self.data[name] for name in names if self.data.get(name) is not None}
        for name, value in given.items():
            if not fits(value):
                raise ConfigError(f"{self.name}: {name} is {value!r}, but must be {what}")
        if len(set(given.values())) > 1:
            both = " and ".join(f"{name} is {value!r}" for name, value in given.items())
            raise ConfigError(f"{self.name}: {both}, but they are two names of one value")
        return next(iter(given.values()), default)
