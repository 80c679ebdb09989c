"""Configs that NX-AI's xlstm-jax (the peer) saved, as ours.

The peer's fields have our names, but it overwrote many of them from the parent, ignored some, and wrote a part of its
values as Python's repr. What comes out here computes what the peer computed.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from xlstm_jax.config import ConfigError, from_json, public_fields
from xlstm_jax.models.configs import FLOAT_NAMES, MODULE_NAMES
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.backend import mLSTMBackendNameAndKwargs
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

_OF_LLAMA = ("head_dim", "theta", "ffn_multiple_of", "ffn_dim_multiplier", "mask_across_document_boundaries")
"""Fields by which a Llama's config is known where no class is named: those of an xLSTM are called otherwise."""

_CLASS = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>")
_DTYPE = re.compile(rf"[\w.]+\.({'|'.join(FLOAT_NAMES)})")

# Fields that the peer took from the parent, whatever they were set to.
_LAYER_FROM_STACK = {"embedding_dim", "bias", "dropout", "context_length", "dtype", "norm_type", "parallel"}
_CELL_FROM_LAYER = {"context_length", "embedding_dim", "num_heads", "dtype", "norm_type", "parallel", "reset_mode"}
_FEEDFORWARD_FROM_BLOCK = {"embedding_dim", "parallel", "own_dtype_and_dropout"}

# The kwargs of the peer's backends that changed what they computed, or how fast.
_BACKEND_KWARGS = {
    "fwbw_stabilized": {"chunk_size", "stabilize_correctly"},
    "triton_kernels": {"autocast_dtype", "chunk_size", "backend_name"},
    "recurrent": {"eps", "use_scan"},
    "recurrent_triton": {"eps", "use_scan", "backend_name"},
}


def config_from_xlstm_jax(metadata: str | Mapping[str, Any]) -> LanguageModelConfig:
    """The model config that the peer saved with a checkpoint.

    Args:
        metadata: the JSON document (text or parsed): the whole metadata with its key "model", the part below that
            key, or the model config alone.

    Returns:
        A config for one device, of an xLSTM or a Llama. Fields that the peer ignored have the value that it acted on:
        the final norm is on, weights are not tied. Its Llama divided queries times keys by the root of the number of
        heads, and so does the one returned.

    Raises:
        ConfigError: for text that is not JSON, a model that is no xLSTM and no Llama, or a value that our model cannot
            have.
    """
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the metadata is not JSON: {error}") from error
    if not isinstance(metadata, Mapping):
        raise ConfigError(f"the metadata is {type(metadata).__name__}, but must be a JSON object")
    document = _plain(metadata)
    parallel, model_class = None, None
    for key in ("model", "model_config", "config"):
        if isinstance(document.get(key), dict):
            model_class = document[key].get("model_class") or model_class
            kind = str(model_class or "xlstm").rsplit(".", 1)[-1].lower()
            if "xlstm" not in kind and "llama" not in kind:
                raise ConfigError(f"the metadata describes the model class {model_class!r}, which is no xLSTM or Llama")
            parallel = document.get("parallel") or parallel
            document = document[key]
    parallel = document.get("parallel") or parallel
    no_class = model_class is None and not any(name in document for name in ("mlstm_block", "mlstm"))
    if "llama" in str(model_class).rsplit(".", 1)[-1].lower() or (no_class and any(n in document for n in _OF_LLAMA)):
        return _llama(document, parallel, model_class)
    return _model(document, parallel)


def _llama(data: dict[str, Any], parallel: Any, model_class: str | None) -> LlamaConfig:
    missing = [name for name in ("embedding_dim", "num_blocks") if name not in data]
    if missing:
        named = f"the model class {model_class!r}, which is no xLSTM" if model_class else "a Llama"
        raise ConfigError(f"the metadata describes {named}, but model_config lacks {', '.join(missing)}")
    if data.get("causal", True) is not True:
        raise ConfigError(f"model_config.causal is {data['causal']!r}, but our Llama is causal: it must be true")
    model = _keep(data, LlamaConfig, drop={"parallel", "attention_scale", "dropout", "context_length"})
    _positive_cap(model, "logits_soft_cap")
    # The peer's defaults where they are not ours, and what it left to the caller or took from elsewhere.
    for name, default in (("scan_blocks", True), ("mask_across_document_boundaries", False), ("dtype", "float32")):
        model.setdefault(name, default)
    if not model.get("ffn_dim_multiplier", 1.0):
        del model["ffn_dim_multiplier"]
    model |= {
        "dropout": data.get("dropout_rate") or 0.0,
        "lm_head_dtype": model["dtype"],
        "attention_scale": "num_heads",
        "tie_weights": False,
        "parallel": _parallel(parallel),
    }
    return from_json(LlamaConfig, model, "model_config")


