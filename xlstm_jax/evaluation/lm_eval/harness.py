"""A run as a model of the lm-evaluation-harness; only to be imported where that is installed.

    lm_eval --model xlstm --model_args run=runs/quickstart --tasks lambada_openai

The harness finds it by the entry point `lm_eval.models`; releases that know none (0.4.13) once this file is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import Split
from xlstm_jax.evaluation.lm_eval.requests import cut_to, encode_pair, sampling, windows
from xlstm_jax.inference.run import Run, load
from xlstm_jax.inference.sampling import Sampling
from xlstm_jax.machine.progress import Progress
from xlstm_jax.scoring.continuations import ROWS, Continuation, ContinuationScore, ContinuationScorer
from xlstm_jax.scoring.documents import DocumentScorer


@register_model("xlstm")
class XLSTM(LM):
    """Scores and generates for the harness; an answer does not depend on the batch size, or on what is asked beside it.

    Args:
        run: a run, or its folder.
        step: of the checkpoint; the newest if None.
        batch_size: texts side by side; "auto" and None leave it to us.
        max_length: tokens that the model reads of a text, as the harness cuts texts for other models: contexts from
            the left, a text of its own into windows. None reads everything, but a Transformer not more than its context
            length.
        add_bos_token: whether contexts to score open as the texts of training did. False leaves that to empty ones, as
            the harness's own `hf` model does where a tokenizer opens no texts; generation is the same.
        max_gen_toks: tokens to generate for tasks that do not say.
        progress: shows how far it is.
        device, max_batch_size: what the harness gives every model; JAX knows its device, and no batch is tried out.

    Raises:
        as `xlstm_jax.load`; ConfigError for a batch size or a length that cannot be.
    """

    def __init__(
        self,
        run: Run | str | Path,
        *,
        step: int | None = None,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        add_bos_token: bool = True,
        max_gen_toks: int = 256,
        progress: Progress | None = None,
        device: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        self.run = run if isinstance(run, Run) else load(run, step)
        self.add_bos_token, self.max_gen_toks = add_bos_token, max_gen_toks
        self._progress = progress or Progress()
        self._rows = _batch_size(batch_size)
        self._scorer = ContinuationScorer(self.run.model, self._rows)
        self._bos_id = self.run.tokenizer.eod_id if self.run.bos_id is None else self.run.bos_id
        own = 0 if self.run.model.fixed_state else self.run.config.context_length
        self.max_length = max_length if max_length is not None else own or None
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max_length is {self.max_length}, but must be a whole number >= 1")

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether it is what greedy generation says) of each continuation of a context."""
        texts = [encode_pair(self.run.tokenizer, self._bos_id, *request.args) for request in requests]
        found = [(0.0, False)] * len(texts)
        for number, score in self._scored("log-likelihoods", [self._cut(text) for text in texts]):
            found[number] = -score.nats, score.greedy
            self.cache_hook.add_partial("loglikelihood", requests[number].args, found[number])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text as a document of its own, without that of its end.

        It is read whole with its state carried, unless there is a `max_length`.
        """
        texts = [self.run.tokenizer.encode_array(request.args[0]) for request in requests]
        found = [0.0] * len(texts)
        if self.max_length is None:
            self._read_whole(texts, found)
        else:
            self._read_windows(texts, found, self.max_length)
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to its stop texts, which are not part of it, or the end of the document.

        A text that is drawn at a temperature follows from its place among the requests.
        """
        groups: dict[Sampling, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(sampling(request.args[1], self.max_gen_toks), []).append(number)
        found = [""] * len(requests)
        with self._progress.bar("generating", len(requests)) as bar:
            for settings, numbers in groups.items():
                numbers.sort(key=lambda number: -len(requests[number].args[0]))
                for start in range(0, len(numbers), self._rows):
                    some = numbers[start : start + self._rows]
                    prompts = [self._prompt(requests[number].args[0], settings.max_tokens) for number in some]
                    texts = self.run.generator.generate(prompts, settings, some)
                    for number, text in zip(some, texts, strict=True):
                        found[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar(len(some))
        return found

    @property
    def tokens_read(self) -> int:
        """Tokens that went through the model for `loglikelihood` so far, padding left out."""
        return self._scorer.tokens_read

    @property
    def tokenizer_name(self) -> str:
        """Tells the caches of requests apart."""
        return self.run.tokenizer.fingerprint

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes of the model beside the results."""
        return {
            "model_args": {"run": str(self.run.path), "step": self.run.step, "max_length": self.max_length},
            "model_num_parameters": self.run.model.param_count,
        }

    def _cut(self, text: Continuation) -> Continuation:
        if not self.add_bos_token and len(text.context) > 1:
            text = text._replace(context=text.context[1:])
        return text if self.max_length is None else cut_to(text, self.max_length)

    def _prompt(self, context: str, new_tokens: int) -> str | bytes:
        if self.max_length is None:
            return context
        if new_tokens >= self.max_length:
            raise ConfigError(
                f"a task asks for {new_tokens} new tokens, but the model reads {self.max_length} in all at most"
            )
        tokens = self.run.tokenizer.encode_array(context)
        room = self.max_length - new_tokens
        return context if len(tokens) < room else self.run.tokenizer.decode(tokens[len(tokens) - room + 1 :])

    def _scored(self, title: str, texts: Sequence[Continuation]) -> Iterator[tuple[int, ContinuationScore]]:
        with self._progress.bar(title, len(texts)) as bar:
            yield from bar.track(self._scorer(self.run.params, texts))

    def _read_whole(self, texts: Sequence[np.ndarray], found: list[float]) -> None:
        split = Split.from_documents(texts, eod_id=self.run.tokenizer.eod_id)
        scorer = DocumentScorer(self.run.scorer, split, bos_id=self.run.bos_id, most_rows=self._rows)
        with self._progress.bar("texts", sum(len(text) + 1 for text in texts)) as bar:
            for score in scorer(self.run.params, advance=bar):
                found[score.number] = score.end_nats - score.nats

    def _read_windows(self, texts: Sequence[np.ndarray], found: list[float], max_length: int) -> None:
        each = [(number, part) for number, text in enumerate(texts) for part in windows(text, self._bos_id, max_length)]
        for place, score in self._scored("windows", [part for _, part in each]):
            found[each[place][0]] -= score.nats


def _batch_size(given: int | str | None) -> int:
    if given is None or str(given).startswith("auto"):
        return ROWS
    try:
        size = int(given)
    except ValueError:
        size = 0
    if size < 1:
        raise ConfigError(f"batch_size is {given!r}, but must be a whole number >= 1, or auto")
    return size
