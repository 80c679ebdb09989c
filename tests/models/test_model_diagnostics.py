"""What a model shows of its memories is what a sum over all tokens, in float64, makes of its parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import VOCAB, assert_close, build, model_config, random_like, tokens_of

from xlstm_jax.evaluation.memory import measures
from xlstm_jax.kernels.slstm import slstm, zero_state
from xlstm_jax.kernels.slstm.recurrent import Options
from xlstm_jax.kernels.slstm.trace import trace
from xlstm_jax.models.diagnostics import diagnose
from xlstm_jax.models.language_model import build_model, param_shapes
from xlstm_jax.models.layouts import to_runs
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.stack import spans
from xlstm_jax.models.xlstm_parallel.blocks.mlstm import cell
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel

SEQ = 11
CONFIG = model_config(num_blocks=3, slstm_block=sLSTMBlockConfig(), slstm_at=[2])


@pytest.fixture(scope="module")
def model() -> tuple[xLSTMLMModel, Any]:
    """Two mLSTM blocks and an sLSTM block, and random parameters."""
    return build(CONFIG)


@pytest.fixture(scope="module")
def found(model: tuple[xLSTMLMModel, Any]) -> Any:
    blocks, state = jax.jit(functools.partial(diagnose, model[0]))(model[1], tokens_of(2, SEQ))
    return jax.tree.map(np.asarray, (blocks, state))


def test_the_memory_of_an_mlstm_is_a_sum_over_its_tokens(model: tuple[xLSTMLMModel, Any], found: Any) -> None:
    entry = found[0][0]
    assert (entry.block, entry.kind) == (0, "mlstm")
    # The first block, from its parameters; row 1.
    params: Any = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model[1])
    layer = params["xlstm_block_stack"]["blocks_0"]
    x = params["token_embedding"]["embedding"][np.asarray(tokens_of(2, SEQ))[1]]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * layer["norm"]["scale"]
    x = x + layer["norm"].get("bias", 0)
    own = layer["xlstm"]
    q, k, v = ((x @ own[name]["kernel"]).reshape(SEQ, 2, -1) for name in "qkv")
    i, f = (x @ own["cell"][name]["kernel"] + own["cell"][name]["bias"] for name in ("igate", "fgate"))
    gates, q = 1 / (1 + np.exp(-f)), q / np.sqrt(q.shape[-1])

    trace, floor = entry.trace, np.zeros((SEQ, 2))
    left = np.zeros((SEQ, SEQ, 2))
    for t in range(SEQ):
        for j in range(t + 1):
            left[t, j] = np.exp(i[j]) * np.prod(gates[j + 1 : t + 1], axis=0)
    C = np.einsum("tjh,jhd,jhe->thde", left, k, v)
    n = np.einsum("tjh,jhd->thd", left, k)
    m = np.zeros((SEQ + 1, 2))
    for t in range(SEQ):
        m[t] = np.maximum(np.log(gates[t]) + m[t - 1], i[t])
    m = m[:-1]
    for name, truth in {
        "q": q,
        "k": k,
        "log_i": i,
        "log_f": np.log(gates),
        "m": m,
        "normaliser": (n * q).sum(-1) * np.exp(-m),
        "floor": np.exp(floor - m),
        "memory_norm": np.sqrt((C**2).sum((-2, -1))) * np.exp(-m),
        "normaliser_norm": np.sqrt((n**2).sum(-1)) * np.exp(-m),
    }.items():
        assert_close(getattr(trace, name)[1], truth)
    assert_close(trace.last[1], C[-1] * np.exp(-m[-1])[:, None, None])

    assert_close(measures.half_life(trace.log_f[1]), np.log(2) / -np.log(gates).mean(0))
    assert_close(measures.gate_map(entry.trace, 1), left * np.exp(-m)[:, None])
    reads = np.abs(np.einsum("thd,jhd->tjh", q, k)) * left / np.maximum(np.abs((n * q).sum(-1)), 1)[:, None]
    assert_close(measures.attention_map(entry.trace, 1), reads)
    spread, distance = measures.effective_context(measures.attention_map(entry.trace, 1))
    for head in range(2):
        shares = reads[6, :7, head] / reads[6, :7, head].sum()
        assert spread[6, head] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        assert distance[6, head] == pytest.approx((shares * np.arange(6, -1, -1)).sum(), rel=1e-4)
    assert_close(measures.log10_norm(trace.memory_norm, trace.m)[1], np.log10(np.sqrt((C**2).sum((-2, -1)))))
    values = np.linalg.eigvalsh(np.swapaxes(C[-1], -2, -1) @ C[-1])
    assert_close(measures.stable_rank(trace.last[1]), values.sum(-1) / values[:, -1])


def test_what_an_slstm_reads_is_a_mean_of_its_cell_inputs(found: Any) -> None:
    entry = found[0][2]
    assert (entry.block, entry.kind) == (2, "slstm")
    trace = entry.trace
    last = found[1][2].memory
    for name in ("c", "n", "m"):
        assert_close(getattr(trace, name)[:, -1], getattr(last, name))
    assert_close((trace.o * trace.c / trace.n)[:, -1], last.y)
    maps = measures.attention_map(trace, 1)
    assert_close(maps.sum(1), np.ones(maps.shape[::2]))
    for head in range(maps.shape[-1]):
        gates = [np.asarray(x[1, :, head], np.float64) for x in (trace.log_i, trace.log_f, trace.m)]
        weights = measures.retention(*gates) / trace.n[1, :, head][:, None]
        assert_close(np.einsum("tjd,jd->td", weights, trace.z[1, :, head]), (trace.c / trace.n)[1, :, head])
        assert_close(weights.mean(-1), maps[..., head])
    true = np.log10(np.linalg.norm(trace.c.astype(np.float64) * np.exp(trace.m.astype(np.float64)), axis=-1))
    assert_close(measures.log10_feature_norm(trace.c, trace.m), true)


def test_the_gates_of_an_slstm_have_seen_its_last_output() -> None:
    rng = np.random.default_rng(0)
    wx, r, b = rng.normal(size=(1, 7, 4, 2, 3)), rng.normal(size=(4, 2, 3, 3)), rng.normal(size=(4, 2, 3))
    reset = np.arange(7)[None] == 4
    with jax.enable_x64(True):
        options = Options(jnp.dtype("float64"), False, None, None)
        shown = trace(wx, r, b, zero_state(1, 2, 3, jnp.dtype("float64")), reset=reset, options=options)
        y = np.concatenate([np.zeros((1, 1, 2, 3)), slstm(wx, r, b, reset=reset)], axis=1)[:, :-1]
        y[:, 4] = 0
    i, f, z, o = np.moveaxis(wx + b + np.einsum("ghde,bthe->btghd", r, y), 2, 0)
    truth = {"log_i": i, "log_f": -np.log1p(np.exp(-f)), "z": np.tanh(z), "o": 1 / (1 + np.exp(-o))}
    for name, values in truth.items():
        assert_close(getattr(shown, name), values, 1e-12)


def test_scanned_blocks_and_pieces_of_a_text_show_the_same(model: tuple[xLSTMLMModel, Any], found: Any) -> None:
    config = dataclasses.replace(CONFIG, scan_blocks=True)
    params = to_runs(model[1], spans(config))
    read = jax.jit(functools.partial(diagnose, xLSTMLMModel(config)))
    first, state = read(params, tokens_of(2, SEQ)[:, :5])
    second, _ = read(params, tokens_of(2, SEQ)[:, 5:], state=state)
    assert [(one.block, one.kind) for one in first] == [(0, "mlstm"), (1, "mlstm"), (2, "slstm")]
    for one, two, whole in zip(first, second, found[0], strict=True):
        for name, truth in whole.trace._asdict().items():
            pieces = [np.asarray(getattr(part.trace, name)) for part in (one, two)]
            assert_close(pieces[1] if name == "last" else np.concatenate(pieces, axis=1), truth, 1e-4)


def test_a_transformer_shows_its_softmax() -> None:
    config = LlamaConfig(embedding_dim=16, num_blocks=1, head_dim=4, num_kv_heads=2, dtype="float32", vocab_size=VOCAB)
    transformer, params = build_model(config), random_like(param_shapes(config))
    ((entry,), _) = jax.jit(functools.partial(diagnose, transformer))(params, tokens_of(1, 6))
    maps = measures.attention_map(jax.tree.map(np.asarray, entry.trace))
    assert maps.shape == (6, 6, 4)
    # The rotation is by the distance alone: that of a token and itself is none.
    blocks: Any = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    own = blocks["block_stack"]["blocks_0"]
    x = blocks["token_embedding"]["embedding"][np.asarray(tokens_of(1, 6))[0]]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * own["attn_norm"]["scale"]
    query = (x @ own["attn"]["dense_q"]["kernel"]).reshape(6, 4, 4)
    key = np.repeat((x @ own["attn"]["dense_k"]["kernel"]).reshape(6, 2, 4), 2, axis=1)

    def turned(y: np.ndarray) -> np.ndarray:
        angles = np.arange(6)[:, None, None] * config.theta ** -(np.arange(2) / 2)
        first, second = y[..., :2], y[..., 2:]
        sin, cos = np.sin(angles), np.cos(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    logits = np.exp(np.einsum("thd,jhd->tjh", turned(query), turned(key)) / 2) * np.tri(6)[..., None]
    assert_close(maps, logits / logits.sum(1, keepdims=True))


def test_nothing_is_computed_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(num_blocks=2, scan_blocks=True)
    scanned, params = build(config)

    def program() -> str:
        apply = jax.jit(lambda params, tokens: scanned.apply({"params": params}, tokens))
        return apply.lower(params, tokens_of(2, SEQ)).as_text()

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a trace was made")

    usual = program()
    monkeypatch.setattr(cell, "trace", refuse)
    assert "diagnostics" not in jax.eval_shape(scanned.init, jax.random.key(0), tokens_of(1, 2))
    with pytest.raises(AssertionError, match="a trace was made"):
        jax.eval_shape(functools.partial(diagnose, scanned), params, tokens_of(1, 2))
    monkeypatch.setattr(cell, "keep_trace", lambda module, trace: None)
    assert program() == usual
