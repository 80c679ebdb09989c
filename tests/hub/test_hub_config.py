"""Configs that the peer saved, in the ways in which it saved them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.hub import config_from_xlstm_jax
from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel

GOLDEN = Path(__file__).parents[1] / "golden"


def saved(model=None, layer=None, cell=None, feedforward=None, parallel=None):
    """The document as the peer writes it: values pushed down from the parents, private fields, odd things as text."""
    cell_config = {
        "context_length": 2048,
        "embedding_dim": 256,
        "num_heads": 4,
        "backend": {
            "name": "triton_kernels",
            "kwargs": {"backend_name": "chunkwise--triton_xl_chunk"},
            "_registry": "{}",
        },
        "norm_eps": 1e-6,
        "norm_type": "rmsnorm",
        "dtype": "<class 'jax.numpy.bfloat16'>",
        "gate_dtype": "<class 'jax.numpy.float32'>",
        "gate_soft_cap": 15.0,
        "gate_linear_headwise": False,
        "igate_bias_init_range": -10.0,
        "fgate_bias_init_range": [3.0, 6.0],
        "add_qk_norm": False,
        "reset_at_document_boundaries": True,
        "reset_fgate_value": -25.0,
        "parallel": "None",
    } | (cell or {})
    layer_config = {
        "proj_factor": 2.0,
        "_proj_up_dim": 256,
        "layer_type": "mlstm_v1",
        "num_heads": 4,
        "qk_dim_factor": 0.5,
        "embedding_dim": 128,
        "bias": False,
        "dropout": 0.0,
        "context_length": 2048,
        "dtype": "<class 'jax.numpy.bfloat16'>",
        "norm_type": "rmsnorm",
        "_num_blocks": 2,
        "_inner_embedding_dim": 256,
        "mlstm_cell": cell_config,
    } | (layer or {})
    if feedforward is None:
        feedforward = {
            "proj_factor": 2.667,
            "act_fn": "swish",
            "embedding_dim": 128,
            "dtype": "<class 'jax.numpy.bfloat16'>",
            "_num_blocks": 2,
            "_proj_up_dim": 384,
        }
    model_config = {
        "mlstm_block": {
            "mlstm": layer_config,
            "feedforward": feedforward,
            "add_post_norm": False,
            "_block_idx": "None",
        },
        "slstm_block": "None",
        "context_length": 2048,
        "num_blocks": 2,
        "embedding_dim": 128,
        "add_post_blocks_norm": False,
        "bias": False,
        "dropout": 0.0,
        "scan_blocks": True,
        "dtype": "<class 'jax.numpy.bfloat16'>",
        "slstm_at": [],
        "_block_map": "0,0",
        "vocab_size": 304,
        "tie_weights": True,
        "logits_soft_cap": 30.0,
        "norm_type": "rmsnorm",
        "lm_head_dtype": "<class 'jax.numpy.bfloat16'>",
        "a_field_of_long_ago": "something",
    } | (model or {})
    layout = (
        parallel or "ParallelConfig(data_axis_size=-1, fsdp_axis_size=8, remat=[], fsdp_modules=('Embed', 'LMHead'))"
    )
    return {
        "trainer": {"seed": 0},
        "model": {
            "model_class": "xlstm_jax.models.xlstm_parallel.xlstm_lm_model.xLSTMLMModel",
            "parallel": layout,
            "model_config": model_config,
        },
    }


def test_a_saved_document_in_all_its_encodings():
    config = config_from_xlstm_jax(json.dumps(saved()))
    layer = config.mlstm_block.mlstm
    cell = layer.mlstm_cell
    assert (config.vocab_size, config.num_blocks, config.context_length, config.scan_blocks) == (304, 2, 2048, True)
    assert (config.dtype, config.lm_head_dtype, config.logits_soft_cap) == ("bfloat16", "bfloat16", 30.0)
    assert (config.add_post_blocks_norm, config.tie_weights, config.parallel, config.slstm_block) == (
        True,
        False,
        None,
        None,
    )
    assert (layer.layer_type, layer.num_heads, layer.qk_dim_factor) == ("mlstm_v1", 4, 0.5)
    assert (cell.igate_bias_init_range, cell.fgate_bias_init_range, cell.gate_soft_cap) == (-10.0, (3.0, 6.0), 15.0)
    assert (cell.reset_at_document_boundaries, cell.reset_mode, cell.norm_type_v1) == (True, "gate", "layernorm")
    assert cell.backend.settings().implementation is None
    resolved = config.block_config(1).layer_config().cell_config()
    assert (resolved.norm_type, resolved.dtype, resolved.gate_dtype) == ("rmsnorm", "bfloat16", "float32")
    assert config.block_config(0).feedforward_config()._proj_up_dim == 384
    assert (
        xLSTMLMModel(config).param_count
        == 2 * (4 * 128 * 128 + 2 * (128 * 4 + 4) + 3 * 128 + 3 * 128 * 384) + 128 + 2 * 304 * 128
    )


@pytest.mark.parametrize("depth", ["document", "model", "model_config"])
def test_any_part_of_the_document_will_do(depth):
    document = saved()
    part = {"document": document, "model": document["model"], "model_config": document["model"]["model_config"]}[depth]
    assert config_from_xlstm_jax(part) == config_from_xlstm_jax(document)


def test_our_own_round_trip():
    config = config_from_xlstm_jax(saved())
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("kwargs", "implementation", "chunk"),
    [
        ("mLSTMBackendFwbwConfig(chunk_size=256, return_state=True, keep_G=False)", None, 256),
        ("mLSTMBackendFwbwConfig(chunk_size=None)", "parallel", None),
        ({"chunk_size": 128, "use_initial_state": True}, None, 128),
        ("{}", None, 512),
        ("None", None, 512),
    ],
)
def test_backend_kwargs_as_text_or_object(kwargs, implementation, chunk):
    document = saved(cell={"backend": {"name": "fwbw_stabilized", "kwargs": kwargs, "_registry": "{}"}})
    settings = config_from_xlstm_jax(document).mlstm_block.mlstm.mlstm_cell.backend.settings()
    assert (settings.implementation, settings.chunk_size) == (implementation, chunk)


def test_kwargs_that_did_nothing_in_the_peer_are_dropped():
    without_effect = "eps=0.5, norm_val=2.0, reduce_slicing=False"
    kwargs = f"mLSTMBackendTritonConfig(autocast_dtype='bfloat16', chunk_size=32, {without_effect})"
    document = saved(cell={"backend": {"name": "triton_kernels", "kwargs": kwargs}})
    backend = config_from_xlstm_jax(document).mlstm_block.mlstm.mlstm_cell.backend
    assert backend.kwargs == {"autocast_dtype": "bfloat16", "chunk_size": 32}
    assert backend.settings().eps == 1e-6


def test_dtypes_are_read_in_every_way_to_write_their_class():
    kwargs = "mLSTMBackendTritonConfig(autocast_dtype=<class 'jax.numpy.bfloat16'>, chunk_size=32)"
    document = saved(
        model={"dtype": "jax.numpy.bfloat16", "lm_head_dtype": "<class 'jax.numpy.float32'>"},
        cell={"backend": {"name": "triton_kernels", "kwargs": kwargs}},
    )
    config = config_from_xlstm_jax(document)
    assert (config.dtype, config.lm_head_dtype) == ("bfloat16", "float32")
    assert config.mlstm_block.mlstm.mlstm_cell.backend.kwargs == {"autocast_dtype": "bfloat16", "chunk_size": 32}


def test_the_attention_backend_is_refused():
    with pytest.raises(ConfigError, match="is not an mLSTM"):
        config_from_xlstm_jax(saved(cell={"backend": {"name": "attention", "kwargs": {}}}))


def test_what_the_peer_ignored_stays_ignored():
    config = config_from_xlstm_jax(saved(layer={"dropout": 0.3, "bias": True}, cell={"gate_linear_headwise": True}))
    layer = config.block_config(0).layer_config()
    assert (layer.dropout, layer.bias, layer.mlstm_cell.gate_linear_headwise) == (0.0, False, False)
    assert config_from_xlstm_jax(saved(layer={"layer_type": "mlstm_v9"})).mlstm_block.mlstm.layer_type == "mlstm"


@pytest.mark.parametrize("missing", ["layer_type", "mlstm_cell"])
def test_older_documents_lack_newer_keys(missing):
    document = saved()
    del document["model"]["model_config"]["mlstm_block"]["mlstm"][missing]
    config = config_from_xlstm_jax(document)
    assert config.mlstm_block.mlstm.layer_type == ("mlstm" if missing == "layer_type" else "mlstm_v1")


def test_negative_soft_caps_are_what_their_formula_computes():
    config = config_from_xlstm_jax(saved(model={"logits_soft_cap": -1.0}, cell={"gate_soft_cap": "None"}))
    assert config.logits_soft_cap == 1.0
    assert config.mlstm_block.mlstm.mlstm_cell.gate_soft_cap is None


@pytest.mark.parametrize(
    ("feedforward", "own"),
    [({"dtype": "bfloat16"}, False), ({"dtype": "float32"}, True), ({"dropout": 0.1}, True), ({}, False)],
)
def test_the_feedforward_keeps_its_own_dtype_and_dropout(feedforward, own):
    config = config_from_xlstm_jax(saved(feedforward=feedforward))
    resolved = config.block_config(0).feedforward_config()
    assert config.mlstm_block.feedforward.own_dtype_and_dropout == own
    assert (resolved.dtype, resolved.dropout) == (feedforward.get("dtype", "bfloat16"), feedforward.get("dropout", 0.0))


def test_a_model_without_feedforward():
    document = saved()
    document["model"]["model_config"]["mlstm_block"]["feedforward"] = "None"
    assert config_from_xlstm_jax(document).mlstm_block.feedforward is None


@pytest.mark.parametrize(
    "parallel",
    [
        {"remat": ["mLSTMBlock", "a_module_of_long_ago"], "fsdp_axis_size": 8},
        "ParallelConfig(data_axis_size=-1, fsdp_axis_size=8, remat=('mLSTMBlock',), fsdp_gather_dtype='bfloat16')",
    ],
)
def test_of_the_layout_only_recomputation_stays(parallel):
    assert config_from_xlstm_jax(saved(parallel=parallel)).parallel == ParallelConfig(remat=["mLSTMBlock"])


def test_nothing_in_the_text_is_evaluated(tmp_path):
    target = tmp_path / "touched"
    kwargs = f"mLSTMBackendFwbwConfig(chunk_size=open({str(target)!r}, 'w'))"
    with pytest.raises(ConfigError):
        config_from_xlstm_jax(saved(cell={"backend": {"name": "fwbw_stabilized", "kwargs": kwargs}}))
    assert not target.exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is not JSON"),
        ([1], "must be a JSON object"),
        ({"model": {"model_class": "xlstm_jax.models.llama.LlamaTransformer", "model_config": {}}}, "no xLSTM"),
        ({"num_blocks": 2}, "mlstm_block is None"),
        (saved(model={"slstm_block": {"x": 1}}), "slstm_block is set"),
        (saved(model={"num_blocks": "many"}), r"num_blocks is 'many'"),
    ],
)
def test_what_is_no_config_is_refused(metadata, message):
    with pytest.raises(ConfigError, match=message):
        config_from_xlstm_jax(metadata)


def test_the_arguments_beside_the_golden_models():
    config = config_from_xlstm_jax((GOLDEN / "v2_headwise_loop.json").read_text())
    assert (config.bias, config.mlstm_block.add_post_norm, config.dtype) == (True, True, "float32")
    assert config.mlstm_block.mlstm.mlstm_cell.backend.name == "parallel_stabilized"
