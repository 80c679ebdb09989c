"""Trees with the peer's names, made from ours, come back as ours: every option, layout and split over devices."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from small_models import model_config, random_like

from xlstm_jax.hub import WeightsError, params_from_xlstm_jax
from xlstm_jax.models.layouts import to_runs
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel

# Our name -> (the peer's name, axis that tensor parallelism splits or None, behind a wrapper also without a split).
RESIDUAL = {
    "norm": "xlstm_norm",
    "post_norm": "xlstm_post_norm",
    "ffn_norm": "ffn_norm",
    "ffn_post_norm": "ffn_post_norm",
}


def peer_name(path, layer_type, parallel):
    """The peer's name of a parameter of a block, the axis that is split, and whether it is wrapped at any split."""
    *modules, leaf = path
    dense = "module.sharded" if parallel else "Dense_0"
    if modules[0] in RESIDUAL:
        group = "ffn_res_block" if modules[0].startswith("ffn") else "xlstm_res_block"
        return f"{group}.{RESIDUAL[modules[0]]}.sharded.scale", 0, True
    if modules[0] == "ffn":
        axis = (0 if leaf == "kernel" else "sum") if modules[1] == "proj_down" else -1
        return f"ffn_res_block.ffn.{modules[1]}.{dense}.{leaf}", axis, parallel
    prefix, inside = "xlstm_res_block.xlstm.", "xlstm_res_block.xlstm.inner_layer.sharded."
    if modules == ["xlstm"]:
        return f"{inside}{leaf}", 0, True
    if modules[1] == "proj_down":
        return f"{prefix}proj_down.{dense}.{leaf}", 0 if leaf == "kernel" else "sum", parallel
    norms = {"out_norm": "outnorm", "q_norm": "q_norm", "k_norm": "k_norm"}
    if layer_type == "mlstm_v1":
        if modules[1] == "cell" and modules[2] in norms:
            if modules[2] == "out_norm":
                return f"{prefix}outnorm.sharded.{leaf}", 0, True
            return f"{prefix}{modules[2]}.{leaf}", None, False
        name = modules[2] if modules[1] == "cell" else f"dense_{modules[1]}"
        return f"{prefix}{name}.{dense}.{leaf}", -1, parallel
    if modules[1].startswith("proj_up"):
        return f"{prefix}{modules[1]}.{dense}.{leaf}", -1, parallel
    if modules[1] == "cell":
        name = norms.get(modules[2], modules[2])
        axis = "equal" if modules[2] in ("q_norm", "k_norm") else 0
        return f"{inside}mlstm_cell.{name}.{leaf}", axis, True
    if modules[1] == "conv":
        return f"{inside}conv1d.conv.{leaf}", -1, True
    name = {"conv_scaling": "x_mlstm_conv_scaling"}.get(modules[1], f"{modules[1]}_proj")
    return f"{inside}{name}.{leaf}", 1 if modules[1] == "qk" else 0, True


def split(value, axis, ways):
    if axis == "equal":
        return np.stack([value] * ways)
    if axis == "sum":
        return np.stack([value / ways] * ways)
    return np.stack(np.split(value, ways, axis=axis))


def peer_tree(params, layer_type, scanned, ways=1):
    """The peer's flat parameters for our unrolled ones."""
    flat = {
        "token_embedding.sharded.embedding": split(params["token_embedding"]["embedding"], -1, ways),
        "lm_head.out_dense.kernel": np.asarray(params["lm_head"]["kernel"]),
        "lm_head.out_norm.scale": np.asarray(params["xlstm_block_stack"]["post_blocks_norm"]["scale"]),
    }
    blocks = []
    for i in range(len(params["xlstm_block_stack"]) - 1):
        leaves = jax.tree_util.tree_leaves_with_path(params["xlstm_block_stack"][f"blocks_{i}"])
        block = {}
        for path, value in leaves:
            name, axis, wrapped = peer_name([key.key for key in path], layer_type, ways > 1)
            block[name] = split(np.asarray(value), axis, ways) if wrapped else np.asarray(value)
        blocks.append(block)
    if scanned:
        stacked = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
        return flat | {f"xlstm_block_stack.blocks.block.{name}": value for name, value in stacked.items()}
    return flat | {f"xlstm_block_stack.blocks.{i}.{n}": v for i, block in enumerate(blocks) for n, v in block.items()}


