"""Runs of equal blocks: what a stack computes does not depend on how its blocks are put together."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import VOCAB, assert_close, assert_trees_close, build, model_config, tokens_of

import xlstm_jax
from xlstm_jax.models.language_model import block_shapes, build_model, param_shapes
from xlstm_jax.models.layouts import to_blocks, to_runs
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.models.stack import spans
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.presets import get_preset

SLSTM = sLSTMBlockConfig(slstm=sLSTMLayerConfig(num_heads=2), feedforward=None)


def mix(num_blocks, slstm_at, **fields):
    return model_config("mlstm_v1", slstm_block=SLSTM, num_blocks=num_blocks, slstm_at=slstm_at, **fields)


@pytest.fixture(scope="module")
def both():
    """A mix of five blocks in three runs, block by block and scanned, with the same parameters."""
    model, params = build(mix(5, [2]))
    scanned = build_model(dataclasses.replace(model.config, scan_blocks=True))
    return model, params, scanned, to_runs(params, spans(scanned.config))


def test_neighbours_of_one_kind_are_a_run():
    config = mix(5, [2], scan_blocks=True)
    assert spans(config) == (range(2), range(2, 3), range(3, 5))
    assert list(param_shapes(config)["xlstm_block_stack"]) == [
        "post_blocks_norm",
        "blocks_0_1",
        "blocks_2",
        "blocks_3_4",
    ]
    assert [len(span) for span in spans(dataclasses.replace(config, scan_blocks=False))] == [1] * 5
    published = get_preset("xlstm_1.3b_7_1").model
    assert [len(span) for span in spans(published)] == [3, 1, 1, 1, 1, 1, 32, 1, 1, 1, 1, 1, 3]


def test_a_scanned_mix_computes_what_its_blocks_do_with_every_gradient(both):
    model, params, scanned, runs = both
    tokens = tokens_of(2, 6)
    fresh = jax.eval_shape(scanned.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(jnp.shape, runs) == jax.tree.map(jnp.shape, fresh)
    jax.tree.map(np.testing.assert_array_equal, to_blocks(runs), params)

    def value_and_gradient(model, params):
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(model.apply({"params": p}, tokens) ** 2)))(params)

    value, gradient = value_and_gradient(model, params)
    scanned_value, scanned_gradient = value_and_gradient(scanned, runs)
    assert_close(scanned_value, value, 1e-6)
    assert_trees_close(to_blocks(scanned_gradient), gradient, 1e-4)


def test_states_have_the_batch_in_front_and_go_on_from_any_split(both):
    model, params, scanned, runs = both
    tokens = tokens_of(3, 7)
    step = jax.jit(lambda tokens, state: scanned.apply({"params": runs}, tokens, state=state, return_state=True))
    want = jax.jit(model.apply)({"params": params}, tokens)
    first, state = step(tokens[:, :4], scanned.init_state(3))
    assert len(state) == len(spans(scanned.config))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {3}
    assert {leaf.shape[1] for leaf in jax.tree.leaves(state[0])} == {2}
    # The rows change places, and their states with them.
    order = jnp.array([2, 0, 1])
    second, _ = step(tokens[order, 4:], jax.tree.map(lambda leaf: leaf[order], state))
    assert_close(first, want[:, :4])
    assert_close(second, want[order, 4:])
    with pytest.raises(ValueError, match="state has 5 entries, but must be a tuple of 3, one a run of blocks"):
        scanned.apply({"params": runs}, tokens, state=model.init_state(3))


def test_the_program_of_a_deep_mix_is_as_large_as_that_of_its_runs():
    def program(num_blocks, slstm_at):
        model = build_model(mix(num_blocks, slstm_at, scan_blocks=True, vocab_size=VOCAB))
        params = param_shapes(model.config)
        loss = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, tokens_of(1, 4)))))
        return len(loss.lower(params).as_text())

    assert program(24, [3, 20]) < 1.05 * program(8, [2, 5])


@pytest.mark.parametrize("scan_blocks", [False, True])
@pytest.mark.parametrize("family", ["mix", "llama", "lstm"])
def test_shapes_are_those_of_fresh_parameters(family, scan_blocks):
    config = mix(5, [1, 2], scan_blocks=scan_blocks)
    if family == "llama":
        config = LlamaConfig(embedding_dim=16, num_blocks=3, head_dim=8, vocab_size=VOCAB, scan_blocks=scan_blocks)
    if family == "lstm":
        config = LSTMConfig(embedding_dim=16, num_blocks=3, vocab_size=VOCAB, scan_blocks=scan_blocks)
    model = build_model(config)
    fresh = jax.eval_shape(model.init, jax.random.key(0), tokens_of(1, 2))["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), param_shapes(config)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), fresh
    )
    assert model.param_count == sum(leaf.size for leaf in jax.tree.leaves(fresh))
    apart = to_blocks(jax.tree.map(lambda x: np.zeros(x.shape, np.int8), fresh))
    leaves = jax.tree_util.tree_leaves_with_path(apart)
    assert block_shapes(config) == {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def test_a_forward_is_a_short_walk():
    """Files of the package that a call of a model with the layers of xLSTM-7B enters, and how deep it goes."""
    model = build_model(model_config("mlstm_v1"))
    tokens = tokens_of(1, 32)
    params = param_shapes(model.config)
    call = functools.partial(jax.eval_shape, lambda p: model.apply({"params": p}, tokens))
    call(params)  # what follows from the config is remembered from here on
    package = Path(xlstm_jax.__file__).parent
    files, depths = set(), [0]

    ours = functools.cache(lambda code: package in Path(code.co_filename).parents)

    def watch(frame, event, _):
        if event != "call" or not ours(frame.f_code):
            return
        files.add(frame.f_code.co_filename)
        depth = 0
        while frame is not None:
            depth += ours(frame.f_code)
            frame = frame.f_back
        depths.append(depth)

    jax.clear_caches()
    sys.setprofile(watch)
    try:
        call(params)
    finally:
        sys.setprofile(None)
    of_meshes = {file for file in files if Path(file).parent.name == "distributed"}
    assert len(files - of_meshes) <= 14, sorted(files)
    assert len(of_meshes) <= 3, sorted(of_meshes)
    assert max(depths) <= 17
