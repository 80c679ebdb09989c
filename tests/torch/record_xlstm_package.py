"""Records what models of the PyTorch package `xlstm` compute, for the tests that run without PyTorch.

    python tests/torch/record_xlstm_package.py

Writes tests/golden/xlstm_package_NAME/ with model.safetensors (the state dict), config.json (the package's config) and
truth.npz: tokens, logits, per-token losses (both in float64, of the same float32 parameters), a greedy continuation
and, for one of them, the gradient of the mean loss, rounded to float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from xlstm_package_models import as_dict, package_config, package_model, state_dict, to_cuda_layout

GOLDEN = Path(__file__).parents[1] / "golden"

SMALL = {"vocab_size": 23, "embedding_dim": 16, "num_blocks": 2}
WIDTH = {"round_proj_up_to_multiple_of": 8}
CASES = {
    "mixed": {"slstm_at": [1], "mlstm": WIDTH, "feedforward": WIDTH},
    "mixed_cuda": {
        "slstm_at": [0],
        "tie_weights": True,
        "bias": True,
        "mlstm": {**WIDTH, "num_heads": 4, "conv1d_kernel_size": 3},
        "slstm": {"num_heads": 4, "backend": "cuda"},
        "feedforward": {**WIDTH, "act_fn": "swish", "bias": True},
    },
    "slstm_without_conv": {"mlstm": None, "slstm": {"conv1d_kernel_size": 0}, "feedforward": WIDTH},
}


def main() -> None:
    for name, case in CASES.items():
        config = package_config(**SMALL, **case)
        backend, config.slstm_block.slstm.backend = config.slstm_block.slstm.backend, "vanilla"
        tensors = state_dict(package_model(config, seed=3))
        model = package_model(config, torch.float64)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
        tokens = torch.from_numpy(np.random.default_rng(5).integers(0, 23, (2, 29)))
        logits = model(tokens)
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        losses.mean().backward()
        gradients = {key: parameter.grad.float().numpy() for key, parameter in model.named_parameters()}
        text = tokens[:, :5]
        with torch.no_grad():
            while text.shape[1] < 16:
                text = torch.cat([text, model(text)[:, -1:].argmax(-1)], dim=1)
        if backend == "cuda":
            config.slstm_block.slstm.backend = "cuda"
            heads = config.slstm_block.slstm.num_heads
            tensors, gradients = to_cuda_layout(tensors, heads), to_cuda_layout(gradients, heads)
        folder = GOLDEN / f"xlstm_package_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        if config.tie_weights:
            del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(as_dict(config), indent=1) + "\n")
        truth = {"tokens": tokens, "logits": logits.detach(), "losses": losses.detach(), "text": text}
        np.savez_compressed(
            folder / "truth.npz",
            **{key: value.numpy() for key, value in truth.items()},
            **{f"gradient/{key}": value for key, value in gradients.items() if name == "mixed"},
        )


if __name__ == "__main__":
    main()
