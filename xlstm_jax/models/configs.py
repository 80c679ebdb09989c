"""Base classes of the model configs; imports nothing of this package but the JSON reader and writer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from xlstm_jax.config import Config, ConfigError, PositiveInt, near_miss

FloatName = Literal["float32", "bfloat16", "float16", "float64"]

FLOAT_NAMES = get_args(FloatName)

MODULE_NAMES = (
    "Embed",
    "BlockStack",
    "LMHead",
    "mLSTMBlock",
    "sLSTMBlock",
    "xLSTMResBlock",
    "FFNResBlock",
    "mLSTMInnerLayer",
    "mLSTMCell",
    "sLSTMCell",
    "TransformerBlock",
    "LSTMBlock",
    "AttnBlock",
    "FFNBlock",
)
"""The parts of a model that `ParallelConfig.remat` and `fsdp_modules` can name."""

BLOCKS = ("mLSTMBlock", "sLSTMBlock", "TransformerBlock", "LSTMBlock")
POLICIES = ("nothing", "block", "dots", "offload")
"""What `ParallelConfig.remat` can say of all blocks at once."""

_NO_DEFAULT = object()

C = TypeVar("C", bound="SubModelConfig")
T = TypeVar("T")


@dataclass
class SubModelConfig(Config):
    """Base of every config of a part of a model.

    A config is never changed by the module that receives it: values that follow from a parent go into copies.
    """

    @property
    def _dtype(self) -> Any:
        """The `dtype` of a part that has one, as JAX's."""
        import jax.numpy as jnp  # configs are read where no model is

        return jnp.dtype(self.dtype)  # type: ignore[attr-defined]

    def resolved(self) -> Mapping[str, SubModelConfig | None]:
        """The configs of the parts, by field, with what follows from this one filled in."""
        return {}


@dataclass(kw_only=True)
class ParallelConfig(Config):
    """How a model is laid out over devices: a mesh with the axes (data, fsdp, sequence, model), in this order.

    `-1` for one axis size means: what the other axes leave of the devices. The batch is parted over `data` and `fsdp`,
    parameters over `fsdp` too; `sequence` parts the tokens of a row, `model` heads, feed-forward layers and vocabulary.
    """

    data_axis_size: PositiveInt | Literal[-1] = -1
    fsdp_axis_size: PositiveInt | Literal[-1] = 1
    pipeline_axis_size: PositiveInt | Literal[-1] = 1
    sequence_axis_size: PositiveInt | Literal[-1] = 1
    model_axis_size: PositiveInt | Literal[-1] = 1
    data_axis_name: str = "dp"
    fsdp_axis_name: str = "fsdp"
    pipeline_axis_name: str = "pp"
    sequence_axis_name: str = "sp"
    model_axis_name: str = "tp"
    remat: list[str] = field(default_factory=list)
    """What is recomputed in the backward pass: modules by their names, or one word for all blocks: "block" (all but
    their inputs), "dots" (all but the results of dense maps), "offload" (those wait in the host's memory) or "nothing".
    """
    fsdp_modules: list[str] = field(default_factory=list)
    """Names of the modules whose parameters are parted over `fsdp`; if empty, those of all."""
    fsdp_min_weight_size: int = 2**18
    """Parameters with fewer entries are whole on every device."""
    fsdp_gather_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    fsdp_grad_scatter_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    tp_async_dense: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("remat", "fsdp_modules"):
            for part in getattr(self, name):
                known = MODULE_NAMES + (POLICIES if name == "remat" else ())
                if part not in known:
                    raise ConfigError(
                        f"ParallelConfig.{name} names {part!r}{near_miss(part, known)}; it takes {', '.join(known)}"
                    )
        if len(self.remat) > 1 and (policies := [part for part in self.remat if part in POLICIES]):
            raise ConfigError(
                f"ParallelConfig.remat is {self.remat!r}, but {policies[0]!r} says what all blocks do: give it alone"
            )
        if self.pipeline_axis_size != 1:
            raise ConfigError(
                f"ParallelConfig.pipeline_axis_size is {self.pipeline_axis_size}, but there are no pipelines: leave it "
                "at 1, and part deep models with fsdp_axis_size"
            )
        if self.tp_async_dense:
            raise ConfigError(
                "ParallelConfig.tp_async_dense is True, but XLA decides by itself what it overlaps with communication: "
                "leave it False"
            )
        axes = ("data", "fsdp", "sequence", "model")
        unknown = [f"{axis}_axis_size" for axis in axes if getattr(self, f"{axis}_axis_size") == -1]
        if len(unknown) > 1:
            raise ConfigError(
                f"ParallelConfig.{' and '.join(unknown)} are -1, but only one of the sizes can be left open"
            )
        names = [getattr(self, f"{axis}_axis_name") for axis in axes]
        if len(set(names)) < len(names):
            raise ConfigError(f"ParallelConfig names its axes {', '.join(names)}, but no two may have the same name")


