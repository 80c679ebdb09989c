"""From logits to a token: temperature, top-k, top-p, and one stream of random numbers for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from xlstm_jax.config import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Config,
    ConfigError,
    NonNegativeFloat,
    NonNegativeInt,
    Seed,
    near_miss,
    public_fields,
)

ELSEWHERE = {
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "max_gen_toks", "n_tokens"), "max_tokens is how many come at most"
    ),
    **dict.fromkeys(("stop_strings", "stop_sequences", "until"), "stop is the texts that end a row"),
    **dict.fromkeys(("do_sample", "greedy"), "temperature=0 takes the most likely token always"),
    **dict.fromkeys(("num_return_sequences", "n", "num_samples"), "give a list with the prompt as often as wanted"),
    **dict.fromkeys(("eos_token_id", "stop_token_ids"), "a run knows its end tokens"),
    **dict.fromkeys(
        ("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "num_beams", "min_p"),
        "tokens are drawn by the model's own probabilities, cut by top_k and top_p alone",
    ),
}
"""Settings of other packages, and what is said of them."""

_INFINITY_BITS = 0x7F800000
_COLDEST = 1e-30  # a smaller temperature would be flushed to zero, and 0 / 0 is NaN


@dataclass(frozen=True)
class Sampling(Config):
    """How a text is continued.

    Raises:
        ConfigError: for a value out of its range.
    """

    max_tokens: NonNegativeInt = 256
    """Tokens to generate, at most."""
    temperature: NonNegativeFloat = 0.8
    """Divides the logits; 0 takes the most likely token always."""
    top_k: Annotated[int, AtLeast(1), Below(2**31)] | None = None
    """Choose among so many most likely tokens."""
    top_p: Annotated[float, Above(0), AtMost(1)] | None = None
    """Choose among the fewest most likely tokens whose probabilities, after temperature and top-k, sum to this."""
    seed: Seed = 0
    """Fixes all random choices."""
    stop: Sequence[str] | None = ()
    """Texts that end a row; they are not part of what comes out. None for none."""
    heal: bool = True
    """Let the first new token replace the prompt's last one, if it begins with its bytes. Else "def " would be followed
    by what follows a lone space, which a tokenizer with words like " name" all but never has inside a text."""

    @classmethod
    def of(cls, **fields: Any) -> Sampling:
        """The settings of these names.

        Raises:
            ConfigError: for a name that there is not, and a value out of its range.
        """
        known = [f.name for f in public_fields(cls)]
        for name in fields:
            if name not in known:
                meant = ELSEWHERE.get(name)
                hint = f" ({meant})" if meant else near_miss(name, known)
                raise ConfigError(f"there is no setting {name!r} of generation{hint}; settings are {', '.join(known)}")
        return cls(**fields)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop is None:
            object.__setattr__(self, "stop", ())
        if isinstance(self.stop, bytes) or not isinstance(self.stop, Sequence):
            raise ConfigError(f"Sampling.stop is {self.stop!r}, but must be a text or a list of texts")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ConfigError(f"Sampling.stop holds {text!r}, but must hold texts that are not empty")
        object.__setattr__(self, "stop", stop)


class Draw(NamedTuple):
    """What `choose` needs of each row: nothing of it is compiled in, and rows may differ in all of it."""

    key: Key[Array, " batch"]
    temperature: Float[Array, " batch"]
    top_k: Int[Array, " batch"]
    top_p: Float[Array, " batch"]


def draws(sampling: Sampling, streams: Sequence[int]) -> Draw:
    """The same settings for every row; its random numbers follow from the seed and its stream alone."""
    rows = len(streams)
    root = jax.random.key(sampling.seed)
    keys = jax.vmap(lambda stream: jax.random.fold_in(root, stream))(np.asarray(streams, np.uint32))
    top_k = 2**31 - 1 if sampling.top_k is None else sampling.top_k
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    return Draw(
        keys,
        jnp.full(rows, sampling.temperature, jnp.float32),
        jnp.full(rows, top_k, jnp.int32),
        jnp.full(rows, top_p, jnp.float32),
    )


def choose(logits: Float[Array, "batch vocab"], draw: Draw, position: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """The next token of each row, by the Gumbel-max rule in float32.

    The noise of a token follows from the row's key, the position and the token's id, so neither the other rows nor how
    many tokens are made at a time can change a row's choice.

    Args:
        logits: minus infinity marks tokens that must not come.
        draw: the settings of each row.
        position: tokens that the row has generated before.
    """
    logits = logits.astype(jnp.float32)
    likeliest = jnp.argmax(logits, axis=-1)

    def sampled() -> Array:
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        scaled = shifted / jnp.maximum(draw.temperature, _COLDEST)[:, None]
        return jnp.where(draw.temperature > 0, _sample(scaled, draw, position), likeliest)

    return lax.cond(jnp.any(draw.temperature > 0), sampled, lambda: likeliest).astype(jnp.int32)


def _sample(scaled: Array, draw: Draw, position: Array) -> Array:
    vocab = scaled.shape[-1]

    def row_noise(key: Array, position: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, position), (vocab,), jnp.float32)

    noise = jax.vmap(row_noise)(draw.key, position)

    return jnp.argmax(jnp.where(kept_tokens(scaled, draw.top_k, draw.top_p), scaled + noise, -jnp.inf), axis=-1)


def kept_tokens(
    scaled: Float[Array, "batch vocab"], top_k: Int[Array, " batch"], top_p: Float[Array, " batch"]
) -> Bool[Array, "batch vocab"]:
    """What top-k and then top-p leave, the likeliest token always; of equal tokens those with the lower ids.

    Nothing is sorted, which would cost more than a small model's step: the last logit that stays is found by bisection
    over the bits of the floats, 31 passes over the vocabulary.

    Args:
        scaled: logits whose largest is 0 in each row.
    """
    vocab = scaled.shape[-1]
    # For floats that are not negative, the order of their bits is their own.
    depth = lax.bitcast_convert_type(jnp.abs(scaled), jnp.int32)

    def of_top_k() -> Array:
        def enough(kept: Array) -> Array:
            return jnp.sum(kept, axis=-1) >= top_k

        above, equal = _last_kept(depth, enough)
        room = top_k - jnp.sum(above, axis=-1)
        return above | (equal & (jnp.cumsum(equal, axis=-1) <= room[:, None]))

    everything = jnp.ones(scaled.shape, jnp.bool_)
    kept = lax.cond(jnp.any(top_k < vocab), of_top_k, lambda: everything)

    def of_top_p() -> Array:
        share = jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf), axis=-1)

        def mass(some: Array) -> Array:
            return jnp.sum(jnp.where(some, share, 0), axis=-1)

        above, equal = _last_kept(depth, lambda some: mass(some) >= top_p)
        before = jnp.cumsum(equal & kept, axis=-1) - 1
        each = jnp.max(jnp.where(equal, share, 0), axis=-1)
        fits = mass(above)[:, None] + before * each[:, None] < top_p[:, None]
        return kept & (above | (equal & fits) | (top_p[:, None] >= 1))

    return lax.cond(jnp.any(top_p < 1), of_top_p, lambda: kept)


def _last_kept(depth: Int[Array, "batch vocab"], enough: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The tokens above the least depth down to which there are enough, and those at it.

    Args:
        depth: bits of floats from 0 to infinity.
        enough: whether a row's choice (batch, vocab) is enough, (batch,); all is taken to be.
    """

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        found = enough(depth <= middle[:, None])
        return jnp.where(found, low, middle + 1), jnp.where(found, middle, high)

    rows = depth.shape[0]
    start = jnp.zeros(rows, jnp.int32), jnp.full(rows, _INFINITY_BITS, jnp.int32)
    _, last = lax.fori_loop(0, 31, halve, start)
    return depth < last[:, None], depth == last[:, None]
