"""Record what transformers makes of tiny models, as tests/golden/hf_*: folders as on the Hub, and expected.npz.

Command: `.venv-torch/bin/python tests/torch/record_huggingface.py`. `make test` compares with these without PyTorch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from huggingface_models import greedy_by_reading_again, llama_model, logits_of, losses_of, tokens_of, xlstm_model

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "ffn_proj_factor": 1.6,
    "ffn_round_up_to_multiple_of": 8,
}


def record(name, model, length=70, dtype=torch.float32, max_shard_size="40KB"):
    """Weights in `dtype`; results of these weights in float32."""
    model = model.to(dtype)
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    model = model.float()
    tokens = tokens_of(1, length, 64)
    logits = logits_of(model, tokens)
    greedy = greedy_by_reading_again(model, tokens[:, :7], 20)
    np.savez_compressed(
        folder / "expected.npz",
        tokens=tokens,
        logits=logits.astype(np.float32),
        losses=losses_of(logits, tokens).astype(np.float32),
        greedy=greedy,
    )


def main():
    record("hf_xlstm_single", xlstm_model(seed=11, **TINY))
    record("hf_xlstm_fused", xlstm_model(seed=12, weight_mode="fused", **TINY), 67, torch.bfloat16, "1GB")
    tiny = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4}
    record("hf_llama_gqa", llama_model(seed=13, num_key_value_heads=2, rope_theta=500.0, **tiny))


if __name__ == "__main__":
    main()
