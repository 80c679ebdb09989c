"""What the harness asks for, in our terms: texts as tokens, windows of a text, settings of generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import Tokenizer
from xlstm_jax.inference.sampling import Sampling
from xlstm_jax.scoring.continuations import Continuation, Tokens, common_beginning

MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that tasks have for the most tokens to generate; the first that is given counts."""
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1, "num_return_sequences": 1, "top_k": 0, "use_cache": True}
"""Settings of other backends, with the value that changes nothing."""


def encode_pair(tokenizer: Tokenizer, bos_id: int, context: str, continuation: str) -> Continuation:
    """The tokens of a context and of what follows it; together they spell the text.

    The text is encoded as a whole, as the model has learnt to read it, and cut where the context by itself ends: spaces
    at its end belong to the continuation. Where a token reaches across the cut, the tokens from there on are those of
    the continuation. A text opens with `bos_id`, and with that alone, whatever its own words are.
    """
    end = len(context.rstrip())
    context, continuation = context[:end], context[end:] + continuation
    whole = tokenizer.encode_array(context + continuation)
    cut = common_beginning(tokenizer.encode_array(context), whole)
    return Continuation(np.append(np.int32(bos_id), whole[:cut]).astype(np.int32), whole[cut:])


def cut_to(text: Continuation, max_length: int) -> Continuation:
    """A text without the beginning of its context, so that a model reads `max_length` tokens at most.

    Raises:
        ConfigError: for a continuation that is longer than that.
    """
    if len(text.tokens) > max_length:
        raise ConfigError(
            f"a task asks for a continuation of {len(text.tokens)} tokens, but the model reads {max_length} at most"
        )
    return Continuation(text.context[-(max_length + 1 - len(text.tokens)) :], text.tokens)


def windows(tokens: Tokens, bos_id: int, max_length: int) -> Iterator[Continuation]:
    """A text in the windows in which the harness has other models read it, for numbers to set beside theirs.

    Each has one token of context, the last one, which is full too, as many as there is room for. Every token is scored
    once.
    """
    text = np.append(np.int32(bos_id), tokens).astype(np.int32)
    for start in range(0, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        opening = start if end - start == max_length else max(end - max_length, 0)
        yield Continuation(text[opening : start + 1], text[start + 1 : end + 1])


def sampling(settings: Mapping[str, Any], max_tokens: int) -> Sampling:
    """How a task wants its texts generated: greedily, unless it asks for a temperature.

    Token healing is off: it would change the text that a task compares.

    Args:
        settings: `generation_kwargs` of the task.
        max_tokens: for tasks that do not say.

    Raises:
        ConfigError: for settings that there are not here.
    """
    given = {name: value for name, value in settings.items() if value is not None and value != NEUTRAL.get(name)}
    until = given.pop("until", [])
    lengths = [given.pop(name) for name in MAX_TOKENS if name in given]
    sampled = given.pop("do_sample", None)
    temperature = float(given.pop("temperature", 0.0))
    return Sampling.of(
        max_tokens=int(lengths[0] if lengths else max_tokens),
        temperature=0.0 if sampled is False else temperature,
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        heal=False,
        **given,
    )
