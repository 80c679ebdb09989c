"""A run with a tiny model whose parameters are random, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.config import to_json
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.models.language_model import LanguageModel, LanguageModelConfig, build_model
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.runs.folder import RunFolder


def model_config(layer_type: str = "mlstm_v1", **fields: Any) -> xLSTMLMModelConfig:
    """Two blocks of width 16; the vocabulary is larger than that of bytes, as rounding makes it."""
    cell = mLSTMCellConfig(reset_at_document_boundaries=True, reset_mode="exact", norm_type_v1="rmsnorm")
    layer = mLSTMLayerConfig(
        layer_type=layer_type,
        num_heads=2,
        round_proj_up_to_multiple_of=8,
        mlstm_cell=cell,
    )
    values = {"vocab_size": 320, "num_blocks": 2, "embedding_dim": 16, "context_length": 16, "dtype": "float32"}
    return xLSTMLMModelConfig(mlstm_block=mLSTMBlockConfig(mlstm=layer), **values | fields)


def random_params(model: LanguageModel, seed: int = 0) -> Any:
    """Parameters under which what the model says depends clearly on what it has read."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    params: Any = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    params["lm_head"]["kernel"][:, ByteTokenizer.eod_id] = 0  # so that the likeliest token is never EOD
    return jax.tree.map(jnp.asarray, params)


def write_run(path: Path, config: LanguageModelConfig | None = None, step: int | None = 3) -> Path:
    """A run folder with a byte tokenizer and, unless `step` is None, a checkpoint."""
    config = model_config() if config is None else config
    folder = RunFolder(path).create()
    folder.write_config({"model": to_json(config), "training": {"anything": 1}})
    ByteTokenizer().save(folder.tokenizer_dir)
    if step is not None:
        with folder.checkpoints() as checkpoints:
            checkpoints.save(step, {"params": random_params(build_model(config)), "step": jnp.int32(step)}, {})
    return path
