"""The format of xLSTM-7B on the Hugging Face Hub (`xLSTMForCausalLM`, model type "xlstm"), and ours.

Facts about it: transformers, models/xlstm; the checkpoint NX-AI/xLSTM-7b. With `weight_mode` "fused" queries, keys,
values and output gate lie in one tensor, both gates in one, and both up-projections in one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from xlstm_jax.config import ConfigError
from xlstm_jax.hub.errors import WeightsError
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
from xlstm_jax.hub.mapping import FLAT, Entry, dense, single
from xlstm_jax.models.configs import FloatName
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.backend import mLSTMBackendNameAndKwargs
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

WEIGHT_MODES = ("single", "fused")
DEFAULT_CONTEXT = 8192
"""Length of the sequences that xLSTM-7B was trained on; the format itself says nothing about it."""

_KERNEL_EPS = 1e-6
_DTYPE_NAMES = ("dtype", "autocast_kernel_dtype")
_LANDMARKS = ("backbone.out_norm.weight", HEAD)


def config_from_huggingface(
    data: Mapping[str, Any], dtype: FloatName = "float32", context_length: int | None = None
) -> xLSTMLMModelConfig:
    """The model that a config.json of the model type "xlstm" describes.

    Activations get `dtype`; `context_length` is that of training rows to come, and no limit. None takes what a folder
    that was written here says, else 8192.

    Raises:
        ConfigError: for a value that is no good, or that our model would not compute.
    """
    doc = Document(data)
    doc.only("use_bias", (False,), "norms with biases, which it brings, cannot be computed here")
    for name in ("add_out_norm", "add_post_blocks_norm"):
        doc.only(name, (True,), "transformers normalises the output of the last block always")
    doc.only("add_qk_norm", (False,), "the format has no norms of queries and keys")
    doc.only("add_post_norm", (False,), "the format has no norms after the layers")
    dim, heads = doc.whole("hidden_size", "embedding_dim", default=4096), doc.whole("num_heads", default=8)
    eps = doc.number("norm_eps", default=1e-6)
    doc.only("cell_norm_eps", (eps,), f"norm_eps is {eps}, and the format has one epsilon for all norms")
    kernel = data.get("chunkwise_kernel") or ""
    if "siging" in str(kernel):
        raise ConfigError(
            f"config.json: chunkwise_kernel is {kernel!r}, but the format's step kernels have no sigmoid input gate"
        )
    qk, v = doc.number("qk_dim_factor", default=0.5), doc.number("v_dim_factor", default=1.0)
    doc.only(
        "head_dim", (int(dim * v) // heads,), f"hidden_size, v_dim_factor and num_heads give {int(dim * v)} / {heads}"
    )
    cell_eps = doc.number("eps", default=_KERNEL_EPS)
    return xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(
                layer_type="mlstm_v1",
                num_heads=heads,
                qk_dim_factor=qk,
                v_dim_factor=v,
                mlstm_cell=mLSTMCellConfig(
                    backend=mLSTMBackendNameAndKwargs("auto", {} if cell_eps == _KERNEL_EPS else {"eps": cell_eps}),
                    norm_eps=eps,
                    norm_type_v1="layernorm",
                    gate_soft_cap=_cap(doc, "gate_soft_cap", 15.0),
                    igate_bias_init_range=-10.0,
                    reset_at_document_boundaries=True,
                    reset_mode="exact",
                ),
            ),
            feedforward=_feedforward(doc, dim),
        ),
        context_length=doc.whole("context_length", default=DEFAULT_CONTEXT)
        if context_length is None
        else context_length,
        num_blocks=doc.whole("num_hidden_layers", "num_blocks", default=32),
        embedding_dim=dim,
        dtype=dtype,
        lm_head_dtype=dtype,
        norm_type="rmsnorm",
        norm_eps=eps,
        vocab_size=doc.whole("vocab_size", default=50304),
        tie_weights=doc.flag("tie_word_embeddings", default=False),
        logits_soft_cap=_cap(doc, "output_logit_soft_cap", 30.0),
    )


def ffn_width(dim: int, factor: float, multiple: int) -> int:
    """The format's width of the feed-forward layer.

    It adds `multiple` - 1 before it rounds down, which rounds a product just above a multiple down instead of up.
    """
    return int((dim * factor + multiple - 1) // multiple * multiple)


def _feedforward(doc: Document, dim: int) -> FeedForwardConfig:
    factor = doc.number("ffn_proj_factor", default=2.667)
    multiple = doc.whole("ffn_round_up_to_multiple_of", default=64)
    width = ffn_width(dim, factor, multiple)
    for one, rounding, up in ((factor, multiple, True), (factor, multiple, False), *_exact_factors(dim, width)):
        config = FeedForwardConfig(
            proj_factor=one,
            round_proj_up_to_multiple_of=rounding,
            round_proj_up_dim_up=up,
            act_fn="swish",
            ff_type="ffn_gated",
            embedding_dim=dim,
        )
        if config._proj_up_dim == width:
            config.embedding_dim = -1
            config._proj_up_dim = None
            return config
    raise ConfigError(f"{doc.name}: ffn_proj_factor {factor} gives a width of {width}, which cannot be computed here")


def _exact_factors(dim: int, width: int) -> Iterator[tuple[float, int, bool]]:
    yield width / dim, 1, True
    yield math.nextafter(width / dim, 0.0), 1, True
    yield math.nextafter(width / dim, math.inf), 1, False


def _cap(doc: Document, name: str, default: float) -> float | None:
    """A soft cap; written as null it is none."""
    if name in doc.data and doc.data[name] is None:
        return None
    return doc.number(name, default=default, at_least=1e-6)


def huggingface_from_config(config: xLSTMLMModelConfig) -> dict[str, Any]:
    """What of a config.json follows from the model.

    Raises:
        ConfigError: naming every field whose value the format cannot express.
    """
    problems = []

    def need(path: str, found: Any, wanted: Any, why: str = "") -> None:
        if found != wanted:
            problems.append(f"{path} is {found!r}, but the format has {why or repr(wanted)}")

    def give_up() -> None:
        if problems:
            raise ConfigError("the format xlstm of Hugging Face cannot express this model: " + "; ".join(problems))

    if set(config.block_kinds) != {"mlstm"} or config.mlstm_block is None:
        problems.append(f"model.slstm_at is {config.slstm_at!r}, but the format has no sLSTM blocks")
        give_up()
        raise AssertionError("unreachable")
    block = config.block_config(0)
    assert isinstance(block, mLSTMBlockConfig)
    layer, feedforward = block.layer_config(), block.feedforward_config()
    cell, memory = layer.cell_config(), layer.cell_config().backend.settings()
    inside = "model.mlstm_block.mlstm"
    need(f"{inside}.layer_type", layer.layer_type, "mlstm_v1")
    need("model.mlstm_block.add_post_norm", block.add_post_norm, False, "no norms after the layers")
    need("model.norm_type", config.norm_type, "rmsnorm")
    need("model.bias", config.bias, False, "biases in the gates alone")
    need("model.add_post_blocks_norm", config.add_post_blocks_norm, True, "a norm after the blocks")
    need(f"{inside}.mlstm_cell.norm_type_v1", cell.norm_type_v1, "layernorm")
    need(f"{inside}.mlstm_cell.add_qk_norm", cell.add_qk_norm, False, "no norms of queries and keys")
    need(f"{inside}.mlstm_cell.gate_linear_headwise", cell.gate_linear_headwise, False, "gates that see all features")
    need(
        f"{inside}.mlstm_cell.norm_eps",
        cell.norm_eps,
        config.norm_eps,
        f"one epsilon for all norms, and model.norm_eps is {config.norm_eps!r}",
    )
    need(f"the input gate of {inside}.mlstm_cell.backend", memory.gate, "exp", "the exponential one")
    for path, cap in (
        (f"{inside}.mlstm_cell.gate_soft_cap", cell.gate_soft_cap),
        ("model.logits_soft_cap", config.logits_soft_cap),
    ):
        if cap is None:
            problems.append(f"{path} is None, but the format caps always")
    width = 0
    if feedforward is None:
        problems.append("model.mlstm_block.feedforward is None, but the format has a gated feed-forward layer")
    else:
        path = "model.mlstm_block.feedforward"
        need(f"{path}.act_fn", feedforward.act_fn, "swish")
        need(f"{path}.ff_type", feedforward.ff_type, "ffn_gated")
        need(f"{path}.bias", feedforward.bias, False, "no biases there")
        width = feedforward._proj_up_dim or 0
    give_up()
    assert feedforward is not None
    assert feedforward.proj_factor is not None
    dim = config.embedding_dim
    factor, multiple = _format_factor(dim, width, feedforward.proj_factor, feedforward.round_proj_up_to_multiple_of)
    return {
        "architectures": ["xLSTMForCausalLM"],
        "model_type": "xlstm",
        "vocab_size": config.vocab_size,
        "hidden_size": dim,
        "embedding_dim": dim,
        "num_hidden_layers": config.num_blocks,
        "num_blocks": config.num_blocks,
        "num_heads": layer.num_heads,
        "use_bias": False,
        "tie_word_embeddings": config.tie_weights,
        "add_out_norm": True,
        "norm_eps": config.norm_eps,
        "norm_reduction_force_float32": True,
        "qk_dim_factor": layer.qk_dim_factor,
        "v_dim_factor": layer.v_dim_factor,
        "eps": memory.eps,
        "ffn_proj_factor": factor,
        "ffn_round_up_to_multiple_of": multiple,
        "gate_soft_cap": cell.gate_soft_cap,
        "output_logit_soft_cap": config.logits_soft_cap,
        "return_last_states": True,
        "mode": "inference",
    } | ({"context_length": config.context_length} if config.context_length > 0 else {})


def _format_factor(dim: int, width: int, factor: float, multiple: int) -> tuple[float, int]:
    """Factor and multiple that give `width` by the format's rounding; those of our config if they do."""
    candidates = [(factor, multiple), (width / dim, 64), (width / dim, 1), (math.nextafter(width / dim, math.inf), 1)]
    return next((f, m) for f, m in candidates if ffn_width(dim, f, m) == width)


