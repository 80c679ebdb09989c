"""What a model expects around a text, beside what its tokenizer makes of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizerInfo:
    """The special tokens of a run's model. Published models have such; ours go by the EOD alone."""

    bos_id: int | None = None
    """Opens every text; None: the EOD of the tokenizer."""
    stop_ids: tuple[int, ...] = ()
    """End a text, as the EOD does."""