@dataclass(kw_only=True)
class ModelConfig(Config):
    """A model to build: its class by name, its config and its layout over devices."""

    model_class: str
    model_config: SubModelConfig | None = None
    parallel: ParallelConfig | None = None


def inherit(child: C, parent: SubModelConfig, values: Mapping[str, Any], **derived: Any) -> C:
    """A copy of `child` that holds its parent's `values`; neither config is changed.

    A field of the child that stands at its class default takes the parent's value. A parent's value of None or -1 means
    "not set" and leaves the child's. `derived` are private fields to set without question.

    Raises:
        ConfigError: for a field that differs from both its default and the parent's value; it names the two.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(child)}
    taken = {}
    for name, value in values.items():
        own, default = getattr(child, name), defaults.get(name, _NO_DEFAULT)
        if value is None or (value == -1 and not isinstance(value, bool)):
            continue
        if own not in (value, default):
            raise ConfigError(
                f"{type(child).__name__}.{name} is {own!r}, but it follows from {type(parent).__name__}, which says "
                f"{value!r}; leave it at its default ({default!r}) or make both equal"
            )
        taken[name] = value
    return dataclasses.replace(child, **taken, **derived)


def remat(part: str, parallel: ParallelConfig | None, method: Callable[..., Any], *, prevent_cse: bool = True) -> Any:
    """`method(module, *arrays)`, recomputed in the backward pass as far as `parallel.remat` says for the part.

    `prevent_cse=False` is for the body of a scan, which needs no barrier against common-subexpression elimination.
    """
    asked = [] if parallel is None else parallel.remat
    words = [word for word in asked if word == part or (word in POLICIES[1:] and part in BLOCKS)]
    if not words:
        return method
    import jax
    from flax import linen as nn  # configs are read where no model is

    kept = jax.checkpoint_policies
    policies = {
        "dots": kept.dots_with_no_batch_dims_saveable,
        "offload": kept.offload_dot_with_no_batch_dims("device", "pinned_host"),
    }
    return nn.remat(method, prevent_cse=prevent_cse, policy=policies.get(words[0]))


def remembered(method: Callable[..., T]) -> Callable[..., T]:
    """A method of a config whose results are kept, for configs of the same values: modules ask at every call."""
    kept: dict[Any, T] = {}

    @functools.wraps(method)
    def recall(self: Any, *args: Any) -> T:
        key = (_values(self), args)
        if key not in kept:
            if len(kept) >= _REMEMBERED:
                kept.clear()
            kept[key] = method(self, *args)
        return kept[key]

    return recall


_REMEMBERED = 4096
"""Results of a method that are kept at once; a deep mix asks for as many as it has blocks."""


def _values(config: Any) -> tuple[Any, ...]:
    """What a config holds, private fields too, as something that can be a key."""
    found: list[Any] = []
    rest = [config]
    while rest:
        value = rest.pop()
        if dataclasses.is_dataclass(value):
            found.append(type(value))
            rest.extend(value.__dict__.values())
        elif isinstance(value, (list, tuple)):
            found.append(len(value))
            rest.extend(value)
        elif isinstance(value, dict):
            found.append(tuple(value))
            rest.extend(value.values())
        else:
            found.append(value)
    return tuple(found)
