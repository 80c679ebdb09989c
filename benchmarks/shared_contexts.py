"""How many fewer tokens are read for questions with four answers, and how much less time it takes.

    python benchmarks/shared_contexts.py [--out FILE.json] [--rounds N]

The questions are about as long as those of HellaSwag: a context of 15 to 90 tokens, four endings of 10 to 45; alone,
behind five examples that were drawn for each question, and behind five that are the same for all. Each context is read
once, and its state copied to the four endings (`ContinuationScorer`); beside that, every pair of context and ending is
read whole, as harnesses do for models that cannot copy a state. The model is that of the preset `quickstart` with one
block, and random parameters.

Before anything is timed, both ways must give the same log-probabilities; no number is printed if they do not. It fails
if less than 2.5 times fewer tokens are read behind examples. Without any, the endings are most of what there is to
read: of a context of c tokens and endings of e no way can save more than 4 (c + e) / (c + 4 e), which is printed as
`bound`; with examples that are the same for all, what stands before all contexts is saved beyond that.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import _common
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.models.language_model import build_model
from xlstm_jax.presets import get_preset
from xlstm_jax.scoring import continuations
from xlstm_jax.scoring.continuations import Continuation, ContinuationScorer
from xlstm_jax.training.config import with_vocabulary

QUESTIONS, ANSWERS, EXAMPLES = 16, 4, 5
LEAST = 2.5
CLOSE = 1e-4
"""Relative error of log-probabilities in float32."""


def questions(rng: np.random.Generator, vocab: int, examples: str) -> list[Continuation]:
    """Contexts with four endings each, behind examples of their kind."""

    def text(low: int, high: int) -> np.ndarray:
        return rng.integers(1, vocab, rng.integers(low, high + 1)).astype(np.int32)

    def opening() -> np.ndarray:
        return np.concatenate([text(25, 135) for _ in range(EXAMPLES)])

    same = opening()
    found = []
    for _ in range(QUESTIONS):
        before = {"none": same[:0], "drawn": opening(), "same": same}[examples]
        context = np.concatenate([np.zeros(1, np.int32), before, text(15, 90)])
        found += [Continuation(context, text(10, 45)) for _ in range(ANSWERS)]
    return found


def together(scorer: ContinuationScorer, params: Any, texts: Sequence[Continuation]) -> np.ndarray:
    """Nats of each continuation, with all that is shared read once."""
    found = dict(scorer(params, texts))
    return np.array([found[number].nats for number in range(len(texts))])


def apart(scorer: ContinuationScorer, params: Any, texts: Sequence[Continuation]) -> np.ndarray:
    """The same with every pair read whole: no two of a call have their context in common."""
    with mock.patch.object(continuations, "SHORTEST_OPENING", sys.maxsize):
        each = [together(scorer, params, texts[answer::ANSWERS]) for answer in range(ANSWERS)]
    return np.stack(each, axis=1).reshape(-1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    preset = get_preset("quickstart")
    config = with_vocabulary(preset, preset.data.vocab_size).model
    model = build_model(dataclasses.replace(config, num_blocks=1))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    results, failed = [], False
    columns = ("examples", "pairs", "tokens", "apart", "fewer", "bound", "seconds", "apart", "faster")
    print("".join(f"{title:>9}" for title in columns))
    for examples in ("none", "drawn", "same"):
        texts = questions(np.random.default_rng(0), model.config.vocab_size, examples)
        one, other = ContinuationScorer(model), ContinuationScorer(model)
        found, truth = together(one, params, texts), apart(other, params, texts)
        read = {"together": one.tokens_read, "apart": other.tokens_read}
        error = float(np.max(np.abs(found - truth) / np.abs(truth)))
        if not error <= CLOSE:
            print(f"the two ways differ by {error:.1e} behind examples: {examples}", file=sys.stderr)
            failed = True
            continue
        ways = {
            "together": lambda one=one, texts=texts: together(one, params, texts),
            "apart": lambda other=other, texts=texts: apart(other, params, texts),
        }
        taken = _common.time_in_turns(ways, arguments.rounds)
        result = {
            "examples": examples,
            "pairs": len(texts),
            "tokens": read,
            "fewer": read["apart"] / read["together"],
            "bound": bound(texts),
            "seconds": taken,
            "faster": taken["apart"]["median"] / taken["together"]["median"],
        }
        results.append(result)
        print(
            f"{examples:>9}{len(texts):>9}{read['together']:>9,}{read['apart']:>9,}{result['fewer']:>8.2f}x"
            f"{result['bound']:>8.2f}x{taken['together']['median']:>9.2f}{taken['apart']['median']:>9.2f}"
            f"{result['faster']:>8.2f}x"
        )
        if examples != "none" and result["fewer"] < LEAST:
            print(f"{result['fewer']:.2f} times fewer tokens are read, but {LEAST} is the least", file=sys.stderr)
            failed = True
    _common.write(results, arguments.out)
    return 1 if failed else 0


def bound(texts: Sequence[Continuation]) -> float:
    """How many times fewer tokens there are if each context is read once."""
    once = sum(len(context) for context, _ in texts[::ANSWERS]) + sum(len(tokens) for _, tokens in texts)
    return sum(len(context) + len(tokens) for context, tokens in texts) / once


if __name__ == "__main__":
    sys.exit(main())
