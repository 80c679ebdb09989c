"""A training step and a step of decoding, of the xLSTM and the Llama: ours against those of `transformers` (PyTorch).

    python benchmarks/transformers_peer.py [--out FILE.json] [--rounds N] [--only NAME]

Models, all float32 with a vocabulary of 2048: `xlstm-10m` (the design of xLSTM-7B, width 512, 3 blocks),
`xlstm-3m` (width 256, 4 blocks) and `llama-10m`, `llama-3m` (Transformers of those widths and depths). Theirs hold our
weights, written by `xlstm_jax.hub`. A training step has 4 x 512 tokens: loss, gradient, clipping, AdamW. A step of
decoding makes one token in each of 1 or 8 rows after a prompt of 200, the likeliest one.

Before anything is timed the two must agree: the loss to 1e-5, and the tokens that they make (unless two logits tie).
Theirs runs eagerly, as installed, with AdamW fused: "training step" is with the values of its config (for the xLSTM
automatic gradients of the chunkwise form); "step, theirs tuned" with the better settings that it has (the gradients
written by hand in the package `xlstm`, and no code for lengths that fill no chunk).
Both share a process that keeps freed memory, as `xlstm train` does; without, theirs is slower too.
Rounds alternate between the two; a ratio is the median over the rounds. Our share of the limit stands beside it: of the
largest matrix product's FLOP/s in training; in decoding, of one read of weights and state (see decode.py).

Where PyTorch or transformers is not installed, it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import _common
import jax
import jax.numpy as jnp
import numpy as np
from decode import bytes_per_step, read_speed

from xlstm_jax.data.store import Batch
from xlstm_jax.hub.folders import written_as
from xlstm_jax.hub.mapping import tensors_from_params
from xlstm_jax.inference.engine import Engine
from xlstm_jax.inference.sampling import Sampling, draws
from xlstm_jax.machine.malloc import keep_freed_memory
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.training.build import build, fresh_state
from xlstm_jax.training.config import Experiment, TrainingConfig
from xlstm_jax.training.step import make_train_step

VOCAB, BATCH, SEQ, PROMPT, TOKENS = 2048, 4, 512, 200, 32
TOLERANCE = 1e-5


def configs() -> dict[str, LanguageModelConfig]:
    """What is timed."""
    found: dict[str, LanguageModelConfig] = {}
    for name, dim, blocks in (("10m", 512, 3), ("3m", 256, 4)):
        xlstm = small_v1(dim, blocks, 4, SEQ)
        block = xlstm.mlstm_block
        assert block is not None
        # Theirs knows no documents.
        cell = dataclasses.replace(block.mlstm.mlstm_cell, reset_at_document_boundaries=False, reset_mode="gate")
        block = dataclasses.replace(block, mlstm=dataclasses.replace(block.mlstm, mlstm_cell=cell))
        found[f"xlstm-{name}"] = dataclasses.replace(xlstm, mlstm_block=block, vocab_size=VOCAB)
        found[f"llama-{name}"] = LlamaConfig(
            embedding_dim=dim,
            num_blocks=blocks,
            head_dim=64,
            vocab_size=VOCAB,
            context_length=SEQ,
            mask_across_document_boundaries=False,
        )
    return found


def their_model(config: LanguageModelConfig, params: Any, tuned: bool = False) -> Any:
    """The model of transformers with our weights; `tuned` to train an xLSTM faster than by the values of its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, written = written_as(config)
    data = dict(written.document)
    if kind == "xlstm":
        data |= {
            "autocast_kernel_dtype": "float32",
            "return_last_states": True,
        }
        if tuned:
            data |= {"chunkwise_kernel": "chunkwise--native_custbw", "mode": "train"}
    data = {key: value for key, value in data.items() if value is not None and key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **data), dtype=torch.float32)
    tensors = tensors_from_params(written.entries, config, params)
    state = {name: torch.from_numpy(np.array(tensor.values())) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=True)
    if tuned:
        for module in model.modules():
            if hasattr(module, "mode"):
                module.mode = "train"
    return model


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, after two calls that are not counted."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for count in range(-2, rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if count >= 0:
                taken[name].append(time.perf_counter() - start)
    return taken


def compare(name: str, what: str, taken: dict[str, list[float]], steps: int = 1) -> dict[str, Any]:
    """What is told of one comparison."""
    ratio = statistics.median(theirs / ours for ours, theirs in zip(taken["ours"], taken["theirs"], strict=True))
    seconds = {key: statistics.median(values) / steps for key, values in taken.items()}
    return {"model": name, "what": what, "seconds": seconds, "ratio": ratio}


