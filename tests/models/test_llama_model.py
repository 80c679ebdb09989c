"""The Llama against an independent NumPy one in float64, and the laws of padding, packing and handing on its state."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.layouts import to_runs
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.llama.llama_lm_model import LlamaLMModel
from xlstm_jax.models.stack import spans

VOCAB = 29
TOLERANCE = tolerance("float32")


def config_of(**fields):
    values = {"embedding_dim": 32, "num_blocks": 2, "vocab_size": VOCAB, "context_length": 40, "head_dim": 8}
    return LlamaConfig(**values | {"ffn_dim": 24} | fields)


@functools.cache
def built(**fields):
    """A model, and parameters in which nothing is zero or one by chance."""
    model = LlamaLMModel(config_of(**fields))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "scale") + 0.3 * rng.standard_normal(leaf.shape), jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(model_fields, **static):
    model = LlamaLMModel(config_of(**dict(model_fields)))
    return jax.jit(functools.partial(model.apply, **static))


def scanned(model, params):
    """The same model with a scan over its blocks."""
    config = dataclasses.replace(model.config, scan_blocks=True)
    return LlamaLMModel(config), to_runs(params, spans(config))


def call(model, params, tokens, *, return_state=False, **keywords):
    """`model.apply`, compiled once for each config and shape."""
    fields = tuple(sorted(model.config.to_dict().items()))
    return compiled(fields, return_state=return_state)({"params": params}, tokens, **keywords)


def tokens_of(batch, seq, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, seq)).astype(np.int32)


def close(actual, wanted, factor=1.0):
    assert relative_error(actual, wanted) <= factor * TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# An independent implementation: one document, one row, float64, complex rotations, a loop over positions.
# ---------------------------------------------------------------------------------------------------------------------


def reference(params, tokens, cfg, interleaved=False):
    """Logits (seq, vocab) of one document; `interleaved` pairs features 2i and 2i + 1 in the rotation."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    heads, dim = cfg.embedding_dim // cfg.head_dim, cfg.head_dim

    def norm(x, scale, eps=cfg.norm_eps):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * scale

    def linear(x, p):
        return x @ p["kernel"] + p.get("bias", 0.0)

    def rotated(x, position):
        frequency = cfg.theta ** (-2.0 * np.arange(dim // 2) / dim)
        turn = np.exp(1j * position * frequency)
        real, imaginary = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : dim // 2], x[..., dim // 2 :])
        z = (real + 1j * imaginary) * turn
        if interleaved:
            return np.stack([z.real, z.imag], -1).reshape(x.shape)
        return np.concatenate([z.real, z.imag], -1)

    x = params["token_embedding"]["embedding"][tokens]
    for i in range(cfg.num_blocks):
        block = params["block_stack"][f"blocks_{i}"]
        attn, h = block["attn"], norm(x, block["attn_norm"]["scale"])
        q, k, v = (linear(h, attn[f"dense_{n}"]).reshape(len(tokens), -1, dim) for n in "qkv")
        if cfg.qk_norm:
            q, k = norm(q, attn["q_norm"]["scale"]), norm(k, attn["k_norm"]["scale"])
        q = np.stack([rotated(row, t) for t, row in enumerate(q)])
        k = np.stack([rotated(row, t) for t, row in enumerate(k)])
        mixed = np.zeros((len(tokens), heads, dim))
        for t in range(len(tokens)):
            for head in range(heads):
                group = head // (heads // k.shape[1])
                score = k[: t + 1, group] @ q[t, head]
                score = score / np.sqrt(dim if cfg.attention_scale == "head_dim" else heads)
                weight = np.exp(score - score.max())
                mixed[t, head] = weight / weight.sum() @ v[: t + 1, group]
        x = x + linear(mixed.reshape(len(tokens), -1), attn["dense_out"])
        h, ffn = norm(x, block["ffn_norm"]["scale"]), block["ffn"]
        gate = linear(h, ffn["proj_up_gate"])
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, ffn["proj_up"]), ffn["proj_down"])
    x = norm(x, params["block_stack"]["post_blocks_norm"]["scale"])
    table = params["token_embedding"]["embedding"].T if cfg.tie_weights else params["lm_head"]["kernel"]
    logits = x @ table
    return logits if cfg.logits_soft_cap is None else cfg.logits_soft_cap * np.tanh(logits / cfg.logits_soft_cap)


