"""A small model of the design of xLSTM-7B, by its sizes alone."""

from __future__ import annotations

from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig


def small_v1(dim: int, blocks: int, heads: int, context_length: int) -> xLSTMLMModelConfig:
    """A small model of the design of xLSTM-7B (arXiv 2503.13427) in float32, whose documents never see each other.

    Its vocabulary is left to the tokenizer.
    """
    return xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(
                layer_type="mlstm_v1",
                num_heads=heads,
                qk_dim_factor=0.5,
                v_dim_factor=1.0,
                mlstm_cell=mLSTMCellConfig(
                    gate_soft_cap=15.0,
                    igate_bias_init_range=-10.0,
                    norm_type_v1="layernorm",
                    reset_at_document_boundaries=True,
                    reset_mode="exact",
                ),
            ),
            feedforward=FeedForwardConfig(proj_factor=2.667, act_fn="swish", ff_type="ffn_gated"),
        ),
        context_length=context_length,
        num_blocks=blocks,
        embedding_dim=dim,
        norm_type="rmsnorm",
        dtype="float32",
        logits_soft_cap=30.0,
    )
