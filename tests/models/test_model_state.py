"""The model over whole sequences, pieces and single steps, with padding, neighbours and document borders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LAYER_TYPES, ROUNDING, VOCAB, assert_close, assert_trees_close, build, model_config, tokens_of

SEQ = 13
EXACT = {"reset_at_document_boundaries": True, "reset_mode": "exact"}
GATE = {"reset_at_document_boundaries": True}


@functools.cache
def case(layer_type, scan_blocks=False, cell=(), num_blocks=1):
    config = model_config(layer_type, cell=dict(cell), scan_blocks=scan_blocks, num_blocks=num_blocks)
    model, params = build(config)
    run = jax.jit(lambda tokens, **kw: model.apply({"params": params}, tokens, return_state=True, **kw))
    return model, params, run


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
@pytest.mark.parametrize(("scan_blocks", "split"), [(False, 1), (True, 7)])
def test_pieces_equal_the_whole(layer_type, scan_blocks, split):
    _, _, run = case(layer_type, scan_blocks, num_blocks=2)
    tokens = tokens_of(2, SEQ)
    whole, end = run(tokens)
    first, state = run(tokens[:, :split])
    second, end_of_pieces = run(tokens[:, split:], state=state)
    assert_close(jnp.concatenate([first, second], axis=1), whole)
    jax.tree.map(assert_close, end_of_pieces, end)


@pytest.mark.parametrize(("layer_type", "scan_blocks"), [("mlstm", False), ("mlstm", True), ("mlstm_v1", False)])
def test_single_steps_from_the_initial_state_equal_the_whole(layer_type, scan_blocks):
    model, _, run = case(layer_type, scan_blocks, num_blocks=2)
    tokens = tokens_of(2, SEQ)
    whole, end = run(tokens)
    state, outputs = model.init_state(2), []
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for t in range(SEQ):
        logits, state = run(tokens[:, t : t + 1], state=state)
        outputs.append(logits)
    assert_close(jnp.concatenate(outputs, axis=1), whole)
    jax.tree.map(assert_close, state, end)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before


@pytest.mark.parametrize(
    ("layer_type", "where"), [("mlstm", "right"), ("mlstm", "left"), ("mlstm", "middle"), ("mlstm_v1", "right")]
)
def test_a_padded_row_equals_the_row_alone(layer_type, where):
    _, _, run = case(layer_type)
    length, padded = 6, 10
    row = tokens_of(1, length, seed=5)
    places = {"right": range(length), "left": range(padded - length, padded), "middle": (0, 1, 4, 5, 8, 9)}[where]
    places = jnp.array(list(places))
    tokens = tokens_of(1, padded, seed=6).at[0, places].set(row[0])
    mask = jnp.zeros((1, padded), bool).at[0, places].set(True)
    batch, valid = jnp.concatenate([tokens, tokens_of(1, padded)]), jnp.concatenate([mask, jnp.ones((1, padded), bool)])
    alone, state_alone = run(row)
    logits, state = run(batch, mask=valid)
    assert_close(logits[0, places], alone[0])
    jax.tree.map(lambda a, b: assert_close(a[:1], b), state, state_alone)
    assert np.isfinite(logits).all()
    # The row continues as if it had never been padded, also through a masked step of decoding.
    after, _ = run(tokens_of(1, 1), state=state_alone)
    skipped, state = run(jnp.full((2, 1), VOCAB - 1), state=state, mask=jnp.zeros((2, 1), bool))
    assert np.isfinite(skipped).all()
    padded_after, _ = run(jnp.tile(tokens_of(1, 1), (2, 1)), state=state)
    assert_close(padded_after[:1], after)


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_what_stands_under_the_mask_has_no_influence(layer_type):
    _, _, run = case(layer_type)
    mask = jnp.ones((1, SEQ), bool).at[0, 3:6].set(False)
    tokens = tokens_of(1, SEQ)
    logits, state = run(tokens, mask=mask)
    others, other_state = run(jnp.where(mask, tokens, -7), mask=mask)
    np.testing.assert_array_equal(logits[mask], others[mask])
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_do_not_depend_on_their_neighbours(layer_type, masked):
    _, _, run = case(layer_type)
    tokens = tokens_of(3, SEQ)
    mask = jnp.ones((3, SEQ), bool).at[0, 8:].set(False) if masked else None
    other_mask = None if mask is None else mask.at[1:, :4].set(False)
    logits, _ = run(tokens, mask=mask)
    others, _ = run(tokens.at[1:].set(tokens_of(2, SEQ, seed=9)), mask=other_mask)
    np.testing.assert_array_equal(logits[0], others[0])
    assert np.abs(logits[1] - others[1]).max() > 1e-3


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_the_past_does_not_depend_on_the_future(layer_type):
    _, _, run = case(layer_type)
    tokens = tokens_of(2, SEQ)
    logits, _ = run(tokens)
    for t in (1, 6, SEQ - 1):
        changed, _ = run(tokens.at[:, t:].set(tokens_of(2, SEQ - t, seed=3)))
        np.testing.assert_array_equal(changed[:, :t], logits[:, :t])


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_exact_resets_equal_separate_runs(layer_type):
    _, _, run = case(layer_type, cell=tuple(EXACT.items()))
    tokens = tokens_of(2, SEQ)
    borders = jnp.zeros((2, SEQ), bool).at[:, jnp.array([0, 5, 6])].set(True)
    packed, end = run(tokens, document_borders=borders)
    parts = [run(tokens[:, a:b]) for a, b in ((0, 5), (5, 6), (6, SEQ))]
    assert_close(packed, jnp.concatenate([logits for logits, _ in parts], axis=1))
    after = tokens_of(2, 4, seed=2)
    assert_close(run(after, state=end)[0], run(after, state=parts[-1][1])[0])


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_an_exact_reset_forgets_a_state_and_works_in_a_step(layer_type):
    _, _, run = case(layer_type, cell=tuple(EXACT.items()))
    tokens, border = tokens_of(2, SEQ), jnp.ones((2, 1), bool)
    _, state = run(tokens_of(2, 5, seed=4))
    fresh, _ = run(tokens)
    first, state = run(tokens[:, :1], state=state, document_borders=border)
    rest, _ = run(tokens[:, 1:], state=state)
    assert_close(jnp.concatenate([first, rest], axis=1), fresh)


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_a_padded_packed_row_resets_exactly_too(layer_type):
    _, _, run = case(layer_type, cell=tuple(EXACT.items()))
    tokens = tokens_of(1, 10)
    borders = jnp.zeros((1, 10), bool).at[0, jnp.array([4, 7])].set(True)
    mask = jnp.ones((1, 10), bool).at[0, jnp.array([2, 5, 7])].set(False)
    packed, end = run(tokens, document_borders=borders, mask=mask)
    first, _ = run(tokens[:, jnp.array([0, 1, 3])])
    second, end_alone = run(tokens[:, jnp.array([4, 6, 8, 9])])
    assert_close(packed[0, jnp.array([0, 1, 3])], first[0])
    assert_close(packed[0, jnp.array([4, 6, 8, 9])], second[0])
    after = tokens_of(1, 4, seed=2)
    assert_close(run(after, state=end)[0], run(after, state=end_alone)[0])


def test_gate_resets_close_the_forget_gate_and_leave_the_convolution_open():
    tokens = tokens_of(1, SEQ)
    borders = jnp.zeros((1, SEQ), bool).at[0, 6].set(True)
    for layer_type, sees_across in (("mlstm_v1", False), ("mlstm", True)):
        _, _, run = case(layer_type, cell=tuple(GATE.items()))
        reset, _ = run(tokens, document_borders=borders)
        alone, _ = run(tokens[:, 6:])
        difference = float(jnp.abs(reset[:, 6:] - alone).max())
        assert (difference > 1e-3) == sees_across


def test_borders_act_only_where_the_config_says():
    _, _, run = case("mlstm")
    tokens, borders = tokens_of(1, SEQ), jnp.zeros((1, SEQ), bool).at[0, 6].set(True)
    np.testing.assert_array_equal(run(tokens, document_borders=borders)[0], run(tokens)[0])


def test_gradients_flow_through_the_state():
    model, params, _ = case("mlstm")
    tokens = tokens_of(2, 8)

    def whole(params):
        return jnp.mean(model.apply({"params": params}, tokens) ** 2)

    def pieces(params):
        first, state = model.apply({"params": params}, tokens[:, :5], return_state=True)
        second = model.apply({"params": params}, tokens[:, 5:], state=state)
        return jnp.mean(jnp.concatenate([first, second], axis=1) ** 2)

    assert_trees_close(*(jax.jit(jax.grad(f))(params) for f in (pieces, whole)), 1e-4)


def test_features_and_head_compose_to_the_call():
    model, params, run = case("mlstm_v1")
    tokens = tokens_of(2, SEQ)
    features = model.apply({"params": params}, tokens, method="features")
    assert features.shape == (2, SEQ, 16)
    logits = model.apply({"params": params}, features, method="head")
    assert_close(logits, run(tokens)[0], ROUNDING)


def test_wrong_arguments_are_named():
    model, params, _ = case("mlstm_v1")
    tokens = tokens_of(2, SEQ)
    with pytest.raises(ValueError, match="tokens has shape"):
        model.apply({"params": params}, tokens[0])
    with pytest.raises(ValueError, match=r"tokens has .* float32"):
        model.apply({"params": params}, tokens.astype(jnp.float32))
    with pytest.raises(ValueError, match="mask has shape"):
        model.apply({"params": params}, tokens, mask=jnp.ones((2, 1), bool))
    with pytest.raises(ValueError, match=r"document_borders has .* int32"):
        model.apply({"params": params}, tokens, document_borders=tokens)
