"""Scores do not depend on how documents are laid out."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.data.store import Split
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.models.language_model import with_exact_resets
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig
from xlstm_jax.scoring.chunks import LONGEST_CHUNK, chunks, power_of_two
from xlstm_jax.scoring.documents import score_document
from xlstm_jax.scoring.heldout import HeldOut, first_documents
from xlstm_jax.scoring.score import Score, Scorer

DOCUMENTS = [
    b"hello world, hello",
    b"a",
    b"import this\nimport that\n",
    b"xyz" * 9,
    b"",
    b"longer text than any other here",
]


def byte_split(documents: list[bytes]) -> Split:
    split = Split.from_documents([list(d) for d in documents], eod_id=256)
    split.tokenizer = ByteTokenizer()
    return split


@pytest.fixture(scope="module")
def model() -> xLSTMLMModel:
    # A convolution and no resets in training: scoring must keep documents apart all the same.
    layer = mLSTMLayerConfig(layer_type="mlstm", num_heads=2, conv1d_kernel_size=4)
    return xLSTMLMModel(
        xLSTMLMModelConfig(
            mlstm_block=mLSTMBlockConfig(mlstm=layer), num_blocks=1, embedding_dim=16, dtype="float32", vocab_size=257
        )
    )


@pytest.fixture(scope="module")
def params(model: xLSTMLMModel):
    fresh = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])()
    return jax.tree.map(lambda x: x * 1.5, fresh)


def test_every_document_is_scored_alone_and_whole_whatever_the_layout(model: xLSTMLMModel, params) -> None:
    split = byte_split(DOCUMENTS)
    scorer, alone = Scorer(model), []
    apply = jax.jit(model.apply)
    for document in DOCUMENTS:
        tokens = np.array([256, *document, 256], np.int32)
        logits = apply({"params": params}, tokens[None, :-1])
        alone.append(-float(jax.nn.log_softmax(logits)[0, np.arange(len(tokens) - 1), tokens[1:]].sum()))
        assert score_document(scorer, params, tokens, len(document)).nats == pytest.approx(alone[-1], rel=1e-5)
    for batch_size, seq_len in ((1, 8), (3, 5), (8, 64)):
        score = HeldOut(scorer, split, batch_size=batch_size, seq_len=seq_len)(params)
        assert score.nats == pytest.approx(sum(alone), rel=1e-5)
        assert score.tokens == sum(len(d) + 1 for d in DOCUMENTS)
        assert score.raw_bytes == sum(map(len, DOCUMENTS))


def test_a_score_is_what_its_names_say() -> None:
    score = Score(nats=20 * math.log(4), tokens=20, raw_bytes=16)
    assert score.perplexity == pytest.approx(4)
    assert score.bits_per_byte == pytest.approx(2 * 20 / 16)
    assert Score(nats=1e6, tokens=1, raw_bytes=1).perplexity < math.inf


def test_a_budget_takes_first_documents_that_fit_and_one_at_least() -> None:
    split = byte_split(DOCUMENTS)
    assert first_documents(split, None) == [0, 1, 2, 3, 4, 5]
    assert first_documents(split, 22) == [0, 1, 4]
    assert first_documents(split, 0) == [4]
    assert first_documents(byte_split([]), 10) == []


def test_nothing_held_out_is_no_score(model: xLSTMLMModel, params) -> None:
    held_out = HeldOut(Scorer(model), byte_split([]))
    assert held_out.num_documents == 0
    with pytest.raises(ValueError, match="no held-out documents"):
        held_out(params)


def test_long_inputs_are_read_in_chunks_of_few_sizes() -> None:
    assert {size for length in range(1, 2000) for _, size in chunks(length)} == {16, 32, 64, 128, 256}
    for length in (1, 16, 17, 255, 256, 257, 600):
        starts, sizes = zip(*chunks(length), strict=True)
        assert starts == tuple(range(0, length, LONGEST_CHUNK))
        assert 0 <= sum(sizes) - length < LONGEST_CHUNK
    assert chunks(600) == [(0, 256), (256, 256), (512, 128)]
    assert [power_of_two(count) for count in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]


def test_resets_for_scoring_leave_the_models_own_config_alone(model: xLSTMLMModel) -> None:
    assert with_exact_resets(model.config) != model.config
    assert not model.config.mlstm_block.mlstm.mlstm_cell.reset_at_document_boundaries
