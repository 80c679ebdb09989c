"""How fast tokens are made: tokens per second against one read of weights and state per token.

    python benchmarks/decode.py [--out FILE.json] [--rounds N] [--only NAME]

Models: `quickstart` (the preset) and `10m` (mlstm_v1, width 512, 3 blocks), with random parameters, at 1 and 8 rows.
A call of the compiled decoder makes 32 tokens a row, at temperature 0.8: everything that `xlstm generate` computes.

Before anything is timed, greedy decoding of ragged prompts is compared with the likeliest token of the whole model run
over prompt and continuation at once; no speed is printed if a token differs (a tie within rounding is no difference).

The bound: a step must read every weight that it uses once (of the embedding only the rows of its tokens) and the state
of every row once; the bound is these bytes at the speed at which this machine reads as many bytes, measured in the same
run by sums and matrix-vector products over an array of that size (best of all). So a model that fits in the cache is
held against the cache's speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import Any

import _common
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.inference.engine import MAX_STEPS, Engine
from xlstm_jax.inference.sampling import Sampling, draws
from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig
from xlstm_jax.presets import get_preset
from xlstm_jax.training.config import with_vocabulary

EOD = 0
CHECK_TOKENS = 24
TIE = 1e-4
"""Logits closer than this are equal: sums are ordered differently in the two forms."""


def configs() -> dict[str, xLSTMLMModelConfig]:
    """What is timed."""
    preset = get_preset("quickstart")
    ten = small_v1(dim=512, blocks=3, heads=4, context_length=512)
    return {
        "quickstart": with_vocabulary(preset, preset.data.vocab_size).model,
        "10m": dataclasses.replace(ten, vocab_size=2048),
    }


def check(engine: Engine, params: Any) -> str | None:
    """What is wrong with greedy decoding, None if nothing is."""
    rng = np.random.default_rng(0)
    vocab = engine.model.config.vocab_size
    prompts = [rng.integers(1, vocab, size).astype(np.int32) for size in (5, 40, 1, 23)]
    carry = engine.prefill(params, prompts)
    draw = draws(Sampling(temperature=0), range(len(prompts)))
    _, made = engine.decode(params, carry, draw, np.zeros(len(prompts), bool), CHECK_TOKENS)
    longest = max(map(len, prompts)) + 1 + CHECK_TOKENS
    tokens = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in enumerate(prompts):
        both = np.concatenate([[EOD], prompt, made[:, row]])
        tokens[row, : len(both)] = both
    borders = np.broadcast_to(np.arange(longest) == 0, tokens.shape)
    whole = jax.jit(lambda p, t, b: engine.model.apply({"params": p}, t, document_borders=b))
    logits = np.asarray(whole(params, tokens, borders))
    for row, prompt in enumerate(prompts):
        of_row = logits[row, len(prompt) : len(prompt) + CHECK_TOKENS]
        short = of_row.max(axis=1) - of_row[np.arange(CHECK_TOKENS), made[:, row]]
        ended = np.flatnonzero(made[:, row] == EOD)
        short = short[: ended[0] + 1] if len(ended) else short
        if not (short <= TIE).all():
            at = int(np.argmax(short))
            return f"row {row} takes token {made[at, row]} at step {at}, {short[at]:.2e} below the likeliest"
    return None


def read_speed(size: int, rounds: int) -> float:
    """Bytes per second at which `size` bytes of float32 are read, the best of a few ways."""
    width = 1024
    array = jnp.ones((max(size // 4 // width, 1), width), jnp.float32)
    right, left = jnp.ones(width, jnp.float32), jnp.ones(array.shape[0], jnp.float32)
    best = 0.0
    for function in (jnp.sum, lambda x: x @ right, lambda x: left @ x):
        compiled = jax.jit(function)
        jax.block_until_ready(compiled(array))
        for _ in range(3 * rounds):
            start = time.perf_counter()
            jax.block_until_ready(compiled(array))
            best = max(best, array.nbytes / (time.perf_counter() - start))
    return best


def bytes_per_step(model: xLSTMLMModel, params: Any, rows: int) -> int:
    """Weights and states that a step must read at least."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if not model.config.tie_weights:
        table = params["token_embedding"]["embedding"]
        weights -= table.nbytes - rows * table.nbytes // table.shape[0]
    return weights + rows * model.state_bytes


def measure(name: str, config: xLSTMLMModelConfig, rounds: int) -> list[dict[str, Any]] | None:
    """One model's figures, or None if its decoding is wrong."""
    model = xLSTMLMModel(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    engine = Engine(model, EOD, config.vocab_size)
    problem = check(engine, params)
    if problem is not None:
        print(f"{name}: {problem}", file=sys.stderr)
        return None
    results = []
    for rows in (1, 8):
        prompt = np.arange(1, 200, dtype=np.int32)
        carry = engine.prefill(params, [prompt] * rows)
        start = time.perf_counter()
        jax.block_until_ready(engine.prefill(params, [prompt] * rows))
        prefill_seconds = time.perf_counter() - start
        draw, done = draws(Sampling(temperature=0.8), range(rows)), np.zeros(rows, bool)
        # No id beyond the vocabulary ends a row: all of them run to the end of each call.
        endless = Engine(model, config.vocab_size, config.vocab_size)
        holder = [carry]

        def block(endless: Engine = endless, holder: list = holder, draw: Any = draw, done: Any = done) -> Any:
            holder[0], made = endless.decode(params, holder[0], draw, done, MAX_STEPS)
            return made

        needed = bytes_per_step(model, params, rows)
        speed = read_speed(needed, rounds)
        taken = _common.time_in_turns({name: block}, rounds)[name]
        speed = max(speed, read_speed(needed, rounds))
        per_step = taken["median"] / MAX_STEPS
        results.append(
            {
                "model": name,
                "parameters": model.param_count,
                "rows": rows,
                "seconds_per_step": {key: value / MAX_STEPS for key, value in taken.items()},
                "tokens_per_second": rows / per_step,
                "prefill_tokens_per_second": rows * (len(prompt) + 1) / prefill_seconds,
                "bytes_per_step": needed,
                "read_bytes_per_second": speed,
                "bound_seconds_per_step": needed / speed,
                "share_of_bound": needed / speed / per_step,
            }
        )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=list(configs()), help="time this model alone")
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    results, failed = [], False
    print(f"{'model':12}{'rows':>5}{'ms/step':>10}{'tokens/s':>10}{'MB/step':>10}{'GB/s read':>11}{'of bound':>10}")
    for name, config in configs().items():
        if arguments.only not in (None, name):
            continue
        found = measure(name, config, arguments.rounds)
        if found is None:
            failed = True
            continue
        results.extend(found)
        for result in found:
            print(
                f"{name:12}{result['rows']:>5}{1e3 * result['seconds_per_step']['median']:>10.3f}"
                f"{result['tokens_per_second']:>10,.0f}{result['bytes_per_step'] / 1e6:>10.1f}"
                f"{result['read_bytes_per_second'] / 1e9:>11.1f}{result['share_of_bound']:>10.1%}"
            )
    _common.write(results, arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