def random_params(config):
    model = xLSTMLMModel(dataclasses.replace(config, scan_blocks=False))
    return random_like(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])


OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "headwise gates": {"cell": {"gate_linear_headwise": True}},
    "norms": {"cell": {"add_qk_norm": True}, "add_post_norm": True, "norm_type": "rmsnorm"},
    "one joint qk": {"layer": {"vmap_qk": True}, "bias": True},
    "other widths": {"layer": {"qk_dim_factor": 0.5, "v_dim_factor": 2.0, "num_heads": 4}, "bias": True},
    "no convolution": {"layer": {"conv1d_kernel_size": 0}},
    "other gate input": {"layer": {"gate_input": "x_mlstm"}, "feedforward": None},
    "plain feedforward": {"feedforward": {"ff_type": "ffn", "bias": True}},
    "one head": {"layer": {"num_heads": 1}, "num_blocks": 1},
}
ONLY_MLSTM = {"headwise gates", "one joint qk", "no convolution", "other gate input"}
CASES = [(t, o) for t in ("mlstm", "mlstm_v1") for o in OPTIONS if t == "mlstm" or o not in ONLY_MLSTM]


@pytest.mark.parametrize(("layer_type", "option"), CASES)
def test_every_option_in_either_layout_comes_back(layer_type, option):
    config = model_config(layer_type, **OPTIONS[option])
    params = random_params(config)
    for scanned in (False, True):
        flat = peer_tree(params, layer_type, scanned)
        for scan_blocks in (False, True):
            loaded = params_from_xlstm_jax(flat, dataclasses.replace(config, scan_blocks=scan_blocks))
            expected = to_runs(params, [range(config.num_blocks)]) if scan_blocks else params
            assert jax.tree.structure(loaded) == jax.tree.structure(expected)
            jax.tree.map(np.testing.assert_array_equal, loaded, expected)


@pytest.mark.parametrize("layer_type", ["mlstm", "mlstm_v1"])
@pytest.mark.parametrize("scanned", [False, True])
def test_splits_over_devices_are_merged(layer_type, scanned):
    cell = {"gate_linear_headwise": layer_type == "mlstm", "add_qk_norm": True}
    config = model_config(
        layer_type, bias=True, cell=cell, layer={"vmap_qk": layer_type == "mlstm"}, add_post_norm=True
    )
    params = random_params(config)
    loaded = params_from_xlstm_jax(peer_tree(params, layer_type, scanned, ways=2), config)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_other_separators_and_a_leading_params_are_accepted():
    config = model_config("mlstm")
    params = random_params(config)
    flat = peer_tree(params, "mlstm", True)
    for rename in (
        lambda n: n.replace(".", "/"),
        lambda n: f"params.{n}",
        lambda n: f"params/{n.replace('.', '/')}/value",
    ):
        loaded = params_from_xlstm_jax({rename(name): value for name, value in flat.items()}, config)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_joint_up_projection_holds_z_before_x():
    config = model_config("mlstm", layer={"v_dim_factor": 0.5}, bias=True, feedforward={"ff_type": "ffn"})
    params = random_params(config)
    flat = peer_tree(params, "mlstm", False)
    for i in range(2):
        xlstm, ffn = (
            f"xlstm_block_stack.blocks.{i}.{group}" for group in ("xlstm_res_block.xlstm", "ffn_res_block.ffn")
        )
        for leaf in ("kernel", "bias"):
            parts = [flat.pop(f"{xlstm}.{name}.Dense_0.{leaf}") for name in ("proj_up_z", "proj_up_mlstm")]
            flat[f"{xlstm}.proj_up.shard_0.{leaf}"] = np.concatenate(parts, axis=-1)
            flat[f"{xlstm}.proj_down.shard_0.{leaf}"] = flat.pop(f"{xlstm}.proj_down.Dense_0.{leaf}")
        for name in ("proj_up", "proj_down"):
            flat[f"{ffn}.{name}.shard_0.kernel"] = flat.pop(f"{ffn}.{name}.Dense_0.kernel")
    jax.tree.map(np.testing.assert_array_equal, params_from_xlstm_jax(flat, config), params)


