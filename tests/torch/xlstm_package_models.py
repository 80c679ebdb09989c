"""Small language models of the PyTorch package `xlstm`, with random values in every parameter."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import numpy as np
import torch
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

torch.set_num_threads(1)  # for matrices of this size, more of them wait for each other

MODELS = {
    "mlstm": {"slstm_at": []},
    "slstm": {"slstm_at": "all", "mlstm": None},
    "mixed": {"slstm_at": [1]},
    "mixed_4_heads_biases_tied": {
        "slstm_at": [0, 2],
        "num_blocks": 4,
        "bias": True,
        "tie_weights": True,
        "mlstm": {"num_heads": 4, "qkv_proj_blocksize": 8, "conv1d_kernel_size": 3, "proj_factor": 1.3},
        "slstm": {"num_heads": 4, "conv1d_kernel_size": 2, "bias_init": "standard"},
        "feedforward": {"bias": True, "act_fn": "swish", "proj_factor": 2.0},
    },
    "mixed_without_conv_and_norms": {
        "slstm_at": [-1],
        "num_blocks": 2,
        "embedding_dim": 48,
        "add_post_blocks_norm": False,
        "mlstm": {"num_heads": 1, "qkv_proj_blocksize": 24, "round_proj_up_to_multiple_of": 16},
        "slstm": {"num_heads": 3, "conv1d_kernel_size": 0, "group_norm_weight": False},
        "feedforward": {"act_fn": "relu^2", "round_proj_up_dim_up": False, "round_proj_up_to_multiple_of": 8},
    },
    "slstm_without_feedforward": {"slstm_at": "all", "slstm": {"num_heads": 8}, "feedforward": None},
}
"""Names -> what differs from `package_config`'s defaults."""


def package_config(mlstm=(), slstm=(), feedforward=(), **stack) -> xLSTMLMModelConfig:
    """None leaves a part out."""
    values = {"vocab_size": 41, "embedding_dim": 32, "num_blocks": 3, "context_length": 64} | stack
    return xLSTMLMModelConfig(
        mlstm_block=None if mlstm is None else mLSTMBlockConfig(mLSTMLayerConfig(**{"num_heads": 2, **dict(mlstm)})),
        slstm_block=sLSTMBlockConfig(
            sLSTMLayerConfig(**{"num_heads": 2, "backend": "vanilla", "dtype": "float32", **dict(slstm)}),
            None if feedforward is None else FeedForwardConfig(**dict(feedforward)),
        ),
        **values,
    )


def package_model(config: xLSTMLMModelConfig, dtype=torch.float32, seed=0, eps=1e-6) -> xLSTMLMModel:
    """The model in evaluation mode; every parameter is drawn anew, so that no zero hides a mistake.

    `eps` is that of the mLSTM's normaliser, which the package has no field for.
    """
    model = xLSTMLMModel(copy.deepcopy(config)).to(dtype).eval()
    for block in model.xlstm_block_stack.blocks:
        if hasattr(block.xlstm, "mlstm_cell"):
            block.xlstm.mlstm_cell.backend_fn = partial(parallel_stabilized_simple, eps=eps)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            shift = 3.0 if name.endswith("fgate.bias") else 0.0
            parameter.copy_(shift + scale * noise)
    return model


def state_dict(model: xLSTMLMModel) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def as_dict(config: xLSTMLMModelConfig) -> dict:
    return dataclasses.asdict(config)


def to_cuda_layout(tensors: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """What the CUDA backend would have saved, by the package's own conversions."""
    from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla, sLSTMCellConfig

    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith("_recurrent_kernel_")]:
        prefix = name.removesuffix("_recurrent_kernel_")
        dim = tensors[name].shape[2]
        config = sLSTMCellConfig(hidden_size=heads * dim, num_heads=heads)
        vanilla = sLSTMCell_vanilla(copy.deepcopy(config))
        cuda = sLSTMCell_cuda(copy.deepcopy(config), skip_backend_init=True)
        for leaf in ("recurrent_kernel", "bias"):
            outside = getattr(vanilla, f"_{leaf}_int2ext")(torch.from_numpy(tensors[f"{prefix}_{leaf}_"]))
            inside = getattr(cuda, f"_{leaf}_ext2int")(outside)
            tensors[f"{prefix}_{leaf}_"] = inside.numpy().copy()
    return tensors