def _notes(config: xLSTMLMModelConfig) -> list[str]:
    """What a user of the exported folder should know, a sentence each."""
    block = config.block_config(0)
    assert isinstance(block, mLSTMBlockConfig)
    layer = block.layer_config()
    notes = []
    for name, width in (("qk_dim_factor", layer.qk_dim), ("v_dim_factor", layer.v_dim)):
        if width % 64:
            notes.append(
                f"{name} gives {width} features, no multiple of 64: transformers makes states of another size then, so "
                "the model runs there with use_cache=False alone"
            )
    return notes


def entries(config: xLSTMLMModelConfig, weight_mode: str, head: bool = True) -> Iterator[Entry]:
    """Every tensor of the format in a weight mode, and what of ours it holds; `head`: whether `lm_head.weight` is among
    them."""
    yield single("backbone.embeddings.weight", "token_embedding.embedding")
    for i in range(config.num_blocks):
        theirs, ours = f"backbone.blocks.{i}", f"xlstm_block_stack.blocks_{i}"
        layer, cell = f"{theirs}.mlstm_layer", f"{ours}.xlstm.cell"
        yield single(f"{theirs}.norm_mlstm.weight", f"{ours}.norm.scale")
        maps = {f"{layer}.{name}": f"{ours}.xlstm.{name}" for name in "qkv"}
        maps[f"{layer}.ogate_preact"] = f"{ours}.xlstm.o"
        gates = {f"{layer}.{name}_preact": f"{cell}.{name}" for name in ("igate", "fgate")}
        up = {f"{theirs}.ffn.{name}": f"{ours}.ffn.{name}" for name in ("proj_up_gate", "proj_up")}
        if weight_mode == "fused":
            yield from dense(f"{layer}.qkv_opreact", *maps.values())
            yield from dense(f"{layer}.ifgate_preact", *gates.values())
            yield from dense(f"{theirs}.ffn.proj_up_gate_z", *up.values())
        else:
            for name, path in (maps | gates | up).items():
                yield from dense(name, path)
        yield single(f"{layer}.multihead_norm.weight", f"{cell}.out_norm.scale", FLAT)
        yield from dense(f"{layer}.out_proj", f"{ours}.xlstm.proj_down")
        yield single(f"{theirs}.norm_ffn.weight", f"{ours}.ffn_norm.scale")
        yield from dense(f"{theirs}.ffn.proj_down", f"{ours}.ffn.proj_down")
    yield single("backbone.out_norm.weight", "xlstm_block_stack.post_blocks_norm.scale")
    if head:
        yield head_of(config)


