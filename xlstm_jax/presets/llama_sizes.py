"""The Llama-style Transformers of NX-AI's xlstm-jax, to compare with at equal size.

Models and recipes are the published configurations of that package. Its attention divides by the root of the number of
heads; ours by that of their size, as Llama does (`attention_scale`). Where a configuration leaves the number of devices
open, the batch is that of one node of eight.
"""

from __future__ import annotations

from collections.abc import Callable

from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.presets.published import VOCAB_SIZE, published
from xlstm_jax.training.config import Experiment


def _model(dim: int, blocks: int, *, context_length: int, theta: float, remat: list[str]) -> LlamaConfig:
    return LlamaConfig(
        embedding_dim=dim,
        num_blocks=blocks,
        vocab_size=VOCAB_SIZE,
        context_length=context_length,
        head_dim=128,
        theta=theta,
        dtype="bfloat16",
        lm_head_dtype="bfloat16",
        scan_blocks=True,
        parallel=ParallelConfig(remat=remat),
    )


def llama_165m() -> Experiment:
    """xlstm-jax's llama165M: 12 Transformer blocks of width 768, 162.2 million parameters.

    Command: `xlstm train llama_165m --data.store STORE`. Numbers: its configuration for SlimPajama-627B (cosine), which
    did not start there. Not trained by us.
    """
    model = _model(768, 12, context_length=2048, theta=1e4, remat=["TransformerBlock"])
    return published(model, lr=1e-3, steps=95_000, batch_size=128, device_rows=16, schedule="cosine")


def llama_1_3b() -> Experiment:
    """xlstm-jax's llama1.3B: 24 Transformer blocks of width 2048, 1420.4 million parameters.

    Command: `xlstm train llama_1.3b --data.store STORE`. Numbers: its run on DCLM. Not trained by us.
    """
    model = _model(2048, 24, context_length=8192, theta=5e5, remat=["TransformerBlock"])
    return published(model, lr=7e-4, steps=95_000, batch_size=64, device_rows=8)


def llama_7b() -> Experiment:
    """xlstm-jax's llama7B: 32 Transformer blocks of width 4096, 6863.2 million parameters.

    Command: `xlstm train llama_7b --data.store STORE`. Numbers: its run on DCLM. Not trained by us.
    """
    model = _model(4096, 32, context_length=8192, theta=5e5, remat=["AttnBlock", "FFNBlock"])
    return published(model, lr=5e-4, steps=95_000, batch_size=32, device_rows=4, warmup_steps=3000)


PRESETS: dict[str, Callable[[], Experiment]] = {
    "llama_165m": llama_165m,
    "llama_1.3b": llama_1_3b,
    "llama_7b": llama_7b,
}
