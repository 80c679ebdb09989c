"""The table of parameters knows every leaf of every model."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest
from small_models import VOCAB, model_config

from xlstm_jax.models.language_model import param_shapes
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.presets import get_preset, preset_names

MIX = {"slstm_block": sLSTMBlockConfig(slstm=sLSTMLayerConfig(num_heads=2)), "slstm_at": [1]}
CONFIGS = {
    "mlstm": model_config("mlstm"),
    "everything of mlstm": model_config(
        "mlstm",
        layer={"vmap_qk": True, "v_dim_factor": 0.5},
        cell={"gate_linear_headwise": True, "add_qk_norm": True},
        feedforward={"bias": True, "round_proj_up_to_multiple_of": 8},
        add_post_norm=True,
        bias=True,
    ),
    "biases of mlstm": model_config("mlstm", bias=True),
    "mlstm_v1": model_config("mlstm_v1", bias=True, cell={"add_qk_norm": True}, add_post_norm=True, tie_weights=True),
    "no convolution": model_config("mlstm", layer={"conv1d_kernel_size": 0}),
    "mix": model_config("mlstm_v1", **MIX),
    "lstm": LSTMConfig(embedding_dim=16, num_blocks=2, vocab_size=VOCAB),
    "llama": LlamaConfig(
        embedding_dim=16, num_blocks=2, head_dim=8, vocab_size=VOCAB, use_bias=True, qk_norm=True, num_kv_heads=1
    ),
}


def leaves_of(config):
    shapes = param_shapes(config)
    leaves = jax.tree.leaves(describe(shapes, config.block_kinds), is_leaf=lambda x: isinstance(x, Leaf))
    return dict(zip((leaf.path for leaf in leaves), zip(leaves, jax.tree.leaves(shapes), strict=True), strict=True))


@pytest.mark.parametrize("scan_blocks", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_leaf_has_its_row_and_as_many_axes_as_it_has(name, scan_blocks):
    for leaf, shape in leaves_of(dataclasses.replace(CONFIGS[name], scan_blocks=scan_blocks)).values():
        assert len(leaf.axes) == len(shape.shape), leaf
        assert leaf.decays == ("kernel" in leaf.path)
        assert not leaf.matrix or (leaf.decays and len(leaf.axes) >= 2)
        assert not leaf.adapter or leaf.matrix
        assert (leaf.axes[0] == "block") == (scan_blocks and ".blocks_0_1." in leaf.path)


@pytest.mark.parametrize("name", preset_names())
def test_the_leaves_of_every_preset_are_known(name):
    config = get_preset(name).model
    config = dataclasses.replace(config, vocab_size=max(config.vocab_size, 512))
    found = leaves_of(config)
    assert sum(math.prod(shape.shape) for _, shape in found.values()) > 0
    assert not any(leaf.part == "memory layers" for leaf, _ in found.values())


def test_parts_and_axes_are_the_fields_words():
    leaves = {path.split("_stack.")[-1]: leaf for path, (leaf, _) in leaves_of(CONFIGS["mix"]).items()}
    assert leaves["token_embedding.embedding"].axes == ("vocab", "embed")
    assert leaves["blocks_0.xlstm.q.kernel"].axes == ("embed", "heads")
    assert leaves["blocks_1.xlstm.i.kernel"].axes == ("heads", "features", None)
    assert leaves["blocks_1.xlstm.cell.recurrent_kernel"].axes == (None, "head", "features", None)
    assert leaves["blocks_0.ffn.proj_down.kernel"].axes == ("mlp", "embed")
    dense = {path for path, leaf in leaves.items() if leaf.dense}
    assert dense == {
        *(f"blocks_0.xlstm.{name}.kernel" for name in ("q", "k", "v", "o", "proj_down")),
        *(f"blocks_{n}.ffn.{name}.kernel" for n in (0, 1) for name in ("proj_up", "proj_up_gate", "proj_down")),
    }
    assert leaves["blocks_0.xlstm.cell.igate.bias"].modules == (
        *("BlockStack", "mLSTMBlock", "xLSTMResBlock", "mLSTMInnerLayer", "mLSTMCell"),
    )
    assert leaves["blocks_1.ffn_norm.scale"].modules == ("BlockStack", "sLSTMBlock", "FFNResBlock")
    assert leaves["token_embedding.embedding"].modules == ("Embed",)
    parts = {name: leaves[name].part for name in ("blocks_0.xlstm.q.kernel", "blocks_1.xlstm.conv.kernel")}
    assert list(parts.values()) == ["mLSTM layers", "sLSTM layers"]
    assert leaves["blocks_0.xlstm.cell.out_norm.scale"].part == "mLSTM layers"
    assert (leaves["post_blocks_norm.scale"].part, leaves["lm_head.kernel"].part) == ("norms", "head")


def test_a_parameter_without_a_row_is_an_error():
    shape = jax.ShapeDtypeStruct((3, 4), "float32")
    with pytest.raises(KeyError, match=r"no row for xlstm_block_stack\.blocks_0\.xlstm\.quux\.kernel with 2 axes"):
        describe({"xlstm_block_stack": {"blocks_0": {"xlstm": {"quux": {"kernel": shape}}}}})