def _model(data: dict[str, Any], parallel: Any) -> xLSTMLMModelConfig:
    if data.get("slstm_block") is not None:
        raise ConfigError("model_config.slstm_block is set, but the package that saved this config has no sLSTM block")
    block = data.get("mlstm_block")
    if block is None and isinstance(data.get("mlstm"), dict):
        block = {key: data[key] for key in ("mlstm", "feedforward", "add_post_norm") if key in data}
    if not isinstance(block, dict) or not isinstance(block.get("mlstm"), dict):
        raise ConfigError(f"model_config.mlstm_block is {block!r}, but must be an object with the field 'mlstm'")

    model = _keep(data, xLSTMLMModelConfig, drop={"mlstm_block", "slstm_block", "parallel"})
    model |= {"add_post_blocks_norm": True, "tie_weights": False, "parallel": _parallel(parallel)}
    _positive_cap(model, "logits_soft_cap")
    layer = _keep(block["mlstm"], mLSTMLayerConfig, drop=_LAYER_FROM_STACK | {"mlstm_cell"})
    if layer.get("layer_type") != "mlstm_v1":
        layer["layer_type"] = "mlstm"
    layer["mlstm_cell"] = _cell(block["mlstm"].get("mlstm_cell") or {}, layer["layer_type"])
    model["mlstm_block"] = {
        "mlstm": layer,
        "feedforward": _feedforward(block.get("feedforward"), model),
        "add_post_norm": bool(block.get("add_post_norm", False)),
    }
    return from_json(xLSTMLMModelConfig, model, "model_config")


def _cell(data: dict[str, Any], layer_type: str) -> dict[str, Any]:
    cell = _keep(data, mLSTMCellConfig, drop=_CELL_FROM_LAYER | {"backend"})
    _positive_cap(cell, "gate_soft_cap")
    if layer_type == "mlstm_v1":
        cell["gate_linear_headwise"] = False
    backend = data.get("backend")
    if isinstance(backend, dict) and backend.get("name"):
        cell["backend"] = _backend(backend)
    else:
        cell["backend"] = {"name": "parallel_stabilized", "kwargs": {}}
    return cell


def _backend(data: dict[str, Any]) -> dict[str, Any]:
    name, kwargs = data["name"], data.get("kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ConfigError(
            f"model_config.mlstm_block.mlstm.mlstm_cell.backend.kwargs is {kwargs!r}, but must be an object"
        )
    effective = {key: value for key, value in kwargs.items() if key in _BACKEND_KWARGS.get(name, ())}
    return mLSTMBackendNameAndKwargs(name, effective).to_dict()


def _feedforward(data: Any, model: dict[str, Any]) -> dict[str, Any] | None:
    if data is None:
        return None
    layer = _keep(data, FeedForwardConfig, drop=_FEEDFORWARD_FROM_BLOCK)
    own = {name: layer.setdefault(name, default) for name, default in (("dtype", "bfloat16"), ("dropout", 0.0))}
    layer["own_dtype_and_dropout"] = any(
        own[name] != model.get(name, default) for name, default in (("dtype", "bfloat16"), ("dropout", 0.0))
    )
    return layer


def _parallel(data: Any) -> dict[str, Any] | None:
    """What of the layout concerns one device: the modules to recompute."""
    if not isinstance(data, dict):
        return None
    names = [name for name in data.get("remat") or () if name in MODULE_NAMES]
    return {"remat": names} if names else None


def _keep(data: Any, target: type, drop: Iterable[str]) -> dict[str, Any]:
    """The values of `data` that `target` has public fields for; None for a field that cannot be None is its default."""
    if not isinstance(data, dict):
        raise ConfigError(
            f"the metadata holds {data!r} where an object with the fields of {target.__name__} must stand"
        )
    kept = {}
    for field in public_fields(target):
        if field.name in drop or field.name not in data:
            continue
        value = data[field.name]
        if value is None and "None" not in str(field.type) and field.default is not dataclasses.MISSING:
            continue
        kept[field.name] = value
    return kept


def _positive_cap(data: dict[str, Any], name: str) -> None:
    """c tanh(x / c) is the same for c and -c."""
    if isinstance(data.get(name), (int, float)):
        data[name] = abs(data[name])


def _plain(value: Any) -> Any:
    """The values behind the peer's ways to write them: "None", "True", classes, tuples and calls as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if value in ("None", "True", "False"):
        return ast.literal_eval(value)
    if match := _CLASS.fullmatch(value) or _DTYPE.fullmatch(value):
        return match[1]
    if value[:1] in "({[" or re.match(r"[\w.]+\(", value):
        try:
            # Python does not read its own repr of a class.
            return _literal(ast.parse(_CLASS.sub(r"'\1'", value), mode="eval").body)
        except (SyntaxError, ValueError):
            return value
    return value


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or the keyword arguments of a call as a dict; nothing is evaluated."""
    if isinstance(node, ast.Call):
        if node.args:
            raise ValueError("positional arguments")
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        return {
            str(ast.literal_eval(key)): _literal(entry)
            for key, entry in zip(node.keys, node.values, strict=True)
            if key
        }
    return _plain(ast.literal_eval(node))
