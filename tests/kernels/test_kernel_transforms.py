"""The cells under the transformations of JAX, on meshes, and at the ends of their ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.kernels.cross_entropy import cross_entropy
from xlstm_jax.kernels.mlstm import implementations as mlstm_forms
from xlstm_jax.kernels.mlstm import mlstm, mlstm_step
from xlstm_jax.kernels.mlstm import zero_state as mlstm_zero
from xlstm_jax.kernels.slstm import implementations as slstm_forms
from xlstm_jax.kernels.slstm import slstm, slstm_step
from xlstm_jax.kernels.slstm import zero_state as slstm_zero

FORMS = [("mlstm", name) for name in mlstm_forms()] + [("slstm", name) for name in slstm_forms()]
BATCH, SEQ, HEADS, DIM = 2, 6, 2, 4


def arguments(cell, batch=BATCH, heads=HEADS):
    """Inputs in float32: q, k, v, i, f or wx, r, b."""
    rng, tokens, head = np.random.default_rng(0), (batch, SEQ), (heads, DIM)
    shapes = [(*tokens, *head)] * 3 + [(*tokens, heads)] * 2
    if cell == "slstm":
        shapes = [(*tokens, 4, *head), (4, heads, DIM, DIM), (4, heads, DIM)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def call(cell, form, *inputs, **options):
    """(outputs, state) of one call; the mLSTM in chunks of four."""
    if cell == "mlstm":
        options["chunk_size"] = 4
    function = mlstm if cell == "mlstm" else slstm
    return function(*inputs, implementation=form, return_state=True, **options)


def summed(out):
    return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(out))


def value_and_gradients(function, inputs):
    return jax.jit(jax.value_and_grad(lambda *x: summed(function(*x)), argnums=tuple(range(len(inputs)))))(*inputs)


def assert_close(got, want):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert relative_error(x, y) <= tolerance(jnp.float32)


@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_a_cell_runs_and_learns_in_shard_map_and_on_explicit_meshes(cell, form):
    inputs, zero = arguments(cell), mlstm_zero if cell == "mlstm" else slstm_zero
    sizes = (DIM, DIM) if cell == "mlstm" else (DIM,)
    parts = [P("b")] * 5 if cell == "mlstm" else [P("b"), P(), P()]

    def function(*inputs):
        batch = inputs[0].shape[0]
        mask = jnp.arange(SEQ)[None] < jnp.full((batch, 1), SEQ - 1)
        state = zero(batch, HEADS, *sizes) if form == "recurrent" else None
        return call(cell, form, *inputs, mask=mask, state=state)

    want = value_and_gradients(function, inputs)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((1,), ("b",), axis_types=(kind,))
        placed = [jax.device_put(x, NamedSharding(mesh, part)) for x, part in zip(inputs, parts, strict=True)]
        mapped = jax.shard_map(function, mesh=mesh, in_specs=tuple(parts), out_specs=P("b"))
        with jax.set_mesh(mesh):
            assert_close(value_and_gradients(mapped, placed), want)
            assert_close(value_and_gradients(function, placed), want)


def test_results_lie_on_an_explicit_mesh_as_the_inputs_do():
    mesh = jax.make_mesh((1, 1), ("b", "h"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        wide, thin = NamedSharding(mesh, P("b", None, "h")), NamedSharding(mesh, P("b", None, "h"))
        q, k, v, i, f = (jax.device_put(x, wide if x.ndim == 4 else thin) for x in arguments("mlstm"))
        h, state = jax.eval_shape(lambda *x: mlstm(*x, return_state=True), q, k, v, i, f)
        assert h.sharding.spec == P("b", None, "h", None)
        assert state.n.sharding.spec == P("b", "h", None)
        one = jax.eval_shape(lambda s, *x: mlstm(*x, state=s), state, *(x[:, :1] for x in (q, k, v, i, f)))
        assert one.sharding.spec == P("b", None, "h", None)
        h, state = jax.eval_shape(mlstm_step, state, *(x[:, 0] for x in (q, k, v, i, f)))
        assert h.sharding.spec == P("b", "h", None)
        wx, r, b = arguments("slstm")
        wx = jax.device_put(wx, NamedSharding(mesh, P("b", None, None, "h")))
        y, state = jax.eval_shape(lambda *x: slstm(*x, return_state=True), wx, r, b)
        assert y.sharding.spec == P("b", None, "h", None)
        y, state = jax.eval_shape(slstm_step, state, wx[:, 0], r, b)
        assert y.sharding.spec == state.c.sharding.spec == P("b", "h", None)


@pytest.mark.parametrize(("cell", "form"), FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_cell_leaves_a_cast_to_promotion(cell, form, dtype):
    narrow, *wide = arguments(cell)
    inputs = [narrow.astype(dtype), *wide]
    if cell == "mlstm":
        inputs[1:3] = (x.astype(dtype) for x in inputs[1:3])
    flags = jnp.ones((BATCH, SEQ), bool)
    with jax.numpy_dtype_promotion("strict"):
        gradient = jax.grad(lambda *x: summed(call(cell, form, *x, mask=flags, reset=flags)), tuple(range(len(inputs))))
        jax.eval_shape(gradient, *inputs)


@pytest.mark.parametrize(("cell", "form"), FORMS)
@pytest.mark.parametrize("empty", [{"batch": 0}, {"heads": 0}], ids=["no rows", "no heads"])
def test_of_nothing_comes_nothing(cell, form, empty):
    inputs = arguments(cell, **empty)
    value, gradients = value_and_gradients(lambda *x: call(cell, form, *x), inputs)
    assert value == 0
    assert [x.shape for x in gradients] == [x.shape for x in inputs]
    assert not any(np.any(x) for x in gradients)


def test_no_tokens_cost_nothing_and_teach_nothing():
    features, kernel = jnp.ones((0, 3, 4)), jnp.ones((4, 5))

    def loss(features, kernel):
        return cross_entropy(lambda x: x @ kernel, features, jnp.zeros((0, 3), int), jnp.ones((0, 3), bool)).nats

    value, gradients = jax.value_and_grad(loss, (0, 1))(features, kernel)
    assert value == 0
    assert not any(np.any(x) for x in gradients)


@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_a_forget_gate_of_minus_infinity_is_a_full_reset(cell, form):
    """Also where several stand side by side, of which the sum would be no number."""
    shut, forget = [2, 3], (np.s_[:, [2, 3]] if cell == "mlstm" else np.s_[:, [2, 3], 1])
    inputs, place = list(arguments(cell)), 4 if cell == "mlstm" else 0
    run = jax.jit(lambda *x: call(cell, form, *x)[0])
    gradients = jax.jit(jax.grad(lambda *x: summed(call(cell, form, *x)), tuple(range(len(inputs)))))
    results = {}
    for level in (-np.inf, -3e38, -1e30, -1e4):
        changed = [*inputs]
        changed[place] = inputs[place].at[forget].set(level)
        results[level] = run(*changed), gradients(*changed)
    for level in results:
        assert_close(results[level], results[-1e4])
    if cell == "mlstm":
        # What stands before the last of them is forgotten; the sLSTM still sees its last output.
        h = run(inputs[0], inputs[1].at[:, : shut[0]].add(1.0), *changed[2:])
        assert_close(h[:, shut[-1] :], results[-1e4][0][:, shut[-1] :])


@pytest.mark.parametrize(("cell", "form"), FORMS)
@pytest.mark.parametrize("gate", ["i", "f"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_shows_from_its_token_on_and_not_before(cell, form, gate, value):
    inputs, number = list(arguments(cell)), "if".index(gate)
    if cell == "mlstm":
        inputs[3 + number] = inputs[3 + number].at[:, 3].set(value)
    else:
        inputs[0] = inputs[0].at[:, 3, number].set(value)
    h, _ = call(cell, form, *inputs)
    finite = np.isfinite(h).all(axis=(0, 2, 3))
    # An open forget gate is a number's worth: nothing is forgotten.
    assert finite[:3].all()
    assert finite[3:].all() if (gate, value) == ("f", np.inf) else not finite[3:].any()


@pytest.mark.parametrize(("cell", "form"), [("mlstm", "recurrent"), ("mlstm", "parallel"), ("slstm", "recurrent")])
def test_forward_mode_works_where_the_documentation_says(cell, form):
    inputs = arguments(cell)

    def loss(x):
        return summed(call(cell, form, x, *inputs[1:])[0])

    _, tangent = jax.jvp(loss, inputs[:1], inputs[:1])
    assert tangent == pytest.approx(float(jnp.vdot(jax.grad(loss)(inputs[0]), inputs[0])), rel=1e-4)
