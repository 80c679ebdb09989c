"""Continuations cost what the whole text costs at those tokens, whatever is read once, in which order, beside what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference_helpers import model_config, random_params

from xlstm_jax.models.language_model import LanguageModel, build_model
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.scoring import chunks as sizes
from xlstm_jax.scoring.continuations import Continuation, ContinuationScore, ContinuationScorer
from xlstm_jax.scoring.finite import NotFiniteError

BOS, VOCAB = 256, 320
RNG = np.random.default_rng(0)
EXAMPLES = RNG.integers(0, 256, 40).tolist()


def text(length: int) -> list[int]:
    return RNG.integers(0, 256, length).tolist()


def continuation(context: list[int], tokens: list[int]) -> Continuation:
    return Continuation(np.array([BOS, *context], np.int32), np.array(tokens, np.int32))


# Questions with four answers of mixed lengths, six of them after the same examples; an empty context, an empty
# continuation, and texts that are longer than a chunk on either side.
CONTEXTS = [*(EXAMPLES + text(size) for size in (1, 9, 3, 30, 0, 17)), text(60), text(5), [], text(70)]
TEXTS = [continuation(context, text(size)) for context in CONTEXTS for size in (1, 5, 2, 20)]
TEXTS += [continuation(text(4), []), continuation(text(3), text(40))]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LONGEST_CHUNK", 32)


@pytest.fixture(scope="module", params=["mlstm", "llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    llama = LlamaConfig(embedding_dim=16, num_blocks=1, vocab_size=VOCAB, head_dim=8, ffn_dim=16)
    return build_model(model_config(num_blocks=1) if request.param == "mlstm" else llama)


@pytest.fixture(scope="module")
def params(model: LanguageModel):
    return random_params(model)


@pytest.fixture(scope="module")
def truth(model: LanguageModel, params) -> list[ContinuationScore]:
    """Every text computed whole, by itself but for padding behind it, with nothing of what is tested."""
    tokens = np.zeros((len(TEXTS), max(len(context) + len(rest) for context, rest in TEXTS)), np.int32)
    for row, (context, rest) in enumerate(TEXTS):
        tokens[row, : len(context) + len(rest)] = [*context, *rest]
    logits = np.asarray(jax.jit(model.apply)({"params": params}, tokens), np.float64)
    found = []
    for row, (context, rest) in enumerate(TEXTS):
        own = logits[row, len(context) - 1 : len(context) + len(rest) - 1]
        nats = np.log(np.exp(own).sum(-1)) - own[np.arange(len(rest)), rest]
        found.append(ContinuationScore(nats.sum(), bool((own.argmax(-1) == rest).all())))
    return found


def assert_alike(found: dict[int, ContinuationScore], truth: list[ContinuationScore]) -> None:
    assert sorted(found) == list(range(len(truth)))
    for number, score in found.items():
        assert score.nats == pytest.approx(truth[number].nats, rel=1e-5, abs=1e-5)
        assert score.greedy == truth[number].greedy


def test_continuations_cost_what_they_cost_in_the_whole_text(model: LanguageModel, params, truth) -> None:
    scorer = ContinuationScorer(model, rows=8)
    assert_alike(dict(scorer(params, TEXTS)), truth)
    # Each context was read once, without its last token, and what six of them begin with once for all; that last token
    # and all but the last of a continuation with each continuation.
    contexts = {tuple(context[:-1]) for context, _ in TEXTS}
    read = sum(map(len, contexts)) - 5 * len([BOS, *EXAMPLES[:-1]]) + sum(len(rest) for _, rest in TEXTS)
    assert scorer.tokens_read == read


def test_neither_neighbours_nor_their_order_change_a_score(model: LanguageModel, params, truth) -> None:
    order = np.random.default_rng(1).permutation(len(TEXTS)).tolist()
    scorer = ContinuationScorer(model, rows=1)
    found = dict(scorer(params, [TEXTS[number] for number in order]))
    assert_alike({order[place]: score for place, score in found.items()}, truth)


def test_greedy_is_what_generation_would_say_and_a_tie_goes_to_the_lowest_id(model: LanguageModel, params) -> None:
    context = [BOS, *b"import numpy as"]
    logits = jax.jit(model.apply)({"params": params}, np.array([context], np.int32))
    best = int(jnp.argmax(logits[0, -1]))
    twin = VOCAB - 1
    kernel = params["lm_head"]["kernel"]
    tied = {**params, "lm_head": {"kernel": kernel.at[:, twin].set(kernel[:, best])}}
    texts = [Continuation(np.array(context, np.int32), np.array([token], np.int32)) for token in (best, twin)]
    (first, second) = (score for _, score in sorted(ContinuationScorer(model)(tied, texts)))
    assert first.nats == second.nats
    assert (first.greedy, second.greedy) == (best < twin, False)


def test_what_cannot_be_scored_is_refused(model: LanguageModel, params) -> None:
    scorer = ContinuationScorer(model)
    nothing, some = np.zeros(0, np.int32), np.ones(1, np.int32)
    with pytest.raises(ValueError, match="continuation 1 has no context"):
        list(scorer(params, [Continuation(some, some), Continuation(nothing, some)]))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(NotFiniteError, match="the logits of a continuation"):
        list(scorer(broken, [Continuation(some, some)]))
    assert list(scorer(params, [])) == []
