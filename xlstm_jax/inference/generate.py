"""Prompts in, texts out, while they are made."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int32

from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import Tokenizer
from xlstm_jax.inference.engine import MAX_STEPS, NOT_FINITE, Engine
from xlstm_jax.inference.sampling import Sampling, draws
from xlstm_jax.inference.text import TextStream
from xlstm_jax.models.language_model import LanguageModel
from xlstm_jax.scoring.finite import not_finite

Prompt = str | bytes
Finish = Literal["end", "stop", "length"]

BLOCK_SECONDS = 0.05
"""Tokens are handed out in blocks of about this length in time: long enough that calls cost nothing, short enough that
text flows and Ctrl-C is heard."""


@dataclass(frozen=True)
class Delta:
    """What came to a row."""

    row: int
    text: str
    """What comes next in the row; valid Unicode, possibly empty."""
    finish: Finish | None = None
    """Set in a row's last delta: the model ended the document, a stop string came, or `max_tokens` were made."""
    tokens: int = 0
    """Tokens of the row so far, without the one that ends it."""


class Generator:
    """A model with its tokenizer, and the programs compiled for it.

    Args:
        tokenizer: the one that the model was trained with.
        bos_id: the token that opens a document; the tokenizer's EOD if None.
        stop_ids: tokens that end a text, as the EOD does.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Any,
        tokenizer: Tokenizer,
        bos_id: int | None = None,
        stop_ids: Sequence[int] = (),
    ) -> None:
        self.params, self.tokenizer = params, tokenizer
        self.engine = Engine(model, tokenizer.eod_id, tokenizer.vocab_size, bos_id, stop_ids)
        self._ends = frozenset({tokenizer.eod_id, *stop_ids})

    def stream(
        self, prompts: Sequence[Prompt], sampling: Sampling, streams: Sequence[int] | None = None
    ) -> Iterator[Delta]:
        """Continue all prompts side by side.

        Args:
            prompts: of any lengths, also empty.
            sampling: for all of them.
            streams: the number of each row's stream of random numbers; 0, 1, ... if None. What a row becomes depends on
                its prompt, the settings and its stream, whatever its neighbours are. (Sums are ordered differently at
                different numbers of rows, so in low precision two tokens that are all but equally likely may change
                places.)

        Yields:
            texts as they are made; one with `finish` set ends each row.

        Raises:
            ConfigError: if `streams` does not fit the prompts.
            NotFiniteError: if the model's logits are NaN or infinite.
        """
        numbers = np.arange(len(prompts)) if streams is None else np.asarray(streams, None if len(streams) else int)
        whole = numbers.dtype.kind in "iu" and numbers.shape == (len(prompts),)
        if not whole or not ((numbers >= 0) & (numbers < 2**32)).all():
            raise ConfigError(f"streams is {streams!r}, but must be {len(prompts)} whole numbers >= 0 and < 2**32")
        if prompts:
            yield from self._stream(prompts, sampling, numbers.tolist())

    def _stream(self, prompts: Sequence[Prompt], sampling: Sampling, streams: Sequence[int]) -> Iterator[Delta]:
        encoded = [self.tokenizer.encode_array(prompt) for prompt in prompts]
        ends = [self._open_end(ids) if sampling.heal else b"" for ids in encoded]
        kept = [ids[:-1] if end else ids for ids, end in zip(encoded, ends, strict=True)]
        carry = self.engine.prefill(self.params, kept, sampling.max_tokens)
        batch = carry.logits.shape[0]
        if any(ends):
            carry = self.engine.restrict(carry, np.stack([self._beginning_with(end) for end in ends]))
        draw = draws(sampling, [*streams, *[0] * (batch - len(prompts))])
        done = np.arange(batch) >= len(prompts)
        texts = [_Row(row, self.tokenizer, self._ends, sampling, len(end)) for row, end in enumerate(ends)]
        made, steps = 0, 1
        while made < sampling.max_tokens:
            steps = min(steps, sampling.max_tokens - made)
            start = time.perf_counter()
            carry, tokens = self.engine.decode(self.params, carry, draw, done, steps)
            each = (time.perf_counter() - start) / steps
            before, made, steps = made, made + steps, int(np.clip(BLOCK_SECONDS / each, 1, MAX_STEPS))
            for row in np.flatnonzero(~done).tolist():
                made_here = tokens[:, row].tolist()
                if NOT_FINITE in made_here:
                    at = before + made_here.index(NOT_FINITE)
                    raise not_finite(self.params, f"the logits of row {row} after {at} tokens")
                delta = texts[row].take(made_here)
                done[row] = delta.finish is not None
                if delta.text or delta.finish:
                    yield delta
            if done.all():
                return
        for row in np.flatnonzero(~done).tolist():
            yield texts[row].cut_off()

    def _open_end(self, ids: Int32[np.ndarray, " tokens"]) -> bytes:
        """The bytes of a prompt's last token, if a longer token begins with them; else nothing."""
        end = self.tokenizer.token_bytes(int(ids[-1])) if len(ids) else b""
        return end if end and any(len(token) > len(end) and token.startswith(end) for token in self._bytes) else b""

    def _beginning_with(self, end: bytes) -> Bool[np.ndarray, " vocab"]:
        return np.array([token.startswith(end) for token in self._bytes])

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return [self.tokenizer.token_bytes(token) for token in range(self.tokenizer.vocab_size)]

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, streams: Sequence[int] | None = None
    ) -> list[str]:
        """The continuations of all prompts; see `stream`."""
        texts = [""] * len(prompts)
        for delta in self.stream(prompts, sampling, streams):
            texts[delta.row] += delta.text
        return texts


