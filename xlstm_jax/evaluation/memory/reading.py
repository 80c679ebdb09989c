"""A text read by a model that shows what its memory does: one pass in pieces, the state handed on."""

from __future__ import annotations

import base64
import codecs
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer

from xlstm_jax.data.tokenizers import Tokenizer
from xlstm_jax.distributed.placement import beside
from xlstm_jax.evaluation.memory.measures import (
    attention_map,
    effective_context,
    half_life,
    log10_feature_norm,
    log10_norm,
    stable_rank,
)
from xlstm_jax.models.diagnostics import BlockTrace, diagnose
from xlstm_jax.models.language_model import LanguageModel
from xlstm_jax.scoring.documents import FIRST_BIN

LONGEST_PIECE = 256
MOST_ROWS = 8
DECADES = 6
"""Of the weights of a map that are told apart; less is black."""


def places(longest: int) -> list[tuple[int, int]]:
    """The bins of positions, as those of `scoring.documents`: 0 to 15, 16 to 31, 32 to 63, up to `longest` at most."""
    edges = [0, FIRST_BIN]
    while 2 * edges[-1] <= longest:
        edges.append(2 * edges[-1])
    return list(itertools.pairwise(edges))


class Reader:
    """Reads rows of one length side by side, each from an empty memory.

    Args:
        tokens: inputs; the first 16, 32, 64 ... are read, as far as they go.
        window: tokens of the first row whose maps are kept.
    """

    def __init__(self, model: LanguageModel, params: Any, tokens: Integer[np.ndarray, "rows seq"], window: int) -> None:
        self._params, self._tokens, self._window = params, tokens, window
        self._model, self._diagnose = model, jax.jit(functools.partial(diagnose, model))
        self._gates: list[_Gates] = []

    def by_position(self, advance: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        """What the states do in each bin of positions: an entry as soon as it is read."""
        state = self._model.init_state(len(self._tokens))
        for first, end in places(self._tokens.shape[1]):
            sums = None
            for start in range(first, end, LONGEST_PIECE):
                piece = self._tokens[:, start : min(start + LONGEST_PIECE, end)]
                with beside(self._params):
                    blocks, state = self._diagnose(self._params, piece, state=state)
                blocks = jax.tree.map(np.asarray, blocks)
                if not self._gates:
                    self._gates = [_Gates(block) for block in blocks]
                for gates, block in zip(self._gates, blocks, strict=True):
                    gates.add(block)
                found = [_of_states(block) for block in blocks]
                sums = found if sums is None else jax.tree.map(np.add, sums, found)
                advance(piece.size)
            count = self._tokens.shape[0] * (end - first)
            entry: dict[str, Any] = {"from": first, "to": end, "blocks": []}
            for block, sum_ in zip(blocks, sums or [], strict=True):
                values = {name: _numbers(value / count) for name, value in sum_.items()}
                trace: Any = block.trace
                ranks = stable_rank(trace.last).mean(0) if block.kind == "mlstm" else None
                entry["blocks"].append({"block": block.block, **values, "stable_rank": _numbers(ranks)})
            yield entry

    def heads(self) -> list[dict[str, Any]]:
        """The gates of each head over all that was read."""
        return [head for gates in self._gates for head in gates.heads()]

    def window(self) -> list[dict[str, Any]]:
        """Gates and maps of the first tokens of the first row, by head."""
        with beside(self._params):
            blocks, _ = self._diagnose(self._params, self._tokens[:1, : self._window])
        return [head for block in blocks for head in _window_of(jax.tree.map(np.asarray, block))]


def _of_states(block: BlockTrace) -> dict[str, np.ndarray]:
    """Sums over rows and tokens, by head, of what is shown of the states."""
    trace: Any = block.trace
    if block.kind == "mlstm":
        values = {
            "memory": log10_norm(trace.memory_norm, trace.m),
            "normaliser": log10_norm(trace.normaliser_norm, trace.m),
            "m": trace.m,
            "writes": trace.log_i >= trace.m,
            "on_floor": np.abs(trace.normaliser) < trace.floor,
        }
    else:
        values = {
            "memory": log10_feature_norm(trace.c, trace.m),
            "normaliser": log10_feature_norm(trace.n, trace.m),
            "m": trace.m.mean(-1),
            "writes": (trace.log_i >= trace.m).mean(-1),
        }
    return {name: np.asarray(value, np.float64).sum((0, 1)) for name, value in values.items()}


class _Gates:
    """What is summed up of a block's gates."""

    BINS = np.concatenate([[-np.inf], np.linspace(-30, 30, 6001), [np.inf]])
    """Of the logarithm of -log f, and of the input gate's."""

    def __init__(self, block: BlockTrace) -> None:
        self.block, self.kind = block.block, block.kind
        heads = block.trace.log_f.shape[2]  # type: ignore[union-attr]  # attention is not read in pieces
        self._count = 0
        self._log_f, self._f = np.zeros(heads), np.zeros(heads)
        self._decays, self._inputs = (np.zeros((heads, len(self.BINS) - 1), np.int64) for _ in range(2))

    def add(self, block: BlockTrace) -> None:
        trace: Any = block.trace
        # Features of a head of an sLSTM have gates of their own.
        log_f, log_i = (np.asarray(x, np.float64) for x in (trace.log_f, trace.log_i))
        log_f, log_i = (x.reshape(-1, x.shape[2], math.prod(x.shape[3:])) for x in (log_f, log_i))
        self._count += log_f.shape[0]
        self._log_f += log_f.mean(-1).sum(0)
        self._f += np.exp(log_f).mean(-1).sum(0)
        with np.errstate(divide="ignore"):
            decays = np.log(-log_f)
        for head in range(log_f.shape[1]):
            self._decays[head] += np.histogram(decays[:, head], self.BINS)[0]
            self._inputs[head] += np.histogram(log_i[:, head], self.BINS)[0]

    def heads(self) -> Iterator[dict[str, Any]]:
        for head, mean in enumerate(self._log_f / self._count):
            yield {
                "block": self.block,
                "kind": self.kind,
                "head": head,
                "half_life": _number(float(half_life(np.array([mean])))),
                "median_half_life": _number(math.log(2) / math.exp(self._quantile(self._decays[head], 0.5))),
                "forget_gate": float(self._f[head] / self._count),
                "input_gate": {f"p{q}": _number(self._quantile(self._inputs[head], q / 100)) for q in (5, 50, 95)},
            }

    def _quantile(self, counts: np.ndarray, share: float) -> float:
        """To half a bin's width, 0.005."""
        place = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
        low, high = self.BINS[place], self.BINS[min(place + 1, len(self.BINS) - 1)]
        return float(high if np.isinf(low) else low if np.isinf(high) else (low + high) / 2)


def _window_of(block: BlockTrace) -> Iterator[dict[str, Any]]:
    trace: Any = block.trace
    maps = attention_map(block.trace)
    read, distance = effective_context(maps)
    for head in range(maps.shape[-1]):
        entry: dict[str, Any] = {"block": block.block, "kind": block.kind, "head": head}
        if block.kind != "attention":
            for name in ("log_i", "log_f", "m"):
                own = np.asarray(getattr(trace, name)[0, :, head], np.float64)
                entry[name] = _numbers(own if own.ndim == 1 else own.mean(-1))
        yield entry | {
            "effective_context": _numbers(read[:, head]),
            "distance": _numbers(distance[:, head]),
            "attention": to_text(levels(maps[..., head])),
        }


def levels(weights: np.ndarray) -> np.ndarray:
    """Weights as bytes: 255 is 1 or more, and six decades lower, or less, is 0."""
    with np.errstate(divide="ignore"):
        return np.clip(255 * (1 + np.log10(weights) / DECADES), 0, 255).astype(np.uint8)


def to_text(map_: np.ndarray) -> str:
    """A square of bytes in base64."""
    return base64.b64encode(map_.tobytes()).decode()


def from_text(text: str) -> np.ndarray:
    """The inverse of `to_text`."""
    flat = np.frombuffer(base64.b64decode(text), np.uint8)
    return flat.reshape(2 * (math.isqrt(len(flat)),))


def spelled(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The text of each token; of a character that several make up, the last has it all."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text_of(token: int) -> str:
        without = token >= tokenizer.vocab_size or token == tokenizer.eod_id
        return "" if without else decoder.decode(tokenizer.token_bytes(token))

    return [text_of(int(token)) for token in tokens]


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _numbers(values: np.ndarray | None) -> list[float | None] | None:
    return None if values is None else [_number(float(value)) for value in values]
