"""Configs of the original PyTorch package `xlstm` (its class xLSTMLMModelConfig) as ours, and back.

The config arrives as `dataclasses.asdict(config)` gives it, or as its user wrote it, with the defaults left out. What
comes out computes what the package computes: where the package overwrites a value from the parent or never reads it,
so it is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from xlstm_jax.config import ConfigError, from_json, near_miss, to_json
from xlstm_jax.models.xlstm_parallel.utils import UpProjConfigMixin
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

Backend = Literal["vanilla", "cuda"]

# Every norm of the package: it has no field for it.
_NORM_EPS = 1e-5

_MODEL = (
    *("context_length", "num_blocks", "embedding_dim", "add_post_blocks_norm", "bias", "dropout"),
    *("vocab_size", "tie_weights", "weight_decay_on_embedding", "add_embedding_dropout"),
)
_UP_PROJECTION = ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of")
_MLSTM = ("conv1d_kernel_size", "qkv_proj_blocksize", "num_heads", *_UP_PROJECTION)
_FEEDFORWARD = ("act_fn", "dropout", "bias", *_UP_PROJECTION)
_SLSTM = ("num_heads", "conv1d_kernel_size", "group_norm_weight")
_SLSTM_CELL = ("bias_init", "recurrent_weight_init", "gradient_recurrent_cut", "gradient_recurrent_clipval")

# Overwritten from the stack, whatever they were set to.
_MLSTM_FROM_STACK = ("embedding_dim", "bias", "dropout", "context_length")
_SLSTM_FROM_STACK = ("embedding_dim", "hidden_size", "dropout")
# What the package never reads, or what is a matter of its CUDA kernels: dtypes are chosen anew.
_SLSTM_WITHOUT_EFFECT = (
    *("num_states", "forward_clipval", "batch_size", "initial_val", "enable_automatic_mixed_precision"),
    *("dtype", "dtype_b", "dtype_r", "dtype_w", "dtype_g", "dtype_s", "dtype_a"),
)
# What can have one value alone here.
_SLSTM_FIXED: dict[str, tuple[Any, str]] = {
    "function": ("slstm", "the cell 'lstm' is no sLSTM"),
    "num_gates": (4, "an sLSTM has the gates i, f, z and o"),
    "constants": ({}, "they are compiled into CUDA kernels"),
    "input_shape": ("BSGNH", "its layer hands the gates over in that order"),
    "output_shape": ("BNSH", "its layer expects that order"),
}

_ACTIVATIONS = {
    "gelu": "gelu_exact",  # PyTorch's gelu is x Φ(x); our "gelu" is its tanh approximation
    **{name: name for name in ("relu", "relu^2", "sigmoid", "swish", "selu")},
}


def config_from_xlstm_package(config: str | Mapping[str, Any], dtype: str = "float32") -> xLSTMLMModelConfig:
    """The model config for a language model of the PyTorch package `xlstm`.

    Args:
        config: the package's xLSTMLMModelConfig as a JSON document (text or parsed). Fields that are left out have the
            package's defaults; private fields may be there or not.
        dtype: of activations; the package has no field for it. What is kept in float32 by default (gates, head) is in
            float64 with them.

    Returns:
        A config that computes what the package computes on whole sequences: LayerNorms with epsilon 1e-5, the exact
        GELU, and for the CUDA backend with `gradient_recurrent_clipval` outputs clipped at the same value.

    Raises:
        ConfigError: for text that is not JSON, a key that the package does not have, or a value that our model cannot
            have; it names the key.
    """
    data = parse_package_config(config)
    model: dict[str, Any] = _pick(data, _MODEL, "config", also=("mlstm_block", "slstm_block", "slstm_at"))
    model |= {"norm_eps": _NORM_EPS, "dtype": dtype, "lm_head_dtype": _wide(dtype)}
    if data.get("mlstm_block") is not None:
        model["mlstm_block"] = _mlstm_block(data["mlstm_block"], data, dtype)
    if data.get("slstm_block") is not None:
        model["slstm_block"] = _slstm_block(data["slstm_block"], dtype)
    model["slstm_at"] = _slstm_at(data, model.get("num_blocks", 1))
    return from_json(xLSTMLMModelConfig, model, "config")


def xlstm_package_from_config(config: xLSTMLMModelConfig, backend: Backend | None = None) -> dict[str, Any]:
    """The package's config of a model of ours, as JSON: the inverse of `config_from_xlstm_package`.

    Args:
        backend: of the sLSTM; None takes "vanilla", which runs anywhere, unless outputs are clipped as by "cuda" alone.

    Raises:
        ConfigError: naming every field whose value the package cannot express.
    """
    model: dict[str, Any] = {name: getattr(config, name) for name in _MODEL}
    if "mlstm" in config.block_kinds and config.mlstm_block is not None:
        layer = config.block_config(config.block_kinds.index("mlstm")).layer_config()
        model["mlstm_block"] = {"mlstm": {name: getattr(layer, name) for name in _MLSTM}}
    if "slstm" in config.block_kinds and config.slstm_block is not None:
        block = config.block_config(config.block_kinds.index("slstm"))
        layer, cell = block.layer_config(), block.layer_config().cell_config()
        clipped = cell.forward_clipval is not None and cell.forward_clipval == cell.gradient_recurrent_clipval
        model["slstm_block"] = {
            "slstm": {name: getattr(layer, name) for name in _SLSTM}
            | {name: getattr(cell, name) for name in _SLSTM_CELL}
            | {"backend": backend or ("cuda" if clipped else "vanilla")},
            "feedforward": None,
        }
        if (feedforward := block.feedforward_config()) is not None:
            names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
            fields = {name: getattr(feedforward, name) for name in _FEEDFORWARD}
            # An activation that it does not have is told with the rest.
            model["slstm_block"]["feedforward"] = fields | {"act_fn": names.get(feedforward.act_fn, "gelu")}
    places = [place for place, kind in enumerate(config.block_kinds) if kind == "slstm"]
    model["slstm_at"] = places if "mlstm_block" in model else "all"
    there = _what_counts(config_from_xlstm_package(model, config.dtype))
    problems = [
        f"model.{path} is {value!r}, but the package has {there.get(path)!r}"
        for path, value in _what_counts(config).items()
        if value != there.get(path)
    ]
    if problems:
        raise ConfigError("the package xlstm cannot express this model: " + "; ".join(problems))
    return model


# What does not change what a model computes of one document: how it begins, is trained, is laid out and rounds, and
# what follows from other fields.
_WITHOUT_EFFECT = re.compile(
    r"(.*\.)?(\w*dtype(_\w)?|own_dtype_and_dropout|parallel|scan_blocks|init_\w+|output_init_fn|reset_\w+|implementation"
    r"|[if]gate_bias_init_range|norm_type_v1|context_length|slstm_at|backend|[ms]lstm_cell\.(embedding_dim|num_heads)"
    r"|[ms]lstm\.norm_type|mlstm_cell\.norm_type)(\..*)?"
)


def _what_counts(config: xLSTMLMModelConfig) -> dict[str, Any]:
    """Path -> value of every field that counts, with what follows from parents filled in."""
    outer = to_json(config) | {"block_kinds": list(config.block_kinds), "mlstm_block": None, "slstm_block": None}
    flat = _flat(outer)
    for kind in dict.fromkeys(config.block_kinds):
        block = config.block_config(config.block_kinds.index(kind))
        layer = block.layer_config()
        parts = to_json(block) | {kind: to_json(layer) | {f"{kind}_cell": to_json(layer.cell_config())}}
        if (feedforward := block.feedforward_config()) is not None:
            # Its mLSTM blocks have none, whatever is in it.
            parts["feedforward"] = feedforward.ff_type if kind == "mlstm" else to_json(feedforward)
        flat |= _flat(parts, f"{kind}_block.")
        if kind == "mlstm":
            memory = layer.cell_config().backend.settings()
            flat |= {"mlstm_block.mlstm.mlstm_cell.backend: gate": memory.gate, "... eps": memory.eps}
    return {path: value for path, value in flat.items() if not _WITHOUT_EFFECT.fullmatch(path)}


def _flat(data: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) and value else {before + name: value}
    return flat


def parse_package_config(config: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON document as a mapping.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the config is not JSON: {error}") from error
    return _object(config, "config")


def backend_of(config: Mapping[str, Any]) -> Backend:
    """The sLSTM backend that the package's config names; its default is "cuda".

    Raises:
        ConfigError: for another name.
    """
    block = _object(config.get("slstm_block") or {}, "config.slstm_block")
    layer = _object(block.get("slstm") or {}, "config.slstm_block.slstm")
    backend = layer.get("backend", "cuda")
    if backend not in ("vanilla", "cuda"):
        raise ConfigError(f"config.slstm_block.slstm.backend is {backend!r}, but must be 'vanilla' or 'cuda'")
    return backend


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _mlstm_block(data: Any, model: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    path = "config.mlstm_block"
    _pick(data, (), path, also=("mlstm",))
    layer = _object(data.get("mlstm") or {}, f"{path}.mlstm")
    ours = _pick(layer, _MLSTM, f"{path}.mlstm", also=_MLSTM_FROM_STACK)
    ours["mlstm_cell"] = {"norm_eps": _NORM_EPS, "gate_dtype": _wide(dtype)}
    return {"mlstm": _with_whole_blocks(ours, model)}


def _with_whole_blocks(layer: dict[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The package rounds the *number* of blocks of q, k and v down, which makes them larger where the size is odd."""
    dim, size = model.get("embedding_dim", 128), layer.get("qkv_proj_blocksize", 4)
    width = {"proj_factor": 2.0} | {name: layer[name] for name in _UP_PROJECTION if name in layer}
    up = from_json(UpProjConfigMixin, width, "config.mlstm_block.mlstm")
    up._set_proj_up_dim(dim if isinstance(dim, int) else -1)
    inner = up._proj_up_dim
    if inner and isinstance(size, int) and 0 < size <= inner and inner % (inner // size) == 0:
        return {**layer, "qkv_proj_blocksize": inner // (inner // size)}
    return layer


def _slstm_block(data: Any, dtype: str) -> dict[str, Any]:
    path = "config.slstm_block"
    _pick(data, (), path, also=("slstm", "feedforward"))
    layer = _object(data.get("slstm") or {}, f"{path}.slstm")
    backend = backend_of({"slstm_block": data})
    others = (*_SLSTM_CELL, *_SLSTM_FROM_STACK, *_SLSTM_WITHOUT_EFFECT, *_SLSTM_FIXED)
    ours = _pick(layer, _SLSTM, f"{path}.slstm", also=(*others, "backend", "internal_input_shape"))
    for name, (only, why) in _SLSTM_FIXED.items():
        _only(layer, name, only, why, f"{path}.slstm")
    if backend == "cuda":
        _only(layer, "internal_input_shape", "SBNGH", "the CUDA kernels read the gates in that order", f"{path}.slstm")
    if isinstance(ours.get("num_heads"), int) and ours["num_heads"] <= 0:
        ours["num_heads"] = 1  # as the package does
    cell = {"dtype_b": _wide(dtype)} | {name: layer[name] for name in _SLSTM_CELL if name in layer}
    if backend == "cuda" and cell.get("gradient_recurrent_clipval") is not None:
        # The CUDA kernels clip the outputs at the bound that is meant for the gradient.
        cell["forward_clipval"] = cell["gradient_recurrent_clipval"]
    ours |= {"norm_eps": _NORM_EPS, "slstm_cell": cell}
    return {"slstm": ours, "feedforward": _feedforward(data.get("feedforward", {}), f"{path}.feedforward", dtype)}


def _feedforward(data: Any, path: str, dtype: str) -> dict[str, Any] | None:
    if data is None:
        return None
    ours = _pick(data, _FEEDFORWARD, path, also=("embedding_dim", "ff_type"))
    _only(data, "ff_type", "ffn_gated", "the package has no other layer", path)
    name = ours.get("act_fn", "gelu")
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"{path}.act_fn is {name!r}, but must be one of {', '.join(_ACTIVATIONS)}{near_miss(name, _ACTIVATIONS)}"
        )
    # Its dropout is its own, whatever that of the stack is.
    return {"dropout": 0.0, **ours, "act_fn": _ACTIVATIONS[name], "dtype": dtype, "own_dtype_and_dropout": True}


def _slstm_at(data: Mapping[str, Any], num_blocks: Any) -> list[int] | str:
    places = data.get("slstm_at", [])
    if data.get("mlstm_block") is None:
        places = "all"
    if isinstance(places, (list, tuple)) and isinstance(num_blocks, int):
        # It counts from the end for a negative place, as Python does.
        places = [p + num_blocks if type(p) is int and -num_blocks <= p < 0 else p for p in places]
    block_map = data.get("_block_map")
    if isinstance(block_map, str) and isinstance(places, list):
        built = [i for i, kind in enumerate(block_map.split(",")) if kind == "1"]
        if built != sorted(set(places)):
            raise ConfigError(
                f"config.slstm_at is {data.get('slstm_at')!r}, but config._block_map says that the model was built "
                f"with sLSTM blocks at {built}: remove the one that is wrong"
            )
    return places


def _pick(data: Any, names: Iterable[str], path: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """The values of `names` in `data`; every other public key must be one of `also`."""
    names = tuple(names)
    known = {*names, *also}
    for key in _object(data, path):
        if key not in known and not str(key).startswith("_"):
            raise ConfigError(
                f"{path} has the key {key!r}{near_miss(key, known)}, which the package xlstm does not know; its keys "
                f"are {', '.join(sorted(known))}"
            )
    return {name: data[name] for name in names if name in data}


def _object(data: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} is {data!r}, but must be a JSON object")
    return data


def _only(data: Mapping[str, Any], name: str, value: Any, why: str, path: str) -> None:
    if name in data and data[name] != value:
        raise ConfigError(f"{path}.{name} is {data[name]!r}, but must be {value!r}, because {why}")
