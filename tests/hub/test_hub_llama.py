"""Llama weights of the peer: against its mathematics, written anew in NumPy from its description."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.hub import WeightsError, config_from_xlstm_jax, params_from_xlstm_jax
from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.llama.llama_lm_model import LlamaLMModel

DIM, HEAD, HEADS, BLOCKS, VOCAB, WIDTH = 24, 4, 6, 2, 19, 32


def saved(**fields):
    """Metadata as the peer writes them."""
    config = {
        "vocab_size": VOCAB,
        "embedding_dim": DIM,
        "num_blocks": BLOCKS,
        "head_dim": HEAD,
        "qk_norm": False,
        "causal": True,
        "theta": 300.0,
        "ffn_multiple_of": 16,
        "ffn_dim_multiplier": 0.5,
        "use_bias": False,
        "scan_blocks": False,
        "attention_backend": "cudnn",
        "mask_across_document_boundaries": True,
        "dtype": "float32",
        "dropout_rate": 0.0,
        "add_embedding_dropout": False,
        "logits_soft_cap": "None",
        "parallel": {"remat": ["TransformerBlock"], "data_axis_size": -1},
    }
    model = {"model_class": "<class 'xlstm_jax.models.llama.llama.LlamaTransformer'>", "model_config": config | fields}
    return {"model": model}


def weights(rng, bias, qk_norm):
    """The peer's tensors of an unrolled model by name."""
    shapes = {"token_embedding.sharded.embedding": (1, VOCAB, DIM), "lm_head.out_dense.kernel": (DIM, VOCAB)}
    shapes["lm_head.out_norm.scale"] = (DIM,)
    for i in range(BLOCKS):
        block = f"block_stack.block_{i}"
        shapes |= {f"{block}.{part}.pre_norm.scale": (DIM,) for part in ("attn", "ffn")}
        shapes |= {f"{block}.attn.attn.dense_{name}.kernel": (DIM, HEADS, HEAD) for name in "qkv"}
        shapes[f"{block}.attn.attn.dense_out.kernel"] = (HEADS, HEAD, DIM)
        shapes |= {f"{block}.ffn.ffn.{name}.kernel": (DIM, WIDTH) for name in ("proj_up", "proj_up_gate")}
        shapes[f"{block}.ffn.ffn.proj_down.kernel"] = (WIDTH, DIM)
        if bias:
            shapes |= {f"{block}.attn.attn.dense_{name}.bias": (HEADS, HEAD) for name in "qkv"}
            shapes[f"{block}.attn.attn.dense_out.bias"] = (DIM,)
            shapes |= {f"{block}.ffn.ffn.{name}.bias": (WIDTH,) for name in ("proj_up", "proj_up_gate")}
            shapes[f"{block}.ffn.ffn.proj_down.bias"] = (DIM,)
        if qk_norm:
            shapes |= {f"{block}.attn.attn.{name}_norm.scale": (HEAD,) for name in "qk"}
    return {n: (n.endswith("scale") + 0.4 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}


def peer_logits(flat, tokens, theta, cap):
    """What the peer computes for one document: pairs (2i, 2i + 1) rotate, scores are divided by sqrt(heads)."""
    flat = {name: value.astype(np.float64) for name, value in flat.items()}

    def norm(x, scale):
        return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * scale

    def dense(x, name, equation):
        return np.einsum(equation, x, flat[f"{name}.kernel"]) + flat.get(f"{name}.bias", 0.0)

    seq = len(tokens)
    angle = np.arange(seq)[:, None, None] / theta ** (np.arange(0, HEAD, 2) / HEAD)

    def turned(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        return out

    x = flat["token_embedding.sharded.embedding"][0][tokens]
    for i in range(BLOCKS):
        attn, ffn = f"block_stack.block_{i}.attn", f"block_stack.block_{i}.ffn"
        h = norm(x, flat[f"{attn}.pre_norm.scale"])
        q, k, v = (dense(h, f"{attn}.attn.dense_{name}", "sd,dhe->she") for name in "qkv")
        if f"{attn}.attn.q_norm.scale" in flat:
            q, k = norm(q, flat[f"{attn}.attn.q_norm.scale"]), norm(k, flat[f"{attn}.attn.k_norm.scale"])
        scores = np.einsum("she,the->hst", turned(q) / np.sqrt(HEADS), turned(k))
        scores = np.exp(np.where(np.tri(seq, dtype=bool), scores, -np.inf))
        mixed = np.einsum("hst,the->she", scores / scores.sum(-1, keepdims=True), v)
        x = x + dense(mixed, f"{attn}.attn.dense_out", "she,hed->sd")
        h = norm(x, flat[f"{ffn}.pre_norm.scale"])
        gate, up = (dense(h, f"{ffn}.ffn.{name}", "sd,df->sf") for name in ("proj_up_gate", "proj_up"))
        x = x + dense(up * gate / (1 + np.exp(-gate)), f"{ffn}.ffn.proj_down", "sf,fd->sd")
    logits = norm(x, flat["lm_head.out_norm.scale"]) @ flat["lm_head.out_dense.kernel"]
    return logits if cap is None else cap * np.tanh(logits / cap)


def scanned(flat):
    """The names and arrays of the same weights in a scanned model."""
    first, out = "block_stack.block_0.", {}
    for name, value in flat.items():
        if name.startswith(first):
            rest = name.removeprefix(first)
            out[f"params/block_stack/block/{rest.replace('.', '/')}"] = np.stack(
                [flat[f"block_stack.block_{i}.{rest}"] for i in range(BLOCKS)]
            )
        elif "block_stack" not in name:
            out[name] = value
    return out


@pytest.mark.parametrize("everything", [False, True])
def test_weights_of_the_peer_give_the_peers_logits(everything):
    options = {"use_bias": True, "qk_norm": True, "logits_soft_cap": -7.0} if everything else {}
    flat = weights(np.random.default_rng(2), everything, everything)
    tokens = np.random.default_rng(0).integers(0, VOCAB, 13).astype(np.int32)
    wanted = peer_logits(flat, tokens, 300.0, 7.0 if everything else None)
    config = config_from_xlstm_jax(json.dumps(saved(scan_blocks=everything, **options)))
    assert isinstance(config, LlamaConfig)
    assert config.attention_scale == "num_heads"
    assert config.parallel.remat == ["TransformerBlock"]
    for tensors in (flat, scanned(flat)):
        params = params_from_xlstm_jax(tensors, config)
        logits = jax.jit(LlamaLMModel(config).apply)({"params": params}, tokens[None])
        assert relative_error(logits[0], wanted) <= tolerance("float32")


def test_every_tensor_is_accounted_for():
    flat = weights(np.random.default_rng(2), False, False)
    config = config_from_xlstm_jax(saved())
    broken = dict(flat)
    del broken["block_stack.block_1.ffn.pre_norm.scale"]
    broken["block_stack.block_0.attn.attn.dense_q.kernel"] = np.zeros((DIM, HEADS + 1, HEAD), np.float32)
    broken["block_stack.block_1.attn.attn.dense_v.kernel"] = np.zeros((DIM, HEAD, HEADS), np.float32)
    broken["block_stack.block_1.attn.attn.dense_out.kernel"] = np.zeros((HEADS * HEAD, DIM), np.float32)
    broken["block_stack.block_7.ffn.pre_norm.scale"] = np.zeros(DIM, np.float32)
    broken["lm_head.out_dense.bias"] = np.zeros(VOCAB, np.float32)
    with pytest.raises(WeightsError) as error:
        params_from_xlstm_jax(broken, config)
    for part in (
        "(6 problems)",
        "missing: block_stack.block_1.ffn.pre_norm.scale (24,), which holds block_stack.blocks_1.ffn_norm.scale",
        "mis-shaped: block_stack.block_0.attn.attn.dense_q.kernel is (24, 7, 4), but the config asks for (24, 6, 4)",
        "mis-shaped: block_stack.block_1.attn.attn.dense_v.kernel is (24, 4, 6), but the config asks for (24, 6, 4)",
        "mis-shaped: block_stack.block_1.attn.attn.dense_out.kernel is (24, 24), but the config asks for (6, 4, 24)",
        "surplus: block_stack.block_7.ffn.pre_norm.scale, but the model has the blocks 0 to 1",
        "surplus: lm_head.out_dense.bias",
    ):
        assert part in str(error.value)


def test_a_llama_is_known_without_its_class_and_gets_the_peers_defaults():
    config = config_from_xlstm_jax(
        {"vocab_size": 8, "embedding_dim": 256, "num_blocks": 1, "head_dim": 64, "theta": 1e4}
    )
    assert isinstance(config, LlamaConfig)
    assert (config.scan_blocks, config.mask_across_document_boundaries, config.ffn_width) == (True, False, 704)


@pytest.mark.parametrize("field", [{"head_dim": 64}, {"theta": 1e4}, {"ffn_multiple_of": 32}])
def test_a_llama_whose_defaults_are_left_out_is_known_by_any_field_of_its_own(field):
    config = config_from_xlstm_jax({"config": {"embedding_dim": 256, "num_blocks": 2, "dtype": "float32"} | field})
    assert isinstance(config, LlamaConfig)
    # As for an xLSTM, the size of the vocabulary may follow later.
    assert (config.head_dim, config.vocab_size) == (field.get("head_dim", 128), -1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"causal": False}, "causal is False"), ({"head_dim": 7}, "head_dim is 7"), ({"num_blocks": "two"}, "'two'")],
)
def test_what_our_llama_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_from_xlstm_jax(saved(**fields))