CASES = {
    "plain": {},
    "grouped": {"num_kv_heads": 2, "qk_norm": True, "theta": 500.0},
    "all": {
        "num_kv_heads": 1,
        "use_bias": True,
        "tie_weights": True,
        "logits_soft_cap": 5.0,
        "attention_scale": "num_heads",
        "scan_blocks": True,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_an_independent_implementation(case):
    model, params = built(**CASES[case] | {"scan_blocks": False})
    tokens = tokens_of(1, 11)
    wanted = reference(params, tokens[0], model.config)
    if "scan_blocks" in CASES[case]:
        model, params = scanned(model, params)
    assert call(model, params, tokens).dtype == jnp.float32
    close(call(model, params, tokens)[0], wanted)


def test_float64_is_float64_throughout():
    with jax.enable_x64():
        model, params = built(num_kv_heads=2, dtype="float64", lm_head_dtype="float64")
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        tokens = tokens_of(1, 9)
        logits, _ = call(model, params, tokens, return_state=True)
        assert relative_error(logits[0], reference(params, tokens[0], model.config)) < 1e-13


# ---------------------------------------------------------------------------------------------------------------------
# Batches as they come
# ---------------------------------------------------------------------------------------------------------------------

LENGTHS = (5, 9, 1)
WIDTH = 12


def arranged(kind):
    """Texts, and (tokens, keywords, places): where each of them lies in rows made in some way."""
    texts = [tokens_of(1, length, seed=length)[0] for length in LENGTHS]
    if kind == "packed":
        row, starts = np.concatenate(texts), np.cumsum([0, *LENGTHS[:-1]])
        borders = np.zeros((1, len(row)), bool)
        borders[0, starts] = True
        places = [(0, start + np.arange(len(text))) for start, text in zip(starts, texts, strict=True)]
        return texts, row[None], {"document_borders": borders}, places
    # Every text padded on the right, on the left, and all over the row.
    texts, places = texts * 3, []
    tokens, mask = np.full((len(texts), WIDTH), VOCAB - 1, np.int32), np.zeros((len(texts), WIDTH), bool)
    for i, text in enumerate(texts):
        scattered = np.sort(np.random.default_rng(i).permutation(WIDTH)[: len(text)])
        at = [np.arange(len(text)), np.arange(WIDTH - len(text), WIDTH), scattered][i // len(LENGTHS)]
        tokens[i, at], mask[i, at] = text, True
        places.append((i, at))
    return texts, tokens, {"mask": mask}, places


def text_losses(model, params, tokens, keywords, places):
    """Summed squares of each text's logits: what a loss and its gradient can tell apart."""
    logits = model.apply({"params": params}, tokens, **keywords)
    return jnp.stack([jnp.sum(jnp.tanh(logits[row, at]) ** 2) for row, at in places])


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_a_text_alone_is_the_text_in_any_batch_for_loss_and_gradient(kind):
    model, params = built(num_kv_heads=2)
    texts, tokens, keywords, places = arranged(kind)

    def alone(params):
        each = [text_losses(model, params, t[None], {}, [(0, np.arange(len(t)))]) for t in texts[: len(LENGTHS)]]
        losses = jnp.concatenate(each * (len(texts) // len(LENGTHS)))
        return jnp.sum(losses), losses

    def together(params):
        losses = text_losses(model, params, tokens, keywords, places)
        return jnp.sum(losses), losses

    wanted, gradient = jax.jit(jax.grad(alone, has_aux=True))(params)[::-1]
    found, other = jax.jit(jax.grad(together, has_aux=True))(params)[::-1]
    close(found, wanted)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(gradient), strict=True):
        assert np.isfinite(a).all()
        close(a, b)


def test_without_masking_documents_see_each_other():
    model, params = built(mask_across_document_boundaries=False)
    _, tokens, keywords, _ = arranged("packed")
    np.testing.assert_array_equal(call(model, params, tokens, **keywords), call(model, params, tokens))


@pytest.mark.parametrize(("kind", "scan_blocks"), [("padded", False), ("packed", False), ("packed", True)])
def test_prefill_in_pieces_and_steps_give_the_logits_of_the_whole(kind, scan_blocks):
    model, params = built(num_kv_heads=2)
    texts, tokens, keywords, places = arranged(kind)
    wanted = [reference(params, text, model.config) for text in texts]
    if scan_blocks:
        model, params = scanned(model, params)
    for cuts in ([0, 4, tokens.shape[1]], list(range(tokens.shape[1] + 1))):
        state, parts = model.init_state(len(tokens), max(LENGTHS)), []
        for start, end in itertools.pairwise(cuts):
            piece = {name: flag[:, start:end] for name, flag in keywords.items()}
            logits, state = call(model, params, tokens[:, start:end], state=state, return_state=True, **piece)
            parts.append(logits)
        logits = jnp.concatenate(parts, axis=1)
        for (row, at), expected in zip(places, wanted, strict=True):
            close(logits[row, at], expected)


def test_decoding_goes_on_from_rows_of_different_lengths():
    model, params = built(num_kv_heads=2)
    texts, tokens, keywords, _ = arranged("padded")
    more = tokens_of(len(texts), 3, seed=8)
    rows = [reference(params, np.concatenate([t, m]), model.config)[-3:] for t, m in zip(texts, more, strict=True)]
    _, state = call(model, params, tokens, return_state=True, **keywords)
    for i in range(3):
        logits, state = call(model, params, more[:, i : i + 1], state=state, return_state=True)
        close(logits[:, 0], np.stack([row[i] for row in rows]))
    np.testing.assert_array_equal(state[0].length, [len(text) + 3 for text in texts])


def test_scanned_blocks_have_the_same_gradient():
    model, params = built()
    other, stacked = scanned(model, params)
    tokens = tokens_of(2, 6)

    def loss(model):
        return lambda params: jnp.sum(jnp.tanh(call(model, params, tokens)) ** 2)

    wanted = to_runs(jax.jit(jax.grad(loss(model)))(params), spans(other.config))
    jax.tree.map(close, jax.jit(jax.grad(loss(other)))(stacked), wanted)


@pytest.mark.parametrize("part", ["TransformerBlock", "AttnBlock", "FFNBlock"])
def test_parts_are_recomputed_by_name(part):
    model, params = built()
    config = LlamaConfig.from_dict(model.config.to_dict() | {"parallel": {"remat": [part]}})
    for candidate, found in ((model, 0), (LlamaLMModel(config), 2)):
        jaxpr = str(jax.make_jaxpr(lambda p, m=candidate: m.apply({"params": p}, tokens_of(1, 5)))(params))
        assert jaxpr.count("checkpoint[") + jaxpr.count("remat2[") + jaxpr.count("remat[") == found


# ---------------------------------------------------------------------------------------------------------------------
# The cache's limits
# ---------------------------------------------------------------------------------------------------------------------


def test_tokens_without_room_in_the_cache_are_nan_and_no_others():
    model, params = built()
    tokens = tokens_of(2, 7)
    mask = np.array([[True] * 7, [True] * 3 + [False] * 4])
    logits, state = call(model, params, tokens, mask=mask, state=model.init_state(2, 5), return_state=True)
    whole = call(model, params, tokens)
    assert np.isnan(logits[0, 5:]).all()
    close(logits[0, :5], whole[0, :5])
    close(logits[1, :3], whole[1, :3])
    logits, state = call(model, params, tokens[:, :1], state=state, return_state=True)
    assert np.isnan(logits[0]).all()
    assert np.isfinite(logits[1]).all()
    # A new document finds the room free again.
    border = np.ones((2, 1), bool)
    logits = call(model, params, tokens[:, :1], document_borders=border, state=state)
    close(logits, whole[:, :1])


def test_more_tokens_than_room_are_refused_where_shapes_tell():
    model, params = built()
    with pytest.raises(ValueError, match="7 positions, but the state has room for 5"):
        call(model, params, tokens_of(1, 7), state=model.init_state(1, 5))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 5, 8\), but this stack and batch need \(1, 4, 5, 8\)"):
        call(model, params, tokens_of(1, 3), state=model.init_state(2, 5))
    with pytest.raises(ValueError, match="state has 1 entries, but must be a tuple of 2, one a run of blocks"):
        call(model, params, tokens_of(1, 3), state=model.init_state(1, 5)[:1])
    with pytest.raises(ValueError, match="context_length is -1, but a cache"):
        LlamaLMModel(config_of(context_length=-1)).init_state(1)


def test_a_cache_made_by_a_call_has_room_for_the_context_or_the_call():
    model, params = built(context_length=6)
    for seq, room in ((4, 6), (9, 9)):
        _, state = call(model, params, tokens_of(2, seq), return_state=True)
        assert state[0].capacity == room
    assert model.state_bytes * 3 == sum(leaf.nbytes for leaf in jax.tree.leaves(model.init_state(3)))


def test_training_makes_no_cache():
    model, params = built(context_length=4096)
    jaxpr = str(jax.make_jaxpr(lambda p, t: model.apply({"params": p}, t, method="features"))(params, tokens_of(1, 6)))
    assert "4096" not in jaxpr


def test_dropout_needs_training_and_is_random_then():
    model, params = built(dropout=0.5, add_embedding_dropout=True)
    tokens = tokens_of(1, 6)
    calm = call(model, params, tokens)
    close(calm[0], reference(params, tokens[0], model.config))
    draws = [model.apply({"params": params}, tokens, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert not np.allclose(draws[0], draws[1])


def test_bfloat16_stays_near_float32():
    model = LlamaLMModel(config_of())
    tokens = tokens_of(2, 8)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    low = LlamaLMModel(dataclasses.replace(model.config, dtype="bfloat16"))
    logits, state = call(low, params, tokens, return_state=True)
    assert logits.dtype == jnp.float32
    assert state[0].key.dtype == jnp.bfloat16
    assert relative_error(logits, call(model, params, tokens)) <= 2 * tolerance("bfloat16")


# ---------------------------------------------------------------------------------------------------------------------
# Config and counts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "blocks", "count"), [(768, 12, 162_220_800), (2048, 24, 1_420_396_544), (4096, 32, 6_863_196_160)]
)
def test_published_sizes_have_their_parameters(dim, blocks, count):
    model = build_model(LlamaConfig(embedding_dim=dim, num_blocks=blocks, vocab_size=50304))
    assert isinstance(model, LlamaLMModel)
    assert model.param_count == count


def test_flops_follow_from_the_widths():
    model = LlamaLMModel(LlamaConfig(embedding_dim=2048, num_blocks=24, vocab_size=50304, num_kv_heads=4))
    maps = 2 * 2048 * (2048 + 2 * 512 + 2048 + 3 * 5504)
    # 1000 queries see 1 to 1000 keys: twice two operations a feature of each pair.
    pairs = 4 * 2048 * (1000 * 1001 / 2) / 1000
    expected = 24 * (maps + pairs) + 2 * 2048 * 50304
    assert model.flops_per_token(1000) == expected
    assert model.flops_per_token(1000, train=True) == 3 * expected


def test_the_config_survives_json():
    config = config_of(num_kv_heads=2, attention_scale="num_heads", logits_soft_cap=30.0)
    assert LlamaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 12}, "head_dim is 12, but must divide embedding_dim = 32"),
        ({"head_dim": 1}, "head_dim is 1, but must be even"),
        ({"num_kv_heads": 3}, "num_kv_heads is 3, but must divide the number of query heads"),
        ({"attention_scale": "num_head"}, "did you mean 'num_heads'"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"theta": 0.0}, "theta is 0.0, but must be a number > 0"),
        ({"scan_blocks": 1}, "scan_blocks is 1, but must be true or false"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**fields)


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="vocab_size is -1, but must be set"):
        LlamaLMModel(config_of(vocab_size=-1)).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
