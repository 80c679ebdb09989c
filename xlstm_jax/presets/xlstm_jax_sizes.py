"""The sizes of NX-AI's xlstm-jax: the paper's mLSTM blocks (`mlstm_*`), and those of xLSTM-7B (`mlstm_v1_*`).

Models and recipes are the published configurations of that package, on SlimPajama or DCLM. All rates decay
exponentially to a tenth unless said otherwise. Where a configuration leaves the number of devices open, the batch is
that of one node of eight. Documents never see each other here; the runs on SlimPajama did not reset at borders, those
on DCLM did by closing the forget gate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.presets.published import VOCAB_SIZE, published
from xlstm_jax.training.config import Experiment


def _model(
    dim: int, blocks: int, heads: int, *, v1: bool, context_length: int = 2048, out_norm: str = "layernorm"
) -> xLSTMLMModelConfig:
    cell = mLSTMCellConfig(
        gate_soft_cap=15.0,
        igate_bias_init_range=-10.0 if v1 else 0.0,
        norm_type_v1=out_norm,  # type: ignore[arg-type]
        reset_at_document_boundaries=True,
        reset_mode="exact",
    )
    layer = mLSTMLayerConfig(
        layer_type="mlstm_v1" if v1 else "mlstm",
        num_heads=heads,
        qk_dim_factor=0.5 if v1 else 1.0,
        v_dim_factor=1.0,
        mlstm_cell=cell,
    )
    feedforward = FeedForwardConfig(proj_factor=2.667, act_fn="swish", ff_type="ffn_gated") if v1 else None
    return xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=layer, feedforward=feedforward),
        vocab_size=VOCAB_SIZE,
        context_length=context_length,
        embedding_dim=dim,
        num_blocks=blocks,
        norm_type="rmsnorm",
        dtype="bfloat16",
        lm_head_dtype="bfloat16",
        logits_soft_cap=30.0,
        scan_blocks=True,
        parallel=ParallelConfig(remat=["xLSTMResBlock", "FFNResBlock"] if v1 else ["mLSTMBlock"]),
    )


def mlstm_120m() -> Experiment:
    """xlstm-jax's mLSTM120M: 12 mLSTM blocks of width 768, 120.5 million parameters.

    Command: `xlstm train mlstm_120m --data.store STORE`. Numbers: its run on SlimPajama-627B. Not trained by us.
    """
    model = dataclasses.replace(_model(768, 12, 4, v1=False), scan_blocks=False, parallel=None)
    return published(model, lr=1e-3, steps=95_000, batch_size=128, device_rows=16)


def mlstm_165m() -> Experiment:
    """xlstm-jax's mLSTM165M: 24 mLSTM blocks of width 768, 163.8 million parameters.

    Command: `xlstm train mlstm_165m --data.store STORE`. Numbers: its run on SlimPajama-627B. Not trained by us.
    """
    return published(_model(768, 24, 4, v1=False), lr=1e-3, steps=95_000, batch_size=128, device_rows=16)


def mlstm_1_3b() -> Experiment:
    """xlstm-jax's mLSTM1.3B: 48 mLSTM blocks of width 2048, 1422.6 million parameters.

    Command: `xlstm train mlstm_1.3b --data.store STORE`. Numbers: its run on SlimPajama-627B. Not trained by us.
    """
    return published(_model(2048, 48, 4, v1=False), lr=7e-4, steps=95_000, batch_size=64, device_rows=8)


def mlstm_7b() -> Experiment:
    """xlstm-jax's mLSTM7B: 64 mLSTM blocks of width 4096, 6889.9 million parameters.

    Command: `xlstm train mlstm_7b --data.store STORE`. Numbers: its run on SlimPajama-627B. Not trained by us.
    """
    model = _model(4096, 64, 8, v1=False)
    return published(model, lr=5e-4, steps=95_000, batch_size=64, device_rows=8, warmup_steps=2000)


def mlstm_v1_165m() -> Experiment:
    """xlstm-jax's mLSTMv1_165M: 12 blocks as in xLSTM-7B, of width 768, 164.1 million parameters.

    Command: `xlstm train mlstm_v1_165m --data.store STORE`. Numbers: its run on SlimPajama-627B. Not trained by us.
    """
    return published(_model(768, 12, 4, v1=True), lr=1e-3, steps=95_000, batch_size=128, device_rows=16)


def mlstm_v1_1_3b() -> Experiment:
    """xlstm-jax's mLSTMv1_1.3B: 24 blocks as in xLSTM-7B, of width 2048, 1420.8 million parameters.

    Command: `xlstm train mlstm_v1_1.3b --data.store STORE`. Numbers: its run on SlimPajama-627B. Not trained by us.
    """
    return published(_model(2048, 24, 4, v1=True), lr=7e-4, steps=95_000, batch_size=128, device_rows=16)


def mlstm_v1_2_7b() -> Experiment:
    """xlstm-jax's mLSTMv1_2.7B: 32 blocks as in xLSTM-7B, of width 2560, 2780.4 million parameters.

    Command: `xlstm train mlstm_v1_2.7b --data.store STORE`. Numbers: its run on DCLM with a cosine decay, on 64 GPUs of
    8 rows each. Not trained by us.
    """
    model = _model(2560, 32, 5, v1=True, context_length=8192, out_norm="rmsnorm")
    return published(model, lr=7e-4, steps=95_000, batch_size=512, device_rows=8, schedule="cosine")


def mlstm_v1_7b() -> Experiment:
    """xLSTM-7B (arXiv 2503.13427): 32 blocks of width 4096, 6865.4 million parameters.

    Command: `xlstm train mlstm_v1_7b --data.store STORE`. Numbers: the run of 500,000 steps over 2.1 trillion tokens of
    DCLM, on 256 H100 of 2 rows each; a finetuning on other texts followed. Not trained by us.
    """
    model = _model(4096, 32, 8, v1=True, context_length=8192)
    return published(model, lr=4e-4, steps=500_000, batch_size=512, device_rows=2, warmup_steps=3000)


PRESETS: dict[str, Callable[[], Experiment]] = {
    "mlstm_120m": mlstm_120m,
    "mlstm_165m": mlstm_165m,
    "mlstm_1.3b": mlstm_1_3b,
    "mlstm_7b": mlstm_7b,
    "mlstm_v1_165m": mlstm_v1_165m,
    "mlstm_v1_1.3b": mlstm_v1_1_3b,
    "mlstm_v1_2.7b": mlstm_v1_2_7b,
    "mlstm_v1_7b": mlstm_v1_7b,
}