def test_everything_that_does_not_fit_is_named_at_once():
    config = model_config("mlstm_v1")
    flat = peer_tree(random_params(config), "mlstm_v1", True)
    prefix = "xlstm_block_stack.blocks.block.xlstm_res_block.xlstm"
    flat.pop(f"{prefix}.dense_q.Dense_0.kernel")
    flat[f"{prefix}.dense_q.Dense_0.bias"] = np.zeros((2, 16))
    flat["lm_head.out_dense.kernel"] = flat["lm_head.out_dense.kernel"].T
    flat["token_embedding.sharded.embedding"] = flat["token_embedding.sharded.embedding"][..., :5]
    with pytest.raises(WeightsError) as error:
        params_from_xlstm_jax(flat, config)
    text = str(error.value)
    assert "nothing was loaded (5 problems)" in text
    for line in (
        "missing: xlstm_block_stack.blocks.0.xlstm.dense_q.kernel (16, 16), which holds "
        "xlstm_block_stack.blocks_0.xlstm.q.kernel",
        "missing: xlstm_block_stack.blocks.1.xlstm.dense_q.kernel (16, 16), which holds "
        "xlstm_block_stack.blocks_1.xlstm.q.kernel",
        f"surplus: {prefix}.dense_q.Dense_0.bias",
        "mis-shaped: lm_head.out_dense.kernel is (31, 16), but the config asks for (16, 31)",
        "mis-shaped: token_embedding.sharded.embedding is (31, 5), but the config asks for (31, 16)",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat | {"xlstm_block_stack.blocks.2.norm.scale": np.ones(3)}, "the model has the blocks 0 to 1"),
        (lambda flat: flat | {"optimizer.count": np.ones(())}, "surplus: optimizer.count"),
        (lambda flat: flat | {"lm_head.out_norm.value.scale": np.ones(16)}, "ambiguous: "),
        (lambda flat: flat | {"lm_head.out_norm.scale": np.ones(())}, r"is \(\), but the config asks for \(16,\)"),
    ],
)
def test_surplus_and_ambiguous_tensors_are_refused(change, message):
    config = model_config("mlstm_v1")
    with pytest.raises(WeightsError, match=message):
        params_from_xlstm_jax(change(peer_tree(random_params(config), "mlstm_v1", False)), config)


def test_another_number_of_blocks_is_refused():
    config = model_config("mlstm_v1")
    flat = peer_tree(random_params(config), "mlstm_v1", True)
    with pytest.raises(WeightsError, match="holds 2 blocks, but the model has 3"):
        params_from_xlstm_jax(flat, dataclasses.replace(config, num_blocks=3))


def test_splits_that_should_agree_but_differ_are_refused():
    config = model_config("mlstm", cell={"gate_linear_headwise": True, "add_qk_norm": True})
    flat = peer_tree(random_params(config), "mlstm", False, ways=2)
    name = next(name for name in flat if name.endswith("q_norm.scale"))
    flat[name] = flat[name] * np.array([[1.0], [2.0]])
    with pytest.raises(WeightsError, match="its 2 splits over devices differ"):
        params_from_xlstm_jax(flat, config)
