"""The sLSTM: both forms against each other, against an independent loop, and the laws that hold for states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.kernels.slstm import SLSTMState, implementations, pick_implementation, slstm, slstm_step, zero_state

NAMES = ("wx", "r", "b", "y", "c", "n", "m")


def inputs(seed=0, batch=3, seq=9, heads=2, dim=5, dtype=jnp.float64, scale=1.5, running=True):
    """wx, r, b and a state: one of a sequence under way, or the empty one."""
    keys = jax.random.split(jax.random.key(seed), 7)
    wx = scale * jax.random.normal(keys[0], (batch, seq, 4, heads, dim))
    r = scale * jax.random.normal(keys[1], (4, heads, dim, dim)) / dim**0.5
    b = scale * jax.random.normal(keys[2], (4, heads, dim))
    shape = (batch, heads, dim)
    state = SLSTMState(
        y=jax.random.normal(keys[3], shape),
        c=jax.random.normal(keys[4], shape),
        n=0.5 + jax.random.uniform(keys[5], shape),
        m=jax.random.normal(keys[6], shape),
    )
    if not running:
        state = zero_state(batch, heads, dim)
    return jax.tree.map(lambda x: x.astype(dtype), (wx, r, b, state))


def flags(seed, batch, seq, share=0.3):
    return jnp.asarray(np.random.default_rng(seed).random((batch, seq)) < share)


def cotangents(tree, seed=10):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def value_and_gradients(arguments, **options):
    """Outputs and the gradients of all inputs, for random cotangents of y and of every part of the final state."""

    @jax.jit
    def run(wx, r, b, state):
        def call(wx, r, b, state):
            return slstm(wx, r, b, state=state, return_state=True, **options)

        out, pull = jax.vjp(call, wx, r, b, state)
        return out, pull(cotangents(out))

    return run(*arguments)


def assert_close(values, truths, dtype=jnp.float64, length=1):
    values, truths = jax.tree.leaves(values), jax.tree.leaves(truths)
    for place, (value, truth) in enumerate(zip(values, truths, strict=True)):
        error = relative_error(value, truth)
        assert error <= tolerance(dtype, length), f"leaf {place}: {error}"


def loop(wx, r, b, state, reset, mask):
    """The same recurrence element by element in NumPy, written from the paper in the unstabilised frame."""
    batch, seq, _, heads, dim = wx.shape
    y, c, n = (np.array(x) for x in (state.y, np.exp(state.m) * state.c, np.exp(state.m) * state.n))
    out = np.zeros((batch, seq, heads, dim))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for row in range(batch):
        for t in range(seq):
            if not mask[row, t]:
                continue
            if reset[row, t]:
                y[row], c[row], n[row] = 0, 0, 0
            raw = np.array(wx[row, t])
            for g in range(4):
                for h in range(heads):
                    raw[g, h] += r[g, h] @ y[row, h] + b[g, h]
            c[row] = sigmoid(raw[1]) * c[row] + np.exp(raw[0]) * np.tanh(raw[2])
            n[row] = sigmoid(raw[1]) * n[row] + np.exp(raw[0])
            y[row] = out[row, t] = sigmoid(raw[3]) * c[row] / n[row]
    return out, (y, c, n)


@pytest.mark.parametrize("form", implementations())
@pytest.mark.parametrize("running", [True, False])
def test_equals_the_unstabilised_recurrence(x64, form, running):
    wx, r, b, state = inputs(running=running)
    reset, mask = flags(1, 3, 9), ~flags(2, 3, 9)
    y, final = slstm(wx, r, b, state=state, return_state=True, reset=reset, mask=mask, implementation=form)
    want, (want_y, want_c, want_n) = loop(*(np.asarray(x) for x in (wx, r, b)), state, reset, mask)
    scale = jnp.exp(final.m)
    assert_close((y, final.y, scale * final.c, scale * final.n), (want, want_y, want_c, want_n))


@pytest.mark.parametrize(
    ("options", "flagged"),
    [
        ({}, ""),
        ({}, "reset"),
        ({}, "mask"),
        ({"gradient_recurrent_cut": True}, "reset mask"),
        ({"gradient_recurrent_clipval": 0.3}, "reset mask"),
        ({"gradient_recurrent_clipval": 0.5, "forward_clipval": 0.2}, ""),
    ],
    ids=str,
)
def test_every_gradient_equals_that_of_the_oracle(x64, options, flagged):
    arguments = inputs(seed=3, seq=14)
    given = {}
    if "reset" in flagged:
        given["reset"] = flags(4, 3, 14)
    if "mask" in flagged:
        given["mask"] = ~flags(5, 3, 14).at[0, :2].set(True)
    want = value_and_gradients(arguments, implementation="recurrent", **given, **options)
    got = value_and_gradients(arguments, implementation="fused", **given, **options)
    assert_close(got, want)


def test_gradients_from_the_empty_state(x64):
    arguments = inputs(seed=4, running=False)
    want = value_and_gradients(arguments, implementation="recurrent")
    assert_close(value_and_gradients(arguments, implementation="fused"), want)


@settings(max_examples=3, deadline=None)
@given(
    batch=st.integers(1, 4),
    seq=st.integers(1, 12),
    heads=st.integers(1, 3),
    dim=st.integers(1, 7),
    unroll=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape_and_unrolling(batch, seq, heads, dim, unroll, seed):
    with jax.enable_x64(True):
        arguments = inputs(seed, batch, seq, heads, dim)
        given = {"reset": flags(seed, batch, seq), "mask": ~flags(seed + 1, batch, seq)}
        want = value_and_gradients(arguments, implementation="recurrent", **given)
        assert_close(value_and_gradients(arguments, implementation="fused", unroll=unroll, **given), want)


def test_gradient_of_the_oracle_equals_finite_differences(x64):
    arguments = inputs(seed=6, batch=2, seq=5, dim=2)
    out, pull = jax.vjp(lambda *a: slstm(*a[:3], state=a[3], return_state=True, implementation="recurrent"), *arguments)
    weights = cotangents(out)
    gradients = pull(weights)

    def total(arguments):
        out = slstm(*arguments[:3], state=arguments[3], return_state=True, implementation="recurrent")
        return sum(jnp.vdot(x, w) for x, w in zip(jax.tree.leaves(out), jax.tree.leaves(weights), strict=True))

    for seed in range(3):
        direction, step = cotangents(arguments, seed), 1e-6
        plus, minus = (jax.tree.map(lambda x, d, s=s: x + s * d, arguments, direction) for s in (step, -step))
        want = (total(plus) - total(minus)) / (2 * step)
        got = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True))
        assert abs(got - want) <= 1e-7 * max(abs(want), 1)


def test_ties_of_the_stabiliser_split_the_gradient_as_in_the_oracle(x64):
    """Where log f + m equals the input gate exactly, both terms of the maximum get half."""
    wx, r, b, state = inputs(seed=7, seq=6)
    # sigmoid saturates: log f is 0 in float64, so m stays and equals a constant input gate.
    wx = wx.at[:, :, 0].set(1.0).at[:, :, 1].set(800.0).at[:, 3, 0].set(-2.0)
    state = state._replace(m=jnp.ones_like(state.m))
    arguments = (wx, r.at[:2].set(0), b.at[:2].set(0), state)
    out, want = value_and_gradients(arguments, implementation="recurrent")
    assert_close(value_and_gradients(arguments, implementation="fused"), (out, want))
    # Stop the maximum from splitting and the gradients differ: the case is not vacuous.
    moved = (wx.at[:, :, 0].add(1e-9), *arguments[1:])
    assert relative_error(value_and_gradients(moved, implementation="recurrent")[1][0], want[0]) > 1e-3


@pytest.mark.parametrize("form", implementations())
def test_pieces_equal_the_whole_gradients_included(x64, form):
    wx, r, b, state = inputs(seed=8, seq=11)
    reset, mask = flags(9, 3, 11, 0.15), ~flags(10, 3, 11)

    def pieces(wx, r, b, state):
        parts = []
        for cut in (slice(0, 1), slice(1, 1), slice(1, 6), slice(6, 11)):
            y, state = slstm(
                wx[:, cut], r, b, state=state, return_state=True, reset=reset[:, cut], mask=mask[:, cut],
                implementation=form, gradient_recurrent_clipval=0.5,
            )  # fmt: skip
            parts.append(y)
        return jnp.concatenate(parts, axis=1), state

    def whole(wx, r, b, state):
        return slstm(
            wx, r, b, state=state, return_state=True, reset=reset, mask=mask, implementation=form,
            gradient_recurrent_clipval=0.5,
        )  # fmt: skip

    (out, pull), (want, want_pull) = jax.vjp(pieces, wx, r, b, state), jax.vjp(whole, wx, r, b, state)
    assert_close(out, want)
    assert_close(pull(cotangents(want)), want_pull(cotangents(want)))


def test_steps_equal_the_sequence(x64):
    wx, r, b, state = inputs(seed=11)
    reset, mask = flags(12, 3, 9), ~flags(13, 3, 9)
    want, want_state = slstm(wx, r, b, state=state, return_state=True, reset=reset, mask=mask)
    outputs = []
    for t in range(wx.shape[1]):
        y, state = slstm_step(state, wx[:, t], r, b, reset=reset[:, t], mask=mask[:, t])
        outputs.append(y)
    assert_close((jnp.stack(outputs, axis=1), state), (want, want_state))


@pytest.mark.parametrize("form", implementations())
def test_nothing_leaks_over_a_reset(form):
    wx, r, b, state = inputs(seed=14, dtype=jnp.float32)
    reset = jnp.zeros((3, 9), bool).at[:, 4].set(True)
    whole, final = slstm(wx, r, b, state=state, return_state=True, reset=reset, implementation=form)
    alone, alone_final = slstm(wx[:, 4:], r, b, return_state=True, implementation=form)
    np.testing.assert_array_equal(whole[:, 4:], alone)
    jax.tree.map(np.testing.assert_array_equal, final, alone_final)


@pytest.mark.parametrize("form", implementations())
def test_padding_changes_nothing(form):
    wx, r, b, state = inputs(seed=15, dtype=jnp.float32)
    mask = jnp.zeros((3, 9), bool).at[:, 2:6].set(True)
    poisoned = jnp.where(mask[:, :, None, None, None], wx, jnp.nan)
    reset = ~mask | (jnp.arange(9) == 3)
    y, final = slstm(poisoned, r, b, state=state, return_state=True, reset=reset, mask=mask, implementation=form)
    alone, alone_final = slstm(
        wx[:, 2:6], r, b, state=state, return_state=True, reset=reset[:, 2:6], implementation=form
    )
    for got, want in zip((y[:, 2:6], *final), (alone, *alone_final), strict=True):
        assert relative_error(got, want) <= tolerance(jnp.float32)
    assert not np.any(np.where(mask[..., None, None], 0, y))
    # The state itself stays bit by bit.
    _, kept = slstm(poisoned[:, 6:], r, b, state=final, return_state=True, mask=mask[:, 6:], implementation=form)
    jax.tree.map(np.testing.assert_array_equal, kept, final)
    gradients = jax.grad(
        lambda *a: jnp.sum(slstm(*a, state=state, reset=reset, mask=mask, implementation=form)), (0, 1, 2)
    )(poisoned, r, b)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)
    assert not np.any(np.where(mask[:, :, None, None, None], 0, gradients[0]))


@pytest.mark.parametrize("form", implementations())
def test_fresh_and_running_rows_share_a_batch(form):
    """The rule of the first step holds element by element, not for the batch."""
    wx, r, b, state = inputs(seed=16, batch=2, dtype=jnp.float32)
    mixed = SLSTMState(*(x.at[0].set(0) for x in state))
    y = slstm(wx, r, b, state=mixed, implementation=form)
    fresh = slstm(wx[:1], r, b, implementation=form)
    running = slstm(wx[1:], r, b, state=SLSTMState(*(x[1:] for x in state)), implementation=form)
    for got, want in ((y[:1], fresh), (y[1:], running)):
        assert relative_error(got, want) <= tolerance(jnp.float32)


@pytest.mark.parametrize("form", implementations())
@pytest.mark.parametrize("level", [-2000.0, 2000.0])
def test_extreme_gates_stay_finite_and_exact(form, level):
    wx, r, b, _ = inputs(seed=17, dtype=jnp.float32)
    wx = wx.at[:, ::3, 0].add(level).at[:, ::4, 1].add(-level / 20)
    got = value_and_gradients((wx, r, b, zero_state(3, 2, 5)), implementation=form)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(got))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (wx, r, b))
        want = slstm(*wide, implementation="recurrent")
    assert relative_error(got[0][0], want) <= tolerance(jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes_stay_within_their_bounds(dtype):
    wx, r, b, state = inputs(seed=18, seq=40, dim=8, scale=0.7, dtype=jnp.float32)
    wx = wx.astype(dtype)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (wx, r, b, state))
        want = jax.tree.leaves(value_and_gradients(wide, implementation="recurrent"))
        out = slstm(*wide[:3], state=wide[3], return_state=True)
        weights = cotangents(out)
    got_out, pull = jax.vjp(lambda *a: slstm(*a[:3], state=a[3], return_state=True), wx, r, b, state)
    got = (got_out, pull(jax.tree.map(lambda w, x: w.astype(x.dtype), weights, got_out)))
    assert got_out[0].dtype == dtype
    assert all(x.dtype == jnp.float32 for x in got_out[1])
    assert [g.dtype for g in got[1][:3]] == [dtype, jnp.float32, jnp.float32]
    for value, truth in zip(jax.tree.leaves(got), want, strict=True):
        assert relative_error(value, truth) <= tolerance(dtype, 40)


@pytest.mark.parametrize("form", implementations())
def test_the_gradient_of_narrow_recurrent_weights_is_summed_in_float32(form):
    wx, r, b, state = inputs(seed=22, seq=60, dim=8, scale=0.7, dtype=jnp.float32)
    wx, r = wx.astype(jnp.bfloat16), r.astype(jnp.bfloat16)

    def gradient(wx, r, b, state, form):
        return jax.grad(lambda r: jnp.sum(slstm(wx, r, b, state=state, implementation=form), dtype=b.dtype))(r)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (wx, r, b, state))
        want = gradient(*wide, "recurrent")
    assert relative_error(gradient(wx, r, b, state, form), want) <= tolerance(jnp.bfloat16)


def test_gradients_cut_from_the_recurrence_still_teach_r(x64):
    arguments = inputs(seed=19)
    _, (_, dr, _, dstate) = value_and_gradients(arguments, gradient_recurrent_cut=True)
    assert float(jnp.abs(dr).max()) > 0
    assert not np.any(dstate.y)


def test_what_stands_in_padding_reaches_no_gradient_of_a_step():
    wx, r, b, state = inputs(dtype=jnp.float32)
    mask = jnp.array([True, False, True])

    @jax.jit
    def gradients(wx, state):
        def loss(wx, r, state):
            y, after = slstm_step(state, wx, r, b, mask=mask)
            return jnp.sum(y**2) + sum(jnp.sum(x**2) for x in after)

        return jax.grad(loss, argnums=(0, 1, 2))(wx, r, state)

    poisoned = wx[:, 0].at[1].set(jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, gradients(poisoned, state), gradients(wx[:, 0], state))


def test_bad_input_is_named():
    wx, r, b, state = inputs(dtype=jnp.float32)
    for arguments, options, words in (
        ((wx[:, :, :3], r, b), {}, r"wx has shape .* gates in the order i, f, z, o"),
        ((wx, r[:, :1], b), {}, "r has shape"),
        ((wx, r, b[:3]), {}, "b has shape"),
        ((wx, r, b), {"state": state._replace(n=state.n[:1])}, "state.n has shape"),
        ((wx, r, b), {"mask": jnp.ones((3, 8), bool)}, "mask has shape"),
        ((wx, r, b), {"reset": jnp.ones((3, 9), jnp.int32)}, "reset has shape .* boolean"),
        (
            (wx, r, b),
            {"implementation": "cuda"},
            "implementation is 'cuda', but must be None or one of",
        ),
        ((wx, r, b), {"unroll": 0}, "unroll is 0"),
        ((wx, r, b), {"unroll": 1.5}, "unroll is 1.5"),
        ((wx, r, b), {"forward_clipval": -1.0}, "forward_clipval is -1.0"),
        ((wx, r, b), {"implementation": ""}, "implementation is ''"),
        ((wx, r, b), {"product_dtype": "int32"}, "product_dtype is 'int32'"),
        ((wx.astype(jnp.int32), r, b), {}, "wx has dtype int32"),
        ((wx, r, b.astype(jnp.int32)), {}, "b has dtype int32"),
        ((wx, r, b), {"state": state._replace(m=state.m > 0)}, "state.m has dtype bool"),
    ):
        with pytest.raises(ValueError, match=words):
            slstm(*arguments, **options)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 2\)"):
        slstm_step(state, wx[:, 0], r, b, mask=jnp.ones((3, 2), bool))
    with pytest.raises(TypeError, match="r is of type NoneType"):
        slstm(wx, None, b)


def test_a_sequence_of_no_tokens_hands_the_state_on():
    wx, r, b, state = inputs(seq=0, dtype=jnp.float32)
    y, final = slstm(wx, r, b, state=state, return_state=True)
    assert y.shape == (3, 0, 2, 5)
    jax.tree.map(np.testing.assert_array_equal, final, state)


def test_pick_says_why():
    name, reason = pick_implementation()
    assert name in implementations()
    assert "device" in reason
