"""Several splits read as one, each with a share of the rows, and which row comes from which of them.

The source of row g must follow from g alone, keep every prefix close to the shares, and tell in closed form how many
rows of each source came before g. Sources are taken off one at a time: of any g rows, the first source gets
floor(g * share + 1/2); what is left is divided among the others in the same way. Each floor grows by 0 or 1 as g grows
by 1, so exactly one source gets each row, and a source's count is within half a row per source of its share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from xlstm_jax.config import ConfigError
from xlstm_jax.data.store.split import Split

# Shares are exact multiples of this part, so that the counts are whole-number arithmetic: g * PARTS stays in int64
# for the first 4e12 rows.
PARTS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Splits with weights; a split with weight 2 gives twice the rows of one with weight 1.

    Raises:
        ConfigError: for weights or splits that do not go together.
    """

    splits: Sequence[Split]
    """At least one; all made with the same tokenizer."""
    weights: Sequence[float]
    """One positive number each; resolved to one part in a million of their sum."""

    def __post_init__(self) -> None:
        if not self.splits or len(self.splits) != len(self.weights):
            raise ConfigError(f"a mixture of {len(self.splits)} splits got {len(self.weights)} weights; give one each")
        for weight in self.weights:
            if not 0 < weight < float("inf"):
                raise ConfigError(f"Mixture.weights has {weight!r}, but every weight must be a positive number")
        first = self.splits[0]
        for split in self.splits[1:]:
            if (split.eod_id, split.tokenizer_fingerprint) != (first.eod_id, first.tokenizer_fingerprint):
                raise ConfigError(
                    f"the splits {first.name} and {split.name} of a mixture were made with different tokenizers"
                )


def shares(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers, at least 1 each, that add up to `PARTS` (largest remainders round up)."""
    exact = [weight / sum(weights) * PARTS for weight in weights]
    parts = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: parts[k] - exact[k])
    while (missing := PARTS - sum(parts)) != 0:
        if missing > 0:
            for k in by_remainder[:missing]:
                parts[k] += 1
        else:
            parts[parts.index(max(parts))] -= -missing
    return parts


def rows_of_sources(rows: Int64[np.ndarray, " rows"], parts: Sequence[int]) -> Int64[np.ndarray, "sources rows"]:
    """How many of the first `rows` global rows come from each source, for every entry of `rows`."""
    left, parts_left = np.asarray(rows, np.int64), sum(parts)
    counts = []
    for part in parts[:-1]:
        count = (2 * left * part + parts_left) // (2 * parts_left)
        counts.append(count)
        left, parts_left = left - count, parts_left - part
    return np.stack([*counts, left])
