"""Small models of transformers with random weights, for the comparison with ours and for its recorded results."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import torch
import transformers
import transformers.utils

# What runs on any CPU, in float32 throughout, and hands states on.
KERNELS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "autocast_kernel_dtype": "float32",
    "return_last_states": True,
}
SMALL = {"vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2}
SMALL_LLAMA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def xlstm_classes(native: bool) -> tuple[Any, Any]:
    """(config, model) of transformers, with its own cell (native) or with that of the package xlstm.

    Which of the two it takes is settled when its modules are imported.
    """
    names = [f"transformers.models.xlstm.{part}_xlstm" for part in ("configuration", "modeling")]
    before = {name: sys.modules.pop(name, None) for name in names}
    available = transformers.utils.is_xlstm_available
    try:
        if native:
            transformers.utils.is_xlstm_available = lambda: False
        configuration, modeling = (importlib.import_module(name) for name in names)
    finally:
        transformers.utils.is_xlstm_available = available
        sys.modules.update({name: module for name, module in before.items() if module is not None})
    assert modeling.external_xlstm == (not native and available())
    # Its initialisation zeroes every gate, so that a test would see nothing, and fails in the weight mode "fused".
    modeling.xLSTMPreTrainedModel._init_weights = lambda self, module: None
    return configuration.xLSTMConfig, modeling.xLSTMForCausalLM


def xlstm_model(seed: int = 0, native: bool = True, **fields: Any) -> Any:
    """An `xLSTMForCausalLM` with every parameter random."""
    config_class, model_class = xlstm_classes(native)
    return randomise(model_class(config_class(**(SMALL | KERNELS | fields))), seed)


def llama_model(seed: int = 0, **fields: Any) -> Any:
    """A `LlamaForCausalLM` with every parameter random."""
    config = transformers.LlamaConfig(**(SMALL_LLAMA | fields))
    return randomise(transformers.LlamaForCausalLM(config), seed)


def randomise(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                value = 1 + 0.2 * noise
            elif parameter.ndim == 1:
                value = 0.5 * noise + (3.0 if "fgate" in name else 0.0)
            else:
                value = noise * parameter.shape[-1] ** -0.5
            parameter.copy_(value)
    return model.eval()


def tokens_of(batch: int, length: int, vocab: int = 96, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, (batch, length)).astype(np.int32)


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.as_tensor(tokens, dtype=torch.long), use_cache=False).logits.numpy()


def losses_of(logits: Any, tokens: np.ndarray) -> np.ndarray:
    """Nats of each token but the first."""
    logits, targets = torch.as_tensor(np.array(logits))[:, :-1], torch.as_tensor(tokens, dtype=torch.long)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").numpy()


def greedy_by_reading_again(model: Any, tokens: np.ndarray, count: int) -> np.ndarray:
    """The likeliest continuation, without the cache (whose size transformers gets wrong for the smallest models)."""
    row = tokens
    for _ in range(count):
        row = np.concatenate([row, logits_of(model, row)[:, -1:].argmax(-1).astype(np.int32)], axis=1)
    return row[:, tokens.shape[1] :]
