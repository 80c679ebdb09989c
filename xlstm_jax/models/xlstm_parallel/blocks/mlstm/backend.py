"""Which implementation of the mLSTM a cell runs, by our names or by those that the peer's configs hold.

All names but "auto" are kept in configs as written. `mLSTMBackendNameAndKwargs.settings()` says what they mean here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from xlstm_jax.config import ConfigError, OneOf, near_miss
from xlstm_jax.kernels.mlstm.api import FORMS
from xlstm_jax.models.configs import FLOAT_NAMES, SubModelConfig, remembered


class BackendSettings(NamedTuple):
    """What `xlstm_jax.kernels.mlstm.mlstm` is called with, and the dtype that q, k, v are cast to before (or None)."""

    implementation: str | None = None
    chunk_size: int | None = None
    gate: Literal["exp", "sigmoid"] = "exp"
    eps: float = 1e-6
    autocast_dtype: str | None = None


class _Any(NamedTuple):
    """A kwarg that takes every value for which `test` holds."""

    what: str
    test: Any


class _Only(NamedTuple):
    """A kwarg of the peer that does nothing here: accepted at these values alone, because of `why`."""

    values: tuple
    why: str


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_eps(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


_CHUNK = _Any("a whole number >= 1", _is_size)
_CHUNK_OR_NONE = _Any("a whole number >= 1, or None", lambda value: value is None or _is_size(value))
_EPS = _Any("a number in [0, 1)", _is_eps)
_BOOL = _Any("true or false", lambda value: isinstance(value, bool))
_DTYPE = _Any("a dtype name or None", lambda value: value in (None, *FLOAT_NAMES))
_STEPS = _Any("'native' or 'triton'", lambda value: value in ("native", "triton"))
_LENGTH = _Any("a whole number (every sequence length works)", lambda value: type(value) is int)
_KERNEL_EPS = _Only((1e-6,), "the Triton kernels were never told of it")
_STATE_DTYPE = _Only((None, "float32"), "states are always kept in float32 or wider")
_STATE_ARGUMENT = _Only((False,), "states go in and out as arguments of the call")

_TRITON_NAMES = (
    "chunkwise--native_autograd",
    "chunkwise--triton_limit_chunk",
    "chunkwise--triton_xl_chunk",
    "chunkwise--triton_xl_chunk_siging",
    "parallel--native_autograd",
    "parallel--native_custbw",
    "parallel--native_stablef_autograd",
    "parallel--native_stablef_custbw",
    "parallel--native_siging_autograd",
    "parallel--native_siging_custbw",
)

_KWARGS: dict[str, dict[str, _Any | _Only]] = {
    "auto": {"eps": _EPS},
    # Ours by the kernels' own table.
    **{name: {**dict.fromkeys(form.sizes, _CHUNK_OR_NONE), "eps": _EPS} for name, form in FORMS.items()},
    "parallel_stabilized": {"context_length": _LENGTH},
    "fwbw_stabilized": {
        "chunk_size": _CHUNK_OR_NONE,
        "return_state": _STATE_ARGUMENT,
        "use_initial_state": _STATE_ARGUMENT,
        "keep_G": _BOOL,
        "keep_gates": _BOOL,
        "keep_M": _BOOL,
        "keep_c": _BOOL,
        # False differs from True by a positive factor per position, which the norm after the cell removes.
        "stabilize_correctly": _BOOL,
    },
    "triton_kernels": {
        "autocast_dtype": _DTYPE,
        "chunk_size": _CHUNK,
        "reduce_slicing": _Only((True,), "it is a memory layout of the Triton kernels"),
        "backend_name": _Any(f"one of {', '.join(_TRITON_NAMES)}", lambda value: value in _TRITON_NAMES),
        "eps": _KERNEL_EPS,
        "norm_val": _Only((1.0,), "the floor of the normaliser is always 1 before stabilisation"),
        "stabilize_correctly": _Only((True,), "the stabiliser always stands in the floor of the normaliser"),
    },
    "recurrent_triton": {"eps": _EPS, "state_dtype": _STATE_DTYPE, "use_scan": _BOOL, "backend_name": _STEPS},
}

# A name of the peer's too, with what it takes there.
_KWARGS["recurrent"] |= {"context_length": _LENGTH, "state_dtype": _STATE_DTYPE, "use_scan": _BOOL}

_DEFAULT_CHUNK = {"fwbw_stabilized": 512, "triton_kernels": 64}


@dataclass
class mLSTMBackendNameAndKwargs(SubModelConfig):
    """An implementation by name, and its options.

    Ours: "auto" (the best that the device can run) and the names of `xlstm_jax.kernels.mlstm.implementations`, with
    the kwargs eps and, where it goes in chunks, chunk_size. The peer's: "parallel_stabilized" and "fwbw_stabilized"
    mean in chunks, as suits the device, "triton_kernels" what its kwarg backend_name says, "recurrent_triton"
    recurrent; their kwargs are accepted as far as they mean something here.

    Raises:
        ConfigError: for another name, an unknown kwarg, or a kwarg whose value cannot have an effect.
    """

    name: Annotated[str, OneOf(tuple(_KWARGS))] = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "attention":
            raise ConfigError(
                "mLSTMBackendNameAndKwargs.name is 'attention', which ignores the gates and so is not an mLSTM: "
                "choose 'auto', or a Transformer for a model with attention"
            )
        self.kwargs = {} if self.kwargs is None else self.kwargs
        super().__post_init__()
        rules = _KWARGS[self.name]
        for key, value in self.kwargs.items():
            where = f"mLSTMBackendNameAndKwargs.kwargs[{key!r}]"
            rule = rules.get(key)
            if rule is None:
                raise ConfigError(
                    f"{where} is no option of the backend {self.name!r}{near_miss(key, rules)}; "
                    f"it takes {', '.join(rules) or 'none'}"
                )
            if isinstance(rule, _Any) and not rule.test(value):
                hint = near_miss(value, _TRITON_NAMES) if key == "backend_name" else ""
                raise ConfigError(f"{where} is {value!r}, but must be {rule.what}{hint}")
            if isinstance(rule, _Only) and value not in rule.values:
                raise ConfigError(f"{where} is {value!r}, which has no effect here, because {rule.why}: leave it out")

    @remembered
    def settings(self) -> BackendSettings:
        """What the name and the kwargs mean for `xlstm_jax.kernels.mlstm.mlstm`."""
        given = self.kwargs
        eps = given.get("eps", 1e-6)
        if self.name == "auto":
            return BackendSettings(eps=eps)
        if self.name == "parallel_stabilized":
            # The same function in less memory and, in float32, with more exact gradients.
            return BackendSettings(eps=eps)
        if self.name == "recurrent_triton":
            return BackendSettings("recurrent", eps=eps)
        chunk = given.get("chunk_size", _DEFAULT_CHUNK.get(self.name))
        if self.name in FORMS:
            return BackendSettings(self.name, chunk, eps=eps)
        if self.name == "fwbw_stabilized":
            # One chunk (chunk_size None) is the parallel form; this backend adds nothing to the normaliser.
            return BackendSettings("parallel" if chunk is None else None, chunk, eps=0.0)
        kernel = given.get("backend_name", "chunkwise--triton_xl_chunk")
        in_chunks = kernel.startswith("chunkwise")
        return BackendSettings(
            None if in_chunks else "parallel",
            chunk if in_chunks else None,
            "sigmoid" if "siging" in kernel else "exp",
            eps,
            given.get("autocast_dtype"),
        )
