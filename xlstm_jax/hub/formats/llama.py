"""The format of Llama on the Hugging Face Hub (`LlamaForCausalLM`, model type "llama"), and ours.

Facts about it: transformers, models/llama. Its rotary positions rotate the two halves of a head, as ours do, so that
queries and keys need no reordering.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.hub.errors import WeightsError, refuse
from xlstm_jax.hub.formats.base import (
    HEAD,
    Format,
    ReadOptions,
    Tensors,
    Weights,
    Written,
    compute_dtype,
    head_of,
    read_tied,
)
from xlstm_jax.hub.formats.document import Document
from xlstm_jax.hub.kept import Record
from xlstm_jax.hub.mapping import Entry, dense, single
from xlstm_jax.models.configs import FloatName
from xlstm_jax.models.llama.config import LlamaConfig

_THETA = 1e4


def config_from_huggingface(
    data: Mapping[str, Any], dtype: FloatName = "float32", context_length: int | None = None
) -> LlamaConfig:
    """The model that a config.json of the model type "llama" describes.

    Activations get `dtype`; without a `context_length` it is `max_position_embeddings`.

    Raises:
        ConfigError: for a value that is no good, or that our model would not compute.
    """
    doc = Document(data)
    dim, heads = doc.whole("hidden_size", default=4096), doc.whole("num_attention_heads", default=32)
    doc.only("hidden_act", ("silu", "swish"), "the feed-forward layer here is gated by silu")
    if dim % heads:
        raise ConfigError(f"config.json: hidden_size is {dim}, but must be a multiple of num_attention_heads = {heads}")
    doc.only("head_dim", (dim // heads,), f"heads here share out hidden_size: {dim} / {heads} = {dim // heads}")
    attention_bias = doc.flag("attention_bias", default=False)
    doc.only("mlp_bias", (attention_bias,), f"attention_bias is {attention_bias}, and biases are everywhere or nowhere")
    if data.get("mlp_bias") is None and attention_bias:
        raise ConfigError(
            "config.json: attention_bias is True and mlp_bias is not, but biases are everywhere or nowhere"
        )
    positions = doc.whole("max_position_embeddings", default=2048)
    return LlamaConfig(
        embedding_dim=dim,
        num_blocks=doc.whole("num_hidden_layers", default=32),
        vocab_size=doc.whole("vocab_size", default=32000),
        context_length=positions if context_length is None else context_length,
        head_dim=dim // heads,
        num_kv_heads=doc.whole("num_key_value_heads", default=heads),
        theta=_theta(doc),
        ffn_dim=doc.whole("intermediate_size", default=11008),
        use_bias=attention_bias,
        norm_eps=doc.number("rms_norm_eps", default=1e-6),
        tie_weights=doc.flag("tie_word_embeddings", default=False),
        dtype=dtype,
        lm_head_dtype=dtype,
    )


def _theta(doc: Document) -> float:
    """The base of the rotary frequencies, wherever it stands; any other form of rotation is refused."""
    given = {"rope_theta": doc.data.get("rope_theta")}
    for name in ("rope_parameters", "rope_scaling"):
        rope = doc.data.get(name)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{doc.name}: {name} is {rope!r}, but must be an object or null")
        for key in ("rope_type", "type"):
            if rope.get(key) not in (None, "default"):
                raise ConfigError(
                    f"{doc.name}: {name}.{key} is {rope[key]!r}, but positions are only rotated as they are here "
                    "('default')"
                )
        surplus = sorted(k for k, v in rope.items() if v is not None and k not in ("rope_type", "type", "rope_theta"))
        # A factor of one for the rotated part of a head is what is computed.
        surplus = [key for key in surplus if (key, rope[key]) != ("partial_rotary_factor", 1.0)]
        if surplus:
            raise ConfigError(f"{doc.name}: {name}.{surplus[0]} is {rope[surplus[0]]!r}, which is not computed here")
        given[f"{name}.rope_theta"] = rope.get("rope_theta")
    doc.only("partial_rotary_factor", (1, 1.0), "whole heads are rotated here")
    return Document({k: v for k, v in given.items() if v is not None}, doc.name).number(
        *given, default=_THETA, at_least=1e-6
    )


def huggingface_from_config(config: LlamaConfig) -> dict[str, Any]:
    """What of a config.json follows from the model.

    Raises:
        ConfigError: naming every field whose value the format cannot express.
    """
    problems = []
    if config.qk_norm:
        problems.append("model.qk_norm is True, but the format has no norms of queries and keys")
    if config.logits_soft_cap is not None:
        problems.append(f"model.logits_soft_cap is {config.logits_soft_cap!r}, but the format caps no logits")
    if config.attention_scale != "head_dim" and config.num_heads != config.head_dim:
        problems.append(f"model.attention_scale is {config.attention_scale!r}, but the format scales by 'head_dim'")
    if problems:
        raise ConfigError("the format llama of Hugging Face cannot express this model: " + "; ".join(problems))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embedding_dim,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max(config.context_length, 1),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.theta},
        "rope_scaling": None,
        "attention_bias": config.use_bias,
        "mlp_bias": config.use_bias,
        "tie_word_embeddings": config.tie_weights,
    }


def entries(config: LlamaConfig, head: bool = True) -> Iterator[Entry]:
    """Every tensor of the format, and what of ours it holds; `head`: whether `lm_head.weight` is among them."""
    yield single("model.embed_tokens.weight", "token_embedding.embedding")
    for i in range(config.num_blocks):
        theirs, ours = f"model.layers.{i}", f"block_stack.blocks_{i}"
        yield single(f"{theirs}.input_layernorm.weight", f"{ours}.attn_norm.scale")
        for name, path in (("q", "dense_q"), ("k", "dense_k"), ("v", "dense_v"), ("o", "dense_out")):
            yield from dense(f"{theirs}.self_attn.{name}_proj", f"{ours}.attn.{path}")
        yield single(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.scale")
        for name, path in (("gate", "proj_up_gate"), ("up", "proj_up"), ("down", "proj_down")):
            yield from dense(f"{theirs}.mlp.{name}_proj", f"{ours}.ffn.{path}")
    yield single("model.norm.weight", "block_stack.post_blocks_norm.scale")
    if head:
        yield head_of(config)


def _read(document: Mapping[str, Any], tensors: Tensors, options: ReadOptions) -> Weights:
    config = config_from_huggingface(document, compute_dtype(tensors, options.dtype), options.context_length)
    return read_tied(config, _without_frequencies(config, tensors), entries, "model.embed_tokens.weight", options)


def _without_frequencies(config: LlamaConfig, tensors: Tensors) -> Tensors:
    """Without the rotary frequencies, which older files hold although they follow from the config.

    Raises:
        WeightsError: if they are others.
    """
    suffix = ".rotary_emb.inv_freq"
    wanted = config.theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    problems = []
    for name in [name for name in tensors if name.endswith(suffix)]:
        found = tensors[name].read().astype(np.float64)
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-2, atol=0):
            problems.append(f"{name} holds other frequencies than those that follow from rope_theta {config.theta}")
    refuse("the weights do not fit the model, nothing was loaded", problems)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(suffix)}


def _write(config: LlamaConfig, record: Record) -> Written:
    if record.weight_mode not in (None, "single"):
        raise WeightsError(f"the weight mode is {record.weight_mode!r}, which the format llama does not have")
    head = record.stored_head or not config.tie_weights
    return Written(huggingface_from_config(config), list(entries(config, head)), [], {})


FORMAT = Format(
    lambda document: document.get("model_type") == "llama", _read, LlamaConfig, _write, ("model.norm.weight", HEAD)
)
