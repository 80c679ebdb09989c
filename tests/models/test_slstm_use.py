"""Mixed models where they are used: scored document by document, and generating in batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_models import build, model_config
from test_slstm_models import mixed_config, slstm_block

from xlstm_jax.inference.engine import Engine
from xlstm_jax.inference.sampling import Sampling, draws
from xlstm_jax.models.language_model import with_exact_resets
from xlstm_jax.presets import get_preset

END = 0


@pytest.mark.parametrize("pure", [True, False])
def test_scoring_by_document_resets_slstm_blocks_too(pure):
    config = model_config(slstm_block=slstm_block(), slstm_at=[1])
    config = dataclasses.replace(config, mlstm_block=None) if pure else config
    assert not config.block_config(1).layer_config().cell_config().reset_at_document_boundaries
    scored = with_exact_resets(config)
    assert scored.block_config(1).layer_config().cell_config().reset_at_document_boundaries


def test_a_prompt_is_continued_alike_alone_and_in_a_batch():
    model, params = build(mixed_config())
    engine = Engine(model, END, 31)
    prompts = [np.array(p, np.int32) for p in ([4, 7, 1], [], [9] * 20, [2, 30])]

    def continued(rows):
        carry = engine.prefill(params, [prompts[r] for r in rows])
        draw = draws(Sampling(temperature=1.0, seed=2), rows)
        return np.asarray(engine.decode(params, carry, draw, np.zeros(len(rows), bool), 8)[1])

    together = continued(range(4))
    assert len(np.unique(together)) > 4
    for row in range(4):
        np.testing.assert_array_equal(continued([row])[:, 0], together[:, row])


def test_quickstart_mixed_is_the_quickstart_with_a_scalar_memory():
    mixed, plain = get_preset("quickstart_mixed"), get_preset("quickstart")
    assert mixed.model.block_map == [0, 1, 0, 0]
    assert mixed.model.block_config(1).layer_config().cell_config().reset_at_document_boundaries
    assert dataclasses.replace(mixed.model, slstm_block=None, slstm_at=[]) == plain.model
    assert (mixed.data, mixed.optimizer) == (plain.data, plain.optimizer)
    assert dataclasses.replace(mixed.training, steps=plain.training.steps) == plain.training