def _read(document: Mapping[str, Any], tensors: Tensors, options: ReadOptions) -> Weights:
    mode = document.get("weight_mode") or "single"
    if mode not in WEIGHT_MODES:
        raise ConfigError(f"config.json: weight_mode is {mode!r}, but must be 'single' or 'fused'")
    config = config_from_huggingface(document, compute_dtype(tensors, options.dtype), options.context_length)
    table = partial(entries, weight_mode=mode)
    weights = read_tied(config, tensors, table, "backbone.embeddings.weight", options)
    weights.record.weight_mode = mode
    if document.get("norm_reduction_force_float32") is False and config.dtype != "float32":
        weights.notes.append(
            f"config.json says norm_reduction_force_float32 False, but norms are computed in float32 here, not in "
            f"{config.dtype}"
        )
    return weights


def _write(config: xLSTMLMModelConfig, record: Record) -> Written:
    mode = record.weight_mode or "single"
    if mode not in WEIGHT_MODES:
        raise WeightsError(f"the weight mode is {mode!r}, but must be 'single' or 'fused'")
    document = huggingface_from_config(config) | {"weight_mode": mode}
    # transformers does not tie this model's head, and would make up one that is missing: a tied one is written, too.
    return Written(
        document, list(entries(config, mode)), _notes(config), {"force_bos_token_insert": True}, _DTYPE_NAMES
    )


FORMAT = Format(lambda document: document.get("model_type") == "xlstm", _read, xLSTMLMModelConfig, _write, _LANDMARKS)
