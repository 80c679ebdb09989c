"""Where parameters lie: every one of every model, and what optimizers keep for them."""

from __future__ import annotations

import math

import jax
import pytest
from jax.sharding import PartitionSpec as P
from mesh_models import OPTIMIZERS, config_of

from xlstm_jax.distributed.axes import shardings
from xlstm_jax.distributed.mesh import make_mesh, with_mesh
from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.language_model import param_shapes
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.presets import get_preset, preset_names


def laid_out(config, words, tree=None, **fields):
    params = param_shapes(config)
    parallel = with_mesh(ParallelConfig(**fields), words)
    table = describe(params, config.block_kinds)
    placed = shardings(params if tree is None else tree, table, params, make_mesh(parallel), parallel)
    return jax.tree.map(lambda sharding: sharding.spec, placed)


@pytest.mark.parametrize("name", preset_names())
def test_every_large_parameter_of_every_preset_is_parted(name):
    experiment = get_preset(name)
    fields = {} if experiment.model.vocab_size > 0 else {"vocab_size": 512}
    config = type(experiment.model)(**{**vars(experiment.model), **fields})
    specs = jax.tree.leaves(laid_out(config, "fsdp=4,tp=2"))
    shapes = param_shapes(config)
    table = jax.tree.leaves(describe(shapes, config.block_kinds), is_leaf=lambda x: isinstance(x, Leaf))
    for leaf, shape, spec in zip(table, jax.tree.leaves(shapes), specs, strict=True):
        size = math.prod(shape.shape) // (shape.shape[0] if leaf.axes[0] == "block" else 1)
        assert ("fsdp" in str(spec)) == (size >= ParallelConfig().fsdp_min_weight_size), (leaf, spec)


def test_fsdp_modules_and_the_smallest_size_say_what_is_parted():
    config = config_of("mlstm_v1", "float32")
    all_small = laid_out(config, "fsdp=8")
    assert not any(any(spec) for spec in jax.tree.leaves(all_small))
    feedforward = laid_out(config, "fsdp=8", fsdp_min_weight_size=1, fsdp_modules=["FFNResBlock", "LMHead"])
    block = feedforward["xlstm_block_stack"]["blocks_0_1"]
    assert block["ffn"]["proj_up"]["kernel"] == P(None, "fsdp", None)
    assert block["ffn"]["proj_down"]["kernel"] == P(None, None, "fsdp")
    assert not any(block["xlstm"]["q"]["kernel"])
    assert feedforward["lm_head"]["kernel"] == P("fsdp", None)
    assert not any(feedforward["token_embedding"]["embedding"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_keeps_lies_as_its_parameter(name):
    config = config_of("mlstm_v1", "float32")
    state = jax.eval_shape(OPTIMIZERS[name].build(10).init, param_shapes(config))
    placed = laid_out(config, "fsdp=4,tp=2", state, fsdp_min_weight_size=1)
    wanted = {
        ("embedding", (48, 32)): P("tp", "fsdp"),
        ("embedding", (48,)): P("tp"),
        ("embedding", (32,)): P("fsdp"),
        ("proj_up", (2, 32, 64)): P(None, "fsdp", "tp"),
        ("proj_up", (2, 32)): P(None, "fsdp"),
        ("proj_up", (2, 64)): P(None, "tp"),
    }
    found = 0
    for (path, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(placed), strict=True):
        for (name, shape), expected in wanted.items():
            if f"'{name}'" in str(path) and leaf.shape == shape:
                assert spec == expected, path
                found += 1
        assert leaf.ndim or spec == P()
    assert found >= 2
