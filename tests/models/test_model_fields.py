"""Every field of the configs does what it says."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
    LAYER_TYPES,
    ROUNDING,
    VOCAB,
    assert_close,
    assert_trees_close,
    backend,
    build,
    model_config,
    tokens_of,
)

from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.layouts import to_blocks, to_runs
from xlstm_jax.models.stack import spans
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel

SEQ = 7


def shapes_of(config):
    model = xLSTMLMModel(config)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def same_params(config, other):
    """Parameters for `other`: those of `config` where the names and shapes agree, else fresh ones."""
    _, params = build(config)
    model, fresh = build(other)
    old = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    return model, jax.tree_util.tree_map_with_path(
        lambda path, x: (
            old[jax.tree_util.keystr(path)]
            if getattr(old.get(jax.tree_util.keystr(path)), "shape", None) == x.shape
            else x
        ),
        fresh,
    )


def one_block(layer_type="mlstm_v1", **changes):
    return model_config(layer_type, **({"num_blocks": 1} | changes))


def apply(model, params, **arguments):
    return jax.jit(lambda p, t: model.apply({"params": p}, t, **arguments))(params, tokens_of(2, SEQ))


@functools.cache
def base_logits(layer_type):
    return apply(*build(one_block(layer_type)))


CELL = {
    "norm_eps": 0.5,
    "gate_soft_cap": 0.5,
    "gate_linear_headwise": True,
    "add_qk_norm": True,
}
LAYER = {"qk_dim_factor": 0.5, "v_dim_factor": 0.5, "num_heads": 4}
LAYER_MLSTM = {
    "proj_factor": 3.0,
    "conv1d_kernel_size": 3,
    "qkv_proj_blocksize": 2,
    "vmap_qk": True,
    "debug_cell": True,
    "gate_input": "x_mlstm",
    "round_proj_up_to_multiple_of": 24,
}
MODEL = {
    "norm_type": "rmsnorm",
    "norm_eps": 0.5,
    "add_post_blocks_norm": False,
    "bias": True,
    "logits_soft_cap": 0.5,
    "tie_weights": True,
    "num_blocks": 2,
    "dtype": "bfloat16",
    "lm_head_dtype": "bfloat16",
}
FEEDFORWARD = {"act_fn": "relu", "ff_type": "ffn", "bias": True, "proj_factor": 2.0}
CHANGES = [
    *(("mlstm", "cell", name, value) for name, value in CELL.items()),
    ("mlstm_v1", "cell", "add_qk_norm", True),
    ("mlstm_v1", "cell", "gate_soft_cap", 0.5),
    ("mlstm_v1", "cell", "norm_type_v1", "rmsnorm"),
    *((layer_type, "layer", name, value) for layer_type in LAYER_TYPES for name, value in LAYER.items()),
    *(("mlstm", "layer", name, value) for name, value in LAYER_MLSTM.items()),
    ("mlstm", "layer", "gate_input", "x_mlstm_conv"),
    ("mlstm", "layer", "gate_input", "x_mlstm_conv_act"),
    *(("mlstm_v1", "model", name, value) for name, value in MODEL.items()),
    ("mlstm_v1", "", "add_post_norm", True),
    *(("mlstm_v1", "feedforward", name, value) for name, value in FEEDFORWARD.items()),
    ("mlstm_v1", "", "feedforward", None),
]


@pytest.mark.parametrize(("layer_type", "part", "name", "value"), CHANGES)
def test_the_field_changes_the_function(layer_type, part, name, value):
    change = {name: value}
    if part == "feedforward":
        base = {"proj_factor": 1.5, "act_fn": "swish", "round_proj_up_to_multiple_of": 8}
        change = {"feedforward": base | change}
    elif part in ("cell", "layer"):
        change = {part: change}
    logits = apply(*same_params(one_block(layer_type), one_block(layer_type, **change)))
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert np.abs(logits - base_logits(layer_type)).max() > 1e-4


def test_norm_type_v1_speaks_of_the_output_norm_of_v1_alone():
    """`norm_type` leaves it as it is there, and is the one that counts in the layer type mlstm."""
    config = one_block("mlstm", cell={"norm_type_v1": "rmsnorm"})
    np.testing.assert_array_equal(apply(*same_params(one_block("mlstm"), config)), base_logits("mlstm"))


def test_reset_fgate_value_says_how_far_the_forget_gate_closes():
    tokens, borders = tokens_of(1, SEQ), jnp.zeros((1, SEQ), bool).at[0, 3].set(True)

    def logits(value):
        model, params = build(one_block(cell={"reset_at_document_boundaries": True, "reset_fgate_value": value}))
        return model.apply({"params": params}, tokens, document_borders=borders)

    assert np.abs(logits(-25.0) - logits(0.0)).max() > 1e-3
    # Of what came before there is left e^-25 = 1e-11, less than a rounding.
    assert_close(logits(-25.0), logits(-30.0), ROUNDING)


def test_the_reset_value_is_not_soft_capped():
    tokens, borders = tokens_of(1, SEQ), jnp.zeros((1, SEQ), bool).at[0, 3].set(True)
    model, params = build(one_block(cell={"reset_at_document_boundaries": True, "gate_soft_cap": 2.0}))
    packed = model.apply({"params": params}, tokens, document_borders=borders)
    alone = model.apply({"params": params}, tokens[:, 3:])
    assert_close(packed[:, 3:], alone)


def test_gate_dtype_is_the_dtype_of_the_gates():
    logits = {}
    for dtype in ("float32", "bfloat16"):
        logits[dtype] = apply(*build(one_block(cell={"gate_dtype": dtype})))
    assert 1e-5 < np.abs(logits["float32"] - logits["bfloat16"]).max() < 0.3


def test_bfloat16_keeps_float32_parameters_and_state():
    model, params = build(one_block("mlstm", dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    features, state = model.apply({"params": params}, tokens_of(2, SEQ), method="features", return_state=True)
    assert features.dtype == jnp.bfloat16
    assert {x.dtype for s in state for x in s.memory} == {jnp.dtype("float32")}
    assert_close(apply(model, params), base_logits("mlstm"), 0.1)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("chunkwise", {"chunk_size": 3}),
        ("chunkwise", {}),
        ("batched", {"chunk_size": 3}),
        ("parallel", {}),
        ("recurrent", {"use_scan": True}),
        ("parallel_stabilized", {}),
        ("fwbw_stabilized", {"chunk_size": 4, "keep_G": True}),
        ("triton_kernels", {"backend_name": "parallel--native_custbw"}),
        ("triton_kernels", {"chunk_size": 16}),
        ("recurrent_triton", {"state_dtype": "float32"}),
    ],
)
def test_every_backend_computes_the_same(name, kwargs):
    assert_close(apply(*build(one_block(cell={"backend": backend(name, **kwargs)}))), base_logits("mlstm_v1"), 2e-5)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("triton_kernels", {"autocast_dtype": "bfloat16"}),
        ("triton_kernels", {"backend_name": "chunkwise--triton_xl_chunk_siging"}),
    ],
)
def test_kwargs_that_change_the_function_do(name, kwargs):
    assert (
        np.abs(apply(*build(one_block(cell={"backend": backend(name, **kwargs)}))) - base_logits("mlstm_v1")).max()
        > 1e-4
    )


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_dropout_is_on_in_training_only(layer_type):
    run = functools.partial(apply, *build(one_block(layer_type, dropout=0.5)))
    np.testing.assert_array_equal(run(), base_logits(layer_type))
    first, second = (run(train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2))
    assert np.abs(first - second).max() > 1e-2
    np.testing.assert_array_equal(first, run(train=True, rngs={"dropout": jax.random.key(0)}))


@pytest.mark.parametrize("add_embedding_dropout", [False, True])
def test_embedding_dropout(add_embedding_dropout):
    config = model_config(dropout=0.5, add_embedding_dropout=add_embedding_dropout, num_blocks=1)
    layer = config.block_config(0)
    assert layer.layer_config().dropout == layer.feedforward_config().dropout == 0.5
    model, params = build(config)
    # With the blocks' own outputs at zero only the embedding's dropout is left.
    params["xlstm_block_stack"]["blocks_0"]["xlstm"]["proj_down"]["kernel"] *= 0
    params["xlstm_block_stack"]["blocks_0"]["ffn"]["proj_down"]["kernel"] *= 0
    tokens = tokens_of(2, SEQ)
    trained = model.apply({"params": params}, tokens, train=True, rngs={"dropout": jax.random.key(0)})
    assert (np.abs(trained - model.apply({"params": params}, tokens)).max() > 1e-3) == add_embedding_dropout


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_scanned_blocks_compute_what_unrolled_ones_do(layer_type):
    config = model_config(layer_type)
    model, params = build(config)
    scanned = xLSTMLMModel(dataclasses.replace(config, scan_blocks=True))
    stacked = to_runs(params, spans(scanned.config))
    fresh = jax.eval_shape(scanned.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, fresh)
    jax.tree.map(np.testing.assert_array_equal, to_blocks(stacked), params)

    def loss(model):
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(model.apply({"params": p}, tokens_of(2, SEQ)) ** 2)))

    value, gradient = loss(model)(params)
    scanned_value, scanned_gradient = loss(scanned)(stacked)
    assert_close(scanned_value, value, 1e-6)
    assert_trees_close(to_blocks(scanned_gradient), gradient, 1e-4)


def test_scanned_blocks_are_initialised_each_by_itself_and_drop_out_each_by_itself():
    model = xLSTMLMModel(model_config(scan_blocks=True, dropout=0.5))
    params = model.init(jax.random.key(0), tokens_of(1, 2))["params"]
    kernel = params["xlstm_block_stack"]["blocks_0_1"]["xlstm"]["q"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-2


def test_a_gap_in_the_blocks_is_named():
    with pytest.raises(ValueError, match=r"hold the blocks \[0, 2\], but \[0, 1, 2\] are needed"):
        to_runs({"blocks_0": {"x": jnp.ones(1)}, "blocks_2": {"x": jnp.ones(1)}}, [range(3)])


REMAT = ["Embed", "BlockStack", "LMHead", "mLSTMBlock", "xLSTMResBlock", "FFNResBlock", "mLSTMInnerLayer", "mLSTMCell"]


@pytest.mark.parametrize(("layer_type", "scan_blocks"), [("mlstm", True), ("mlstm_v1", False)])
def test_recomputation_changes_neither_parameters_nor_gradients(layer_type, scan_blocks):
    config = model_config(layer_type, scan_blocks=scan_blocks)
    rematted = dataclasses.replace(config, parallel=ParallelConfig(remat=REMAT))
    model, params = build(config)
    other, other_params = build(rematted)
    jax.tree.map(np.testing.assert_array_equal, params, other_params)

    def gradient(model):
        return jax.grad(lambda p: jnp.mean(model.apply({"params": p}, tokens_of(2, SEQ)) ** 2))

    program = str(jax.make_jaxpr(gradient(other))(params))
    assert "remat" in program or "checkpoint" in program
    assert_trees_close(jax.jit(gradient(other))(params), jax.jit(gradient(model))(params), 1e-4)


def test_tied_weights_have_no_head_of_their_own():
    config = model_config(tie_weights=True)
    names = shapes_of(config)
    assert not any(name.startswith("lm_head") for name in names)
    model, params = build(config)
    features = model.apply({"params": params}, tokens_of(2, SEQ), method="features")
    expected = features @ params["token_embedding"]["embedding"].T
    assert_close(model.apply({"params": params}, tokens_of(2, SEQ)), expected, ROUNDING)


def test_the_gradient_of_tied_weights_is_that_of_both_uses():
    tokens = tokens_of(2, SEQ)
    tied, params = build(one_block(tie_weights=True))
    free = xLSTMLMModel(one_block())
    split = params | {"lm_head": {"kernel": params["token_embedding"]["embedding"].T}}
    g_tied = jax.grad(lambda p: jnp.mean(tied.apply({"params": p}, tokens) ** 2))(params)
    g_free = jax.grad(lambda p: jnp.mean(free.apply({"params": p}, tokens) ** 2))(split)
    expected = g_free["token_embedding"]["embedding"] + g_free["lm_head"]["kernel"].T
    assert_close(g_tied["token_embedding"]["embedding"], expected, 1e-5)


def test_soft_cap_bounds_the_logits():
    model, params = build(one_block(logits_soft_cap=0.25))
    capped = apply(model, params)
    assert_close(capped, 0.25 * np.tanh(base_logits("mlstm_v1") / 0.25), ROUNDING)


def test_a_token_outside_the_vocabulary_shows_as_nan_where_it_cannot_be_checked():
    model, params = build(one_block())
    logits = jax.jit(model.apply)({"params": params}, jnp.full((1, 2), VOCAB))
    assert np.isnan(logits).all()


def test_bias_gives_every_linear_map_of_the_layer_a_bias_and_no_other():
    plain = {layer_type: shapes_of(model_config(layer_type)) for layer_type in LAYER_TYPES}
    expected = {"mlstm": ["k", "proj_down", "proj_up_mlstm", "proj_up_z", "q", "v"],
                "mlstm_v1": ["k", "o", "proj_down", "q", "v"]}  # fmt: skip
    for layer_type, names in expected.items():
        new = set(shapes_of(model_config(layer_type, bias=True))) - set(plain[layer_type])
        assert sorted(new) == [f"xlstm_block_stack/blocks_{i}/xlstm/{n}/bias" for i in range(2) for n in names]


def test_headwise_gates_equal_dense_gates_with_a_block_diagonal_kernel():
    from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig

    config = mLSTMCellConfig(num_heads=2, dtype="float32", gate_linear_headwise=True)
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 5, size)) for i, size in enumerate((4, 4, 8)))
    cell = mLSTMCell(config)
    params = cell.init(jax.random.key(0), q, k, v)["params"]
    kernels = {gate: jax.random.normal(jax.random.key(i), (2, 1, 8)) for i, gate in enumerate(("igate", "fgate"))}
    headwise = {gate: params[gate] | {"kernel": kernel} for gate, kernel in kernels.items()}
    y, _ = cell.apply({"params": params | headwise}, q, k, v)
    per_head = [
        jnp.concatenate([x[..., h * n : (h + 1) * n] for x, n in ((q, 2), (k, 2), (v, 4))], -1) for h in range(2)
    ]
    dense = {}
    for gate, kernel in kernels.items():
        rows = np.zeros((16, 2), np.float32)
        for h in range(2):
            for start, place, n in ((0, 0, 2), (2, 4, 2), (4, 8, 4)):
                rows[place + h * n : place + (h + 1) * n, h] = kernel[h, 0, start : start + n]
        dense[gate] = params[gate] | {"kernel": rows}
        inputs = jnp.concatenate([q, k, v], -1) @ rows
        assert_close(inputs, jnp.stack([x @ kernel[h, 0] for h, x in enumerate(per_head)], -1))
    other = mLSTMCell(dataclasses.replace(config, gate_linear_headwise=False))
    assert_close(y, other.apply({"params": params | dense}, q, k, v)[0])
