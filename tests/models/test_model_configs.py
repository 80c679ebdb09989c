"""Configs: the documented fields, JSON there and back, what follows from what, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json

import jax.numpy as jnp
import pytest
from small_models import backend, model_config

from xlstm_jax.config import ConfigError
from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.backend import mLSTMBackendNameAndKwargs
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import xLSTMBlockStackConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

CELL = {
    "context_length": -1,
    "embedding_dim": -1,
    "num_heads": -1,
    "backend": mLSTMBackendNameAndKwargs("auto", {}),
    "norm_eps": 1e-6,
    "norm_type": "layernorm",
    "norm_type_v1": "layernorm",
    "dtype": "bfloat16",
    "gate_dtype": "float32",
    "gate_soft_cap": None,
    "gate_linear_headwise": False,
    "igate_bias_init_range": None,
    "fgate_bias_init_range": (3.0, 6.0),
    "add_qk_norm": False,
    "reset_at_document_boundaries": False,
    "reset_fgate_value": -25.0,
    "parallel": None,
}
STACK = {
    "mlstm_block": None,
    "slstm_block": None,
    "context_length": -1,
    "num_blocks": 1,
    "embedding_dim": 128,
    "add_post_blocks_norm": True,
    "bias": False,
    "dropout": 0.0,
    "scan_blocks": False,
    "dtype": "bfloat16",
    "parallel": None,
    "init_distribution_embed": "normal",
    "init_distribution_out": "normal",
    "slstm_at": [],
}


@pytest.mark.parametrize(("config", "documented"), [(mLSTMCellConfig(), CELL), (xLSTMBlockStackConfig(), STACK)])
def test_the_documented_fields_come_first_and_have_their_defaults(config, documented):
    names = [field.name for field in dataclasses.fields(config)]
    assert names[: len(documented)] == list(documented)
    assert {name: getattr(config, name) for name in documented} == documented


def test_the_dtype_properties_are_jax_dtypes():
    cell = mLSTMCellConfig(gate_dtype="float16")
    assert (cell._dtype, cell._gate_dtype) == (jnp.bfloat16, jnp.float16)
    assert xLSTMBlockStackConfig(dtype="float32")._dtype == jnp.float32


@pytest.mark.parametrize(
    "config",
    [
        mLSTMCellConfig(igate_bias_init_range=-10.0, fgate_bias_init_range=(1.0, 2.0), gate_soft_cap=15.0),
        xLSTMBlockStackConfig(slstm_at="all", num_blocks=3),
        model_config("mlstm", layer={"vmap_qk": True}, cell={"backend": backend("triton_kernels", chunk_size=32)}),
        model_config(slstm_at=[1], parallel=ParallelConfig(remat=["mLSTMBlock"]), logits_soft_cap=30.0),
    ],
)
def test_configs_survive_json(config):
    data = json.loads(json.dumps(config.to_dict()))
    again = type(config).from_dict(data)
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert not any(key.startswith("_") for key in data)


def test_a_stack_does_not_change_the_configs_it_is_given():
    layer = mLSTMLayerConfig(num_heads=2)
    block = mLSTMBlockConfig(mlstm=layer, feedforward=FeedForwardConfig())
    before = copy.deepcopy(block)
    config = xLSTMLMModelConfig(mlstm_block=block, embedding_dim=32, dropout=0.1, dtype="float32", norm_type="rmsnorm")
    assert config.mlstm_block is block
    assert block == before
    assert (layer.embedding_dim, layer._proj_up_dim, layer.mlstm_cell.num_heads) == (-1, None, -1)
    wider = dataclasses.replace(config, embedding_dim=64, dtype="bfloat16")
    assert wider.block_config(0).layer_config().inner_dim == 128


def test_what_follows_from_the_parents():
    parallel = ParallelConfig(remat=["mLSTMCell"])
    config = xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(num_heads=2, mlstm_cell=mLSTMCellConfig(norm_eps=1e-3)),
            feedforward=FeedForwardConfig(),
        ),
        **{"embedding_dim": 96, "num_blocks": 5, "bias": True, "dropout": 0.1, "context_length": 77},
        **{"dtype": "float32", "norm_type": "rmsnorm", "norm_eps": 1e-4, "parallel": parallel},
    )
    block = config.block_config(3)
    layer, feedforward = block.layer_config(), block.feedforward_config()
    cell = layer.cell_config()
    assert (block._num_blocks, block._block_idx, layer._num_blocks, feedforward._num_blocks) == (5, 3, 5, 5)
    assert (layer.embedding_dim, layer.bias, layer.dropout, layer.context_length) == (96, True, 0.1, 77)
    assert (layer.dtype, layer.norm_type, layer.parallel) == ("float32", "rmsnorm", parallel)
    assert (cell.embedding_dim, cell.num_heads, cell.context_length) == (192, 2, 77)
    assert (cell.dtype, cell.norm_type, cell.norm_type_v1, cell.norm_eps) == ("float32", "rmsnorm", "layernorm", 1e-3)
    assert (feedforward.embedding_dim, feedforward.dtype, feedforward.dropout) == (96, "float32", 0.1)
    assert not feedforward.bias
    assert feedforward._proj_up_dim == 128


def test_a_feedforward_can_keep_its_own_dtype_and_dropout():
    config = model_config(feedforward={"own_dtype_and_dropout": True}, dropout=0.2)
    feedforward = config.block_config(0).feedforward_config()
    assert (feedforward.dtype, feedforward.dropout) == ("bfloat16", 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": {"embedding_dim": 8}}, r"mLSTMLayerConfig.embedding_dim is 8, .*xLSTMLMModelConfig, .*says 16"),
        ({"layer": {"dropout": 0.2}}, r"mLSTMLayerConfig.dropout is 0.2, .*xLSTMLMModelConfig"),
        ({"cell": {"num_heads": 8}}, r"mLSTMCellConfig.num_heads is 8, .*mLSTMLayerConfig, .*says 2"),
        ({"cell": {"norm_type": "rmsnorm"}}, r"mLSTMCellConfig.norm_type is 'rmsnorm', .*mLSTMLayerConfig"),
        ({"feedforward": {"dtype": "float16"}}, r"FeedForwardConfig.dtype is 'float16', .*mLSTMLayerConfig"),
        ({"layer": {"num_heads": 3}}, r"num_heads 3"),
        ({"layer_type": "mlstm", "layer": {"qkv_proj_blocksize": 5}}, "qkv_proj_blocksize is 5"),
        ({"layer_type": "mlstm", "layer": {"qk_dim_factor": 0.3}}, "qk_dim_factor 0.3"),
        ({"layer": {"v_dim_factor": 0.01}}, "v_dim_factor 0.01"),
        ({"layer_type": "mlstm_v2"}, r"layer_type is 'mlstm_v2'.*did you mean 'mlstm_v1'"),
        ({"norm_type": "rms"}, r"norm_type is 'rms'.*did you mean 'rmsnorm'"),
        ({"dtype": "float31"}, "dtype is 'float31'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"embedding_dim": 16.0}, "embedding_dim is 16.0"),
        ({"slstm_at": [0, 0]}, r"slstm_at is \[0, 0\], but must name each block once"),
        ({"slstm_at": [2]}, "slstm_at holds 2, but the blocks are numbered 0 to 1"),
        ({"slstm_at": [-1]}, "slstm_at holds -1"),
        ({"slstm_at": "some"}, "slstm_at is 'some'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"logits_soft_cap": -1.0}, "logits_soft_cap is -1.0"),
        ({"cell": {"gate_soft_cap": 0.0}}, "gate_soft_cap is 0.0"),
        ({"cell": {"fgate_bias_init_range": (1.0, 2.0, 3.0)}}, "fgate_bias_init_range is"),
        ({"cell": {"igate_bias_init_range": "low"}}, "igate_bias_init_range is 'low'"),
        ({"cell": {"reset_mode": "hard"}}, "reset_mode is 'hard'"),
        ({"feedforward": {"act_fn": "geglu"}}, r"act_fn is 'geglu'.*did you mean 'gelu'"),
        ({"feedforward": {"proj_factor": 0.1, "round_proj_up_dim_up": False}}, "proj_factor 0.1"),
        ({"scan_blocks": "yes"}, "scan_blocks is 'yes', but must be true or false"),
        ({"cell": {"add_qk_norm": "no"}}, "add_qk_norm is 'no', but must be true or false"),
        ({"cell": {"backend": {"name": "recurrent"}}}, "backend is .*, but must be mLSTMBackendNameAndKwargs"),
        ({"cell": {"igate_bias_init_range": float("nan")}}, "igate_bias_init_range is nan"),
    ],
)
def test_impossible_configs_name_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        model_config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pipeline_axis_size": 2}, "pipeline_axis_size is 2, but there are no pipelines"),
        ({"tp_async_dense": True}, "tp_async_dense is True, but XLA decides by itself"),
        ({"sequence_axis_size": -1}, "data_axis_size and sequence_axis_size are -1, but only one"),
        ({"sequence_axis_name": "dp"}, "names its axes dp, fsdp, dp, tp, but no two"),
        ({"fsdp_axis_size": 0}, "fsdp_axis_size is 0"),
    ],
)
def test_impossible_layouts_name_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**fields)


def test_recomputation_of_an_unknown_part_names_the_near_miss():
    with pytest.raises(ConfigError, match=r"remat names 'mLSTMblock' \(did you mean 'mLSTMBlock'\?\)"):
        ParallelConfig(remat=["mLSTMblock"])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("attention", {}, "is not an mLSTM"),
        ("chunkwize", {}, "did you mean 'chunkwise'"),
        ("chunkwise", {"chunksize": 64}, r"did you mean 'chunk_size'"),
        ("chunkwise", {"chunk_size": 0}, r"'chunk_size'\] is 0, but must be a whole number >= 1"),
        ("parallel_stabilized", {"context_length": "long"}, "must be a whole number"),
        ("triton_kernels", {"eps": 1e-3}, "has no effect here, because the Triton kernels were never told of it"),
        ("fwbw_stabilized", {"return_state": True}, "has no effect"),
        ("triton_kernels", {"norm_val": 2.0}, "has no effect"),
        ("triton_kernels", {"reduce_slicing": False}, "has no effect"),
        ("triton_kernels", {"backend_name": "chunkwise--triton_xl"}, "did you mean 'chunkwise--triton_xl_chunk'"),
        ("recurrent", {"state_dtype": "bfloat16"}, "states are always kept in float32"),
        ("auto", {"eps": "small"}, "must be a number"),
    ],
)
def test_impossible_backends_say_why(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        mLSTMBackendNameAndKwargs(name, kwargs)


@pytest.mark.usefixtures("loose_types")
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("fwbw_stabilized", {"keep_c": True, "keep_M": True, "stabilize_correctly": True, "chunk_size": None}),
        ("recurrent", {"context_length": -1, "state_dtype": None, "use_scan": True, "eps": 1e-5}),
        ("triton_kernels", {"norm_val": 1.0, "reduce_slicing": True, "stabilize_correctly": True, "eps": 1e-6}),
        ("parallel_stabilized", None),
    ],
)
def test_kwargs_at_the_peers_defaults_are_accepted(name, kwargs):
    assert mLSTMBackendNameAndKwargs(name, kwargs).settings().gate == "exp"


def test_the_block_map():
    block = mLSTMBlockConfig()
    config = xLSTMBlockStackConfig(mlstm_block=block, num_blocks=4, slstm_at=[1, 3])
    assert config.block_map == [0, 1, 0, 1]
    assert config._block_map == config._create_block_map() == "0,1,0,1"
    assert xLSTMBlockStackConfig(mlstm_block=block, num_blocks=2, slstm_at="all").block_map == [1, 1]
    assert xLSTMBlockStackConfig(num_blocks=2).block_map == [1, 1]
    assert dataclasses.replace(config, num_blocks=5).block_map == [0, 1, 0, 1, 0]


def test_the_width_of_an_up_projection():
    def width(**fields):
        return FeedForwardConfig(embedding_dim=100, **fields)._proj_up_dim

    assert width() == 192
    assert width(round_proj_up_dim_up=False) == 128
    assert width(round_proj_up_to_multiple_of=1) == 130
    assert width(proj_factor=None) is None


def test_the_block_map_follows_what_is_assigned():
    config = xLSTMBlockStackConfig(mlstm_block=mLSTMBlockConfig(), num_blocks=1)
    config.num_blocks = 3
    assert config.block_map == [0, 0, 0]


@pytest.mark.usefixtures("loose_types")
def test_a_tuple_of_places_reads_back_equal():
    config = xLSTMBlockStackConfig(mlstm_block=mLSTMBlockConfig(), num_blocks=3, slstm_at=(1,))
    assert xLSTMBlockStackConfig.from_dict(config.to_dict()) == config


@pytest.mark.usefixtures("loose_types")
def test_a_backend_may_be_given_by_name_alone():
    assert mLSTMCellConfig(backend="recurrent").backend == mLSTMBackendNameAndKwargs("recurrent")
