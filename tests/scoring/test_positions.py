"""Every bin of positions is of the same tokens, each read where the bin says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.models.language_model import LanguageModelConfig, build_model, param_shapes
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.scoring import positions
from xlstm_jax.scoring.finite import NotFiniteError
from xlstm_jax.scoring.positions import Region, Stretch, loss_by_position, regions, stretches
from xlstm_jax.scoring.score import Scorer

VOCAB = 31
LENGTHS = (16, 3, 8)
# The convolution of the one, and the cache of the other, would see across windows that were not kept apart.
XLSTM = xLSTMLMModelConfig(
    mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(layer_type="mlstm", num_heads=2)),
    num_blocks=1,
    embedding_dim=16,
    context_length=4,
    dtype="float32",
    vocab_size=VOCAB,
)
LLAMA = LlamaConfig(
    embedding_dim=16, num_blocks=1, context_length=4, head_dim=8, dtype="float32", vocab_size=VOCAB, ffn_dim=16
)


@pytest.mark.parametrize("config", [XLSTM, LLAMA], ids=["xlstm", "llama"])
def test_each_target_is_read_once_at_a_position_of_each_bin(
    config: LanguageModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    params: Any = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), param_shapes(config)
    )
    documents = [rng.integers(0, VOCAB, size) for size in (41, 9, 24, 17)]
    model = build_model(config)
    apply = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)))
    # The second is too short; the third gives one multiple of the widest bin, the last exactly one.
    found = regions([len(document) - 1 for document in documents], stretches(LENGTHS), 1000)
    assert found == [Region(0, 8, 40), Region(2, 8, 16), Region(3, 8, 16)]

    def nats_at(place: Stretch) -> float:
        total = 0.0
        for number, first, end in found:
            for target in range(first, end, place.end - place.first):
                start = target - place.first
                read = documents[number][start : min(start + place.end, end) + 1]
                padded = np.zeros((1, max(LENGTHS)), np.int32)
                padded[0, : len(read) - 1] = read[:-1]
                logs = np.asarray(apply(padded))[0, place.first : len(read) - 1]
                total -= logs[np.arange(len(logs)), read[place.first + 1 :]].sum()
        return total

    truth = [nats_at(place) for place in ((Stretch(0, 3), Stretch(3, 8), Stretch(8, 16)))]
    for chunk, rows in ((256, 8), (16, 2)):  # at once, and across the borders of windows
        monkeypatch.setattr(positions, "LONGEST_CHUNK", chunk)
        monkeypatch.setattr(positions, "BATCH_TOKENS", chunk)
        monkeypatch.setattr(positions, "MOST_ROWS", rows)
        losses = loss_by_position(Scorer(model), params, documents, LENGTHS)
        assert [one.positions for one in losses] == stretches(LENGTHS)
        assert {one.tokens for one in losses} == {48}
        assert [one.nats for one in losses] == pytest.approx(truth, rel=1e-5)
    with pytest.raises(ValueError, match="no document has 64 tokens"):
        loss_by_position(Scorer(model), params, documents, (64,))


def test_what_is_not_finite_is_no_loss() -> None:
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, jnp.float32), param_shapes(LLAMA))
    with pytest.raises(NotFiniteError, match="the logits at positions 0 to 3"):
        loss_by_position(Scorer(build_model(LLAMA)), params, [np.zeros(9, np.int32)], (4,))


def test_targets_are_no_more_than_asked_for_but_one_stretch_at_least() -> None:
    bins = stretches((4, 16))
    assert regions([100, 100], bins, 30) == [Region(0, 4, 28)]
    assert regions([100, 100], bins, 1) == [Region(0, 4, 16)]
    assert regions([16, 100], bins, 40) == [Region(0, 4, 16), Region(1, 4, 28)]
    assert regions([15], bins, 30) == []
