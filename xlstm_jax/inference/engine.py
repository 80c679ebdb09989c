"""The compiled programs of one model: prefill in chunks, and decoding.

Both work on a `Carry` of fixed shape that is donated from call to call. Shapes come from few sizes (rows: powers of
two; a chunk of a prompt: see `scoring.chunks`), so a program is compiled once and used for everything after.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from xlstm_jax.distributed.placement import beside
from xlstm_jax.inference.sampling import Draw, choose
from xlstm_jax.models.language_model import LanguageModel
from xlstm_jax.scoring.chunks import chunks, power_of_two, room

NOT_FINITE = -1
"""Stands for a token where there are no logits to choose one by."""
MAX_STEPS = 32
"""Tokens of a row that one call of `Engine.decode` can make."""


class Carry(NamedTuple):
    """Where each row stands."""

    state: Any
    logits: Float[Array, "batch vocab"]
    """Of the token to come; zeros before the first token of a prompt."""
    position: Int[Array, " batch"]
    """Tokens generated so far."""


class Engine:
    """Prefill and decoding of one model.

    Args:
        eod_id: a token that ends a row, and fills it from there on.
        usable: tokens from this id on never come, but for `stop_ids`; a model may have more than its tokenizer.
        bos_id: the token that opens a prompt; the EOD if None.
        stop_ids: the other tokens that end a row.
    """

    def __init__(
        self, model: LanguageModel, eod_id: int, usable: int, bos_id: int | None = None, stop_ids: Sequence[int] = ()
    ) -> None:
        self.model, self.eod_id = model, eod_id
        self.end_ids = frozenset({eod_id, *stop_ids})
        self.bos_id = eod_id if bos_id is None else bos_id
        self._start = jax.jit(partial(_start, model), static_argnums=(0, 1))
        self._prefill = jax.jit(partial(_prefill, model), donate_argnums=1)
        self._restrict = jax.jit(_restrict, donate_argnums=0)
        self._decode = jax.jit(partial(_decode, model, eod_id, tuple(sorted(self.end_ids)), usable), donate_argnums=1)

    def prefill(
        self, params: Any, prompts: Sequence[Int32[np.ndarray, " tokens"]], new_tokens: int = MAX_STEPS
    ) -> Carry:
        """Read prompts of any lengths, each after the token that opens a document, as in training.

        Args:
            prompts: without the EOD.
            new_tokens: how many tokens a row the carry must have room for after the prompt. Only
                models whose state grows with the text need to know; they have no other limit, although what they say
                beyond the length that they were trained at is seldom good.

        Returns:
            the carry of `power_of_two(len(prompts))` rows; those beyond the prompts are empty.
        """
        batch = power_of_two(len(prompts))
        lengths = np.array([len(prompt) + 1 for prompt in prompts] + [0] * (batch - len(prompts)))
        tokens = np.full((batch, int(lengths.max(initial=0))), self.bos_id, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, 1 : len(prompt) + 1] = prompt
        with beside(params):
            carry = self._start(batch, None if self.model.fixed_state else room(tokens.shape[1] + new_tokens))
            for start, size in chunks(tokens.shape[1]):
                chunk = np.full((batch, size), self.eod_id, np.int32)
                part = tokens[:, start : start + size]
                chunk[:, : part.shape[1]] = part
                position = start + np.arange(size)
                mask = position < lengths[:, None]
                carry = self._prefill(params, carry, chunk, mask & (position == 0), mask)
        return carry

    def restrict(self, carry: Carry, allowed: Bool[np.ndarray, "rows vocab"]) -> Carry:
        """Let the first rows choose their next token among the allowed ones only; the others keep their choice."""
        batch, vocab = carry.logits.shape
        wide = np.ones((batch, vocab), bool)
        wide[: len(allowed), : allowed.shape[1]] = allowed
        return self._restrict(carry, wide)

    def decode(
        self, params: Any, carry: Carry, draw: Draw, done: Bool[np.ndarray, " batch"], steps: int
    ) -> tuple[Carry, Int32[np.ndarray, "steps batch"]]:
        """Make up to `steps` tokens in each row that is not done, fewer only if all rows end.

        Returns:
            (carry, tokens); EOD fills a row from where it ends. A row whose logits are NaN or infinite ends with
            `NOT_FINITE`.

        Raises:
            ValueError: for a number of steps out of its range, or more of them than the state has room for.
        """
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps is {steps}, but must be from 1 to {MAX_STEPS}")
        if not self.model.fixed_state:
            held, capacity = self.model.tokens_held(carry.state)
            if (left := capacity - int(np.max(held))) < steps:
                raise ValueError(f"steps is {steps}, but the state has room for {left}: give prefill more new_tokens")
        with beside(params):
            carry, tokens = self._decode(params, carry, draw, done, np.int32(steps))
        return carry, np.asarray(tokens)[:steps]

    @property
    def compiled(self) -> int:
        """Number of programs that were compiled so far."""
        programs: tuple[Any, ...] = (self._start, self._prefill, self._restrict, self._decode)
        return sum(program._cache_size() for program in programs)


def _start(model: LanguageModel, batch: int, max_length: int | None) -> Carry:
    logits = jnp.zeros((batch, model.config.vocab_size), jnp.float32)
    return Carry(model.init_state(batch, max_length), logits, jnp.zeros(batch, jnp.int32))


def _prefill(
    model: LanguageModel,
    params: Any,
    carry: Carry,
    tokens: Int[Array, "batch seq"],
    borders: Bool[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
) -> Carry:
    variables = {"params": params}
    hidden, state = model.apply(
        variables,
        tokens,
        document_borders=borders,
        mask=mask,
        state=carry.state,
        return_state=True,
        method="features",
    )
    # The head of a long prompt would cost as much as its blocks: only each row's last token needs it.
    count = jnp.sum(mask, axis=1)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
    logits: Any = model.apply(variables, last, method="head")
    return carry._replace(state=state, logits=jnp.where(count[:, None] > 0, logits[:, 0], carry.logits))


def _restrict(carry: Carry, allowed: Bool[Array, "batch vocab"]) -> Carry:
    return carry._replace(logits=jnp.where(allowed, carry.logits, -jnp.inf))


def _decode(
    model: LanguageModel,
    eod_id: int,
    end_ids: tuple[int, ...],
    usable: int,
    params: Any,
    carry: Carry,
    draw: Draw,
    done: Bool[Array, " batch"],
    steps: Int[Array, ""],
) -> tuple[Carry, Int[Array, "steps batch"]]:
    tokens, ends = jnp.arange(carry.logits.shape[1]), jnp.array(end_ids)
    allowed = (tokens < usable) | jnp.isin(tokens, ends)
    made = jnp.full((MAX_STEPS, carry.logits.shape[0]), eod_id, jnp.int32)

    def unfinished(loop: tuple) -> Array:
        number, _, done, _ = loop
        return (number < steps) & ~jnp.all(done)

    def step(loop: tuple) -> tuple:
        number, carry, done, made = loop
        logits = jnp.where(allowed, carry.logits, -jnp.inf)
        # Of NaN, of infinity, and where nothing is left to choose from, the maximum is not finite.
        broken = ~done & ~jnp.isfinite(jnp.max(logits, axis=1))
        token = jnp.where(done | broken, eod_id, choose(logits, draw, carry.position))
        # Rows that are done go on with EODs: nobody looks at them, and one program serves all.
        logits, state = model.apply({"params": params}, token[:, None], state=carry.state, return_state=True)
        after = Carry(state, logits[:, 0], carry.position + 1)
        token = jnp.where(broken, NOT_FINITE, token)
        return number + 1, after, done | broken | jnp.isin(token, ends), made.at[number].set(token)

    _, carry, _, made = lax.while_loop(unfinished, step, (jnp.int32(0), carry, done, made))
    return carry, made