class _Row:
    """From the tokens of one row to its text; `known` bytes of the first token are the prompt's."""

    def __init__(self, row: int, tokenizer: Tokenizer, ends: frozenset[int], sampling: Sampling, known: int) -> None:
        self._known = known
        self._row, self._tokenizer, self._ends = row, tokenizer, ends
        self._stream = TextStream(sampling.stop or ())
        self._tokens = 0

    def take(self, tokens: Sequence[int]) -> Delta:
        """The text of more tokens, with the end of the row if it is among them."""
        shown: list[str] = []
        for token in tokens:
            if token in self._ends:
                return self._delta("".join(shown) + self._stream.close(), "end")
            self._tokens += 1
            data = self._tokenizer.token_bytes(token)
            shown.append(self._stream.feed(data[self._known :]))
            self._known = 0
            if self._stream.stopped:
                return self._delta("".join(shown), "stop")
        return self._delta("".join(shown), None)

    def cut_off(self) -> Delta:
        """The end after `max_tokens`."""
        return self._delta(self._stream.close(cut_off=True), "length")

    def _delta(self, text: str, finish: Finish | None) -> Delta:
        # What is released at the end can complete a stop string with its last character.
        return Delta(self._row, text, "stop" if self._stream.stopped else finish, self._tokens)


def generate_text(
    model: LanguageModel, params: Any, tokenizer: Tokenizer, prompts: Sequence[Prompt], **settings: Any
) -> list[str]:
    """Continue prompts once with a model at hand; `settings` are the fields of `Sampling`.

    Who generates more than once keeps a `Generator`, which keeps what it compiled.
    """
    return Generator(model, params, tokenizer).generate(checked_prompts(prompts), Sampling.of(**settings))


def checked_prompts(prompts: Sequence[object]) -> Sequence[Prompt]:
    """The prompts, to be called once where they come in: within the package they are texts.

    Raises:
        ConfigError: for one that is no text.
    """
    for prompt in prompts:
        if not isinstance(prompt, (str, bytes)):
            raise ConfigError(f"prompt is {prompt!r}, but must be a text or its bytes")
    return prompts  # type: ignore[return-value]
