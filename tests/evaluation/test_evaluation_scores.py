"""Scores do not depend on how documents are laid out, and baselines are what the named programs make."""

from __future__ import annotations

import gzip
import io
import lzma
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from xlstm_jax.data.store.store import Split
from xlstm_jax.data.tokenizers.base import ByteTokenizer
from xlstm_jax.models.language_model import with_exact_resets
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig
from xlstm_jax.report.table import Comparison, print_comparison
from xlstm_jax.scoring.baselines import (
    byte_counts,
    compressed_bits_per_byte,
    gzip_size,
    unigram_bits_per_byte,
    xz_size,
)
from xlstm_jax.scoring.heldout import HeldOut, Score, Scorer, first_documents

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
    alone = 0.0
    apply = jax.jit(model.apply)
    for document in DOCUMENTS:
        tokens = np.array([256, *document, 256], np.int32)
        logits = apply({"params": params}, tokens[None, :-1])
        alone -= float(jax.nn.log_softmax(logits)[0, np.arange(len(tokens) - 1), tokens[1:]].sum())
    for lanes, seq_len in ((1, 8), (3, 5), (8, 64)):
        score = HeldOut(Scorer(model), split, lanes=lanes, seq_len=seq_len)(params)
        assert score.nats == pytest.approx(alone, rel=1e-5)
        assert score.targets == sum(len(d) + 1 for d in DOCUMENTS)
        assert score.raw_bytes == sum(map(len, DOCUMENTS))


def test_a_score_is_what_its_names_say() -> None:
    score = Score(nats=20 * math.log(4), targets=20, raw_bytes=16)
    assert score.perplexity == pytest.approx(4)
    assert score.bits_per_byte == pytest.approx(2 * 20 / 16)
    assert Score(nats=1e6, targets=1, raw_bytes=1).perplexity < math.inf


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


def test_resets_for_scoring_leave_the_models_own_config_alone(model: xLSTMLMModel) -> None:
    assert with_exact_resets(model.config) != model.config
    assert not model.config.mlstm_block.mlstm.mlstm_cell.reset_at_document_boundaries


def test_unigram_counts_bytes_of_the_training_text() -> None:
    training, held_out = byte_split([b"aab", b"b"]), byte_split([b"ab", b"c"])
    counts = byte_counts(training)
    assert counts[ord("a")] == counts[ord("b")] == 2
    assert counts.sum() == 4
    want = -(2 * math.log2(3 / 260) + math.log2(1 / 260)) / 3
    assert unigram_bits_per_byte(counts, byte_counts(held_out)) == pytest.approx(want)


def test_compressed_sizes_are_those_of_the_programs() -> None:
    text = "".join(f"line {i * i} of a file\n" for i in range(3000)).encode()
    for document in (b"", b"x", text[:1000], text):
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
            file.write(document)
        assert gzip_size(document) == len(buffer.getvalue())
        assert xz_size(document) == len(lzma.compress(document, preset=9))
    both = compressed_bits_per_byte([text, text[:1000]], gzip_size)
    assert both == pytest.approx(8 * (gzip_size(text) + gzip_size(text[:1000])) / (len(text) + 1000))
    assert math.isnan(compressed_bits_per_byte([], gzip_size))


def test_the_table_shows_the_four_side_by_side() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_comparison(Comparison(1.5, 4.75, 2.25, 2.0, files=3, raw_bytes=12345), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert [shown.index(n) for n in ("1.500", "4.750", "2.250", "2.000")] == sorted(
        shown.index(n) for n in ("1.500", "4.750", "2.250", "2.000")
    )
    assert "3 held-out files, 12,345 bytes" in shown
    assert "per file" in shown