def training(name: str, config: LanguageModelConfig, *, rounds: int, tuned: bool) -> dict[str, Any] | None:
    """A training step, or None if the two disagree."""
    import torch

    experiment = Experiment(model=config, training=TrainingConfig(batch_size=BATCH))
    model, optimizer = build(experiment)
    state = jax.jit(lambda: fresh_state(model, optimizer, experiment))()
    peer = their_model(config, state.params, tuned)
    adamw = torch.optim.AdamW(peer.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = np.random.default_rng(0).integers(VOCAB, size=(BATCH, SEQ + 1)).astype(np.int32)
    rows = Batch(
        *map(jnp.asarray, (tokens[:, :-1], tokens[:, 1:], np.arange(SEQ) == np.zeros((BATCH, 1)))),
        jnp.ones((BATCH, SEQ), bool),
    )
    inputs, targets = (torch.from_numpy(x.astype(np.int64)) for x in (tokens[:, :-1], tokens[:, 1:]))
    compiled = make_train_step(model, optimizer).lower(state, rows).compile()  # type: ignore[attr-defined]
    holder: dict[str, Any] = {"state": state}

    def ours() -> float:
        holder["state"], metrics = compiled(holder["state"], rows)
        return float(metrics.loss)

    def theirs() -> float:
        logits = peer(inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return float(loss.detach())

    loss, want = ours(), theirs()
    if not abs(loss - want) <= TOLERANCE * want:
        print(f"{name}: our loss is {loss}, theirs {want}", file=sys.stderr)
        return None
    _common.matmul_peak.cache_clear()
    peak = _common.matmul_peak("float32")
    what = "step, theirs tuned" if tuned else "training step"
    found = compare(name, what, in_turns({"ours": ours, "theirs": theirs}, rounds))
    _common.matmul_peak.cache_clear()
    peak = max(peak, _common.matmul_peak("float32"))
    flops = model.flops_per_token(SEQ, train=True) * tokens[:, 1:].size
    return found | {
        "parameters": model.param_count,
        "share_of_limit": {key: flops / taken / peak for key, taken in found["seconds"].items()},
        "limit": f"{peak / 1e9:.0f} GFLOP/s",
        "error": abs(loss - want) / want,
    }


def decoding(name: str, config: LanguageModelConfig, *, rounds: int, batch: int) -> dict[str, Any] | None:
    """A step of decoding, or None if the two disagree."""
    import torch

    model, _ = build(Experiment(model=config))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    peer = their_model(config, params).eval()
    # No id ends a row and none is left out.
    engine = Engine(model, VOCAB, VOCAB)
    prompts = [row.astype(np.int32) for row in np.random.default_rng(1).integers(1, VOCAB, size=(batch, PROMPT))]
    calls = rounds + 3
    # The engine puts an EOD before a prompt; with an id that the vocabulary lacks, nothing is looked up for it.
    opened = Engine(model, 0, VOCAB)
    carry = opened.prefill(params, prompts, calls * TOKENS)
    draw, done = draws(Sampling(temperature=0), range(batch)), np.zeros(batch, bool)
    holder: dict[str, Any] = {"carry": carry}
    start = torch.from_numpy(np.stack([np.concatenate([[0], row]) for row in prompts]).astype(np.int64))
    with torch.inference_mode():
        out = peer(start, use_cache=True)
    cache_name = "cache_params" if hasattr(out, "cache_params") else "past_key_values"
    holder |= {"cache": getattr(out, cache_name), "logits": out.logits[:, -1]}

    def ours() -> np.ndarray:
        holder["carry"], made = engine.decode(params, holder["carry"], draw, done, TOKENS)
        return made

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        made, gaps = [], []
        with torch.inference_mode():
            for _ in range(TOKENS):
                best = torch.topk(holder["logits"], 2, dim=-1)
                made.append(best.indices[:, 0].numpy())
                gaps.append((best.values[:, 0] - best.values[:, 1]).numpy())
                out = peer(best.indices[:, :1], **{cache_name: holder["cache"]}, use_cache=True)
                holder["cache"], holder["logits"] = getattr(out, cache_name), out.logits[:, -1]
        return np.stack(made), np.stack(gaps)

    mine, (want, gaps) = ours(), theirs()
    for row in range(batch):
        differ = np.flatnonzero(mine[:, row] != want[:, row])
        if len(differ) and gaps[differ[0], row] > 1e-4:
            print(f"{name}: row {row} goes another way at token {differ[0]}", file=sys.stderr)
            return None
    needed = bytes_per_step(model, params, batch)
    speed = read_speed(needed, rounds)
    taken = in_turns({"ours": ours, "theirs": theirs}, rounds)
    speed = max(speed, read_speed(needed, rounds))
    found = compare(name, f"decoding, {batch} row{'s' * (batch > 1)}", taken, TOKENS)
    return found | {
        "parameters": model.param_count,
        "share_of_limit": {key: needed / speed / taken for key, taken in found["seconds"].items()},
        "limit": f"{needed / 1e6:.0f} MB at {speed / 1e9:.0f} GB/s",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=list(configs()), help="time this model alone")
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    keep_freed_memory()
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"nothing to compare with: {' and '.join(missing)} not installed here")
        return 0
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    results, failed = [], False
    print(f"{'model':12}{'what':20}{'ours ms':>10}{'theirs ms':>11}{'ratio':>8}{'our share of the limit':>30}")
    for name, config in configs().items():
        if arguments.only not in (None, name):
            continue
        can_tune = name.startswith("xlstm") and importlib.util.find_spec("xlstm") is not None
        timed = [functools.partial(training, tuned=tuned) for tuned in (False, True)[: 1 + can_tune]]
        timed += [functools.partial(decoding, batch=batch) for batch in (1, 8)]
        for measure in timed:
            result = measure(name, config, rounds=arguments.rounds)
            if result is None:
                failed = True
                continue
            results.append(result)
            seconds = result["seconds"]
            print(
                f"{name:12}{result['what']:20}{1e3 * seconds['ours']:>10.2f}{1e3 * seconds['theirs']:>11.2f}"
                f"{result['ratio']:>8.1f}{result['share_of_limit']['ours']:>8.0%} of {result['limit']}"
            )
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
    _common.write({"peers": versions, "threads": torch.get_num_threads(), "rows": results}, arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
