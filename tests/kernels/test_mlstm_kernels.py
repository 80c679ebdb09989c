"""Every form of the mLSTM against the sequential oracle in float64: outputs, final state and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from mlstm_cases import NAMES, PROBLEMS, Case, errors, make_case

from xlstm_jax.kernels.closeness import bounds, relative_error, tolerance
from xlstm_jax.kernels.mlstm import (
    MLSTMState,
    implementations,
    mlstm,
    mlstm_step,
    pick_implementation,
    zero_state,
)

FAST_FORMS = {"parallel": {}, "chunkwise": {"chunk_size": 8}, "batched": {"chunk_size": 8}}


def assert_close(got: dict, truth: dict, case: Case, limits: dict[str, float] | float) -> None:
    found = errors(got, truth, case.magnitudes())
    allowed = limits if isinstance(limits, dict) else dict.fromkeys(NAMES, limits)
    wrong = {name: f"{found[name]:.1e} > {allowed[name]:.1e}" for name in NAMES if not found[name] <= allowed[name]}
    assert not wrong, wrong


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_fast_forms_equal_the_oracle_in_float64(problem):
    case = make_case(**PROBLEMS[problem])
    truth = case.run("recurrent")
    for form, options in FAST_FORMS.items():
        assert_close(case.run(form, **options), truth, case, tolerance(jnp.float64))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "problem", ["37 tokens, three chunks", "gates around ±100", "input bias -10", "gates all at -100", "resets"]
)
def test_float32_stays_within_the_bound_of_the_dtype(problem):
    case = make_case(**{**PROBLEMS[problem], "seq": 157, "dim_qk": 16, "dim_v": 24}).rounded(jnp.float32)
    truth = case.run("recurrent")
    for form in ("chunkwise", "batched", "recurrent"):
        assert_close(case.run(form, jnp.float32), truth, case, tolerance(jnp.float32))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("problem", ["37 tokens, three chunks", "input bias -10", "resets and padding", "sigmoid gate"])
def test_bfloat16_inputs_cost_only_their_own_rounding(problem):
    case = make_case(**{**PROBLEMS[problem], "seq": 157, "dim_qk": 16, "dim_v": 24}).rounded(jnp.bfloat16)
    limits = bounds("mlstm", jnp.bfloat16)
    assert limits["h"] <= 4e-3
    assert max(limits.values()) <= 1e-2
    truth = case.run("recurrent")
    for form in ("chunkwise", "batched"):
        assert_close(case.run(form, jnp.bfloat16), truth, case, limits)


@pytest.mark.usefixtures("x64")
def test_float32_error_does_not_grow_with_what_a_shut_forget_gate_left_behind():
    case = make_case(seq=64, batch=1, dim_qk=8, dim_v=8, forget_bias=3.0)
    case.arrays["f"][:, :20] = -1e4
    truth = case.run("recurrent")
    for form in ("chunkwise", "batched"):
        got = case.run(form, jnp.float32, chunk_size=64)
        assert relative_error(got["h"], truth["h"]) < tolerance(jnp.float32)
        assert relative_error(got["C"], truth["C"]) < tolerance(jnp.float32)


def run_in_pieces(case: Case, cuts: list[int], form: str, **options) -> tuple:
    a = {name: jnp.asarray(x) for name, x in case.arrays.items()}
    state = MLSTMState(a["C"], a["n"], a["m"])
    out = []
    for start, stop in zip([0, *cuts], [*cuts, a["q"].shape[1]], strict=True):
        piece = [a[name][:, start:stop] for name in "qkvif"]
        extra = {k: None if v is None else v[:, start:stop] for k, v in (("reset", case.reset), ("mask", case.mask))}
        h, state = mlstm(*piece, state=state, return_state=True, implementation=form, **extra, **options)
        out.append(h)
    return jnp.concatenate(out, axis=1), state


@pytest.mark.usefixtures("x64")
@settings(deadline=None, max_examples=3, derandomize=True)
@given(cuts=st.lists(st.integers(0, 11), max_size=2).map(sorted), seed=st.integers(0, 99))
def test_state_handed_on_equals_one_pass(cuts, seed):
    case = make_case(seed=seed, seq=11, resets=0.1, padding=0.1)
    truth = case.run("recurrent")
    h, state = run_in_pieces(case, cuts, "chunkwise", chunk_size=4)
    for name, value in zip(("h", "C", "n", "m"), (h, *state), strict=True):
        assert relative_error(value, truth[name]) < tolerance(jnp.float64), name


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["chunkwise", "batched"])
def test_gradients_flow_through_states_handed_on(form):
    case = make_case(seq=14)
    dh, *dstate = (jnp.asarray(c) for c in case.cotangents)
    inputs = tuple(jnp.asarray(case.arrays[name]) for name in ("q", "k", "v", "i", "f", "C", "n", "m"))

    def loss(*inputs):
        pieces = Case(dict(zip(("q", "k", "v", "i", "f", "C", "n", "m"), inputs, strict=True)), [], None, None, {})
        h, state = run_in_pieces(pieces, [3, 10], form, chunk_size=4)
        return jnp.sum(h * dh) + sum(jnp.sum(x * d) for x, d in zip(state, dstate, strict=True))

    got = jax.jit(jax.grad(loss, argnums=tuple(range(8))))(*inputs)
    truth = case.run("recurrent")
    for name, value in zip(NAMES[4:], got, strict=True):
        assert relative_error(value, truth[name], case.magnitudes().get(name)) < tolerance(jnp.float64), name


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"gate": "sigmoid"}, {"gate": "sigmoid", "normalize": False}])
def test_a_step_is_a_piece_of_length_one(options):
    case = make_case(seq=6, resets=0.3, padding=0.3, **options)
    a = {name: jnp.asarray(x) for name, x in case.arrays.items()}
    state = MLSTMState(a["C"], a["n"], a["m"])
    h, final = mlstm(
        *(a[n] for n in "qkvif"), state=state, return_state=True, reset=case.reset, mask=case.mask, **options
    )
    for t in range(6):
        h_t, state = mlstm_step(
            state, *(a[n][:, t] for n in "qkvif"), reset=case.reset[:, t], mask=case.mask[:, t], **options
        )
        assert relative_error(h_t, h[:, t]) < tolerance(jnp.float64)
    for got, want in zip(state, final, strict=True):
        assert relative_error(got, want) < tolerance(jnp.float64)


@pytest.mark.parametrize("form", implementations())
def test_a_row_does_not_depend_on_its_neighbours(form):
    case = make_case(seq=21, batch=3, resets=0.1, padding=0.1)
    first = case.run(form, jnp.float32)
    for array in case.arrays.values():
        array[1:] = array[1:] * 3 + 7
    second = case.run(form, jnp.float32)
    for name in NAMES:
        np.testing.assert_array_equal(first[name][0], second[name][0], err_msg=name)


@pytest.mark.parametrize("form", implementations())
def test_a_reset_leaks_nothing_even_from_infinite_memory(form):
    case = make_case(seq=12)
    reset = np.zeros((2, 12), bool)
    reset[:, 7] = True
    alone = [jnp.asarray(case.arrays[n][:, 7:], jnp.float32) for n in "qkvif"]
    whole = [jnp.asarray(case.arrays[n], jnp.float32) for n in "qkvif"]
    whole[2] = whole[2].at[:, :7].mul(1e30)
    h, state = mlstm(*whole, reset=reset, return_state=True, implementation=form)
    h_alone, state_alone = mlstm(*alone, return_state=True, implementation=form)
    assert relative_error(h[:, 7:], h_alone) < tolerance(jnp.float32)
    for got, want in zip(state, state_alone, strict=True):
        assert relative_error(got, want) < tolerance(jnp.float32)


@pytest.mark.parametrize("form", implementations())
def test_masked_tokens_leave_the_state_bit_for_bit(form):
    case = make_case(seq=9)
    a = {name: jnp.asarray(x, jnp.float32) for name, x in case.arrays.items()}
    state = MLSTMState(a["C"], a["n"], a["m"])
    h, after = mlstm(
        *(a[n] for n in "qkvif"), state=state, mask=np.zeros((2, 9), bool), return_state=True, implementation=form
    )
    assert not np.any(np.asarray(h))
    for before, now in zip(state, after, strict=True):
        np.testing.assert_array_equal(before, now)


@pytest.mark.parametrize("form", implementations())
def test_what_stands_in_padding_reaches_neither_outputs_nor_gradients(form):
    case = make_case(seq=7, batch=1, heads=1, dim_qk=2, dim_v=2)
    mask = np.array([[True, True, False, False, True, True, False]])
    clean = [jnp.asarray(case.arrays[n], jnp.float32) for n in "qkvif"]
    poisoned = [jnp.where(mask.reshape(1, 7, *(1,) * (x.ndim - 2)), x, jnp.nan) for x in clean]

    @jax.jit
    def loss_and_gradients(*inputs):
        def loss(*inputs):
            h, state = mlstm(*inputs, mask=mask, return_state=True, implementation=form, chunk_size=4)
            return jnp.sum(h**2) + sum(jnp.sum(x**2) for x in state)

        return jax.value_and_grad(loss, argnums=tuple(range(5)))(*inputs)

    for got, want in zip(
        jax.tree.leaves(loss_and_gradients(*poisoned)), jax.tree.leaves(loss_and_gradients(*clean)), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def memory_of_gradient(seq: int) -> int:
    shapes = [(1, seq, 2, 32), (1, seq, 2, 32), (1, seq, 2, 32), (1, seq, 2), (1, seq, 2)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.jit(jax.grad(lambda *x: mlstm(*x, chunk_size=64).sum(), argnums=tuple(range(5))))
    return gradient.lower(*inputs).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("over", [0, 1], ids=["whole chunks", "one token over"])
def test_memory_is_one_state_a_chunk_and_nothing_quadratic(over):
    short, long = 2048 + over, 8192 + over
    inputs = 4 * 2 * (3 * 32 + 2)  # bytes of q, k, v, i, f per token
    states = 4 * 2 * (32 * 32 + 32) / 64
    growth = (memory_of_gradient(long) - memory_of_gradient(short)) / (long - short)
    assert growth < states + 2 * inputs


def test_bfloat16_inputs_are_nowhere_made_float32_as_a_whole():
    """XLA on a CPU does so for a slice of bfloat16 in a loop, once for every chunk where the slice is an update."""
    narrow, gates = (jax.ShapeDtypeStruct((1, 1024, 2, *size), d) for size, d in (((32,), "bfloat16"), ((), "float32")))

    def gradient(q, k, v, i, f, dh):
        h, pull = jax.vjp(mlstm, q, k, v, i, f)
        return h, pull(dh)

    program = jax.jit(gradient).lower(*[narrow] * 3, gates, gates, narrow).compile().as_text()
    assert "bf16[1,1024,2,32]" in program
    assert "f32[1,1024,2,32]" not in program


def test_second_derivatives_hold_in_bfloat16_too():
    case = make_case(seq=7, batch=1, heads=1, dim_qk=2, dim_v=2, resets=0.2, padding=0.2).rounded(jnp.bfloat16)

    def second(dtype, **options):
        inputs = [jnp.asarray(case.arrays[n], dtype if n in "qkv" else jnp.float32) for n in "qkvif"]

        def norm_of_gradient(*inputs):
            def loss(*inputs):
                return jnp.sum(mlstm(*inputs, mask=case.mask, reset=case.reset, **options).astype(jnp.float32) ** 2)

            gradient = jax.grad(loss, argnums=tuple(range(5)))(*inputs)
            return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in gradient)

        return jax.jit(jax.grad(norm_of_gradient, argnums=tuple(range(5))))(*inputs)

    truth = second(jnp.float32, implementation="recurrent")
    for dtype, allowed in ((jnp.float32, tolerance(jnp.float32)), (jnp.bfloat16, 2e-2)):
        for got, want in zip(second(dtype, chunk_size=3), truth, strict=True):
            assert relative_error(got, want) < allowed


def test_program_size_does_not_grow_with_the_sequence():
    def program(seq: int) -> int:
        shapes = [(1, seq, 2, 8)] * 3 + [(1, seq, 2)] * 2
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        gradient = jax.jit(jax.grad(lambda *x: mlstm(*x).sum(), argnums=tuple(range(5))))
        return len(gradient.lower(*inputs).as_text().splitlines())

    assert program(8192) < 1.05 * program(256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "chunkwize"}, "implementation is 'chunkwize'"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"gate": "relu"}, "gate is 'relu'"),
        ({"normalize": False}, "only defined with its normaliser"),
        ({"reset": np.zeros((2, 4), bool)}, r"reset has shape \(2, 4\)"),
        ({"mask": np.zeros((2, 5), np.int32)}, "mask has shape .* boolean"),
        ({"implementation": ""}, "implementation is ''"),
        ({"chunk_size": "64"}, "chunk_size is '64'"),
        ({"chunk_size": 6.5}, "chunk_size is 6.5"),
        ({"chunk_size": -1, "implementation": "parallel"}, "chunk_size is -1"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"mask": [[True] * 5] * 2}, "mask is of type list"),
        ({"state": (np.zeros(1), np.zeros(1))}, "state is of type tuple, but must be MLSTMState"),
        ({"q": np.ones((2, 5, 2, 4), np.int32)}, "q has dtype int32"),
        ({"v": np.ones((2, 5, 2, 6), np.int32)}, "v has dtype int32"),
        ({"f": np.ones((2, 5, 2), bool)}, "f has dtype bool"),
        ({"i": None}, "i is of type NoneType"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, message):
    case = make_case(seq=5)
    arguments = {n: jnp.asarray(case.arrays[n], jnp.float32) for n in "qkvif"}
    with pytest.raises((TypeError, ValueError), match=message):
        mlstm(**arguments | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reset": np.zeros((2, 1), bool)}, r"reset has shape \(2, 1\)"),
        ({"mask": np.ones(2, np.int32)}, "mask has shape .* boolean"),
        ({"k": np.ones((2, 2, 4), np.int32)}, "k has dtype int32"),
    ],
)
def test_a_step_refuses_the_same_by_name(change, message):
    case = make_case(seq=1)
    arguments = {n: jnp.asarray(case.arrays[n][:, 0], jnp.float32) for n in "qkvif"}
    with pytest.raises(ValueError, match=message):
        mlstm_step(zero_state(2, 2, 4, 6), **arguments | change)


def test_shapes_that_do_not_fit_are_named():
    case = make_case(seq=5)
    q, k, v, i, f = (jnp.asarray(case.arrays[n], jnp.float32) for n in "qkvif")
    with pytest.raises(ValueError, match="k has shape"):
        mlstm(q, k[:, :3], v, i, f)
    state = MLSTMState(jnp.zeros((2, 2, 4, 5)), jnp.zeros((2, 2, 4)), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"state\.C has shape"):
        mlstm(q, k, v, i, f, state=state)


@pytest.mark.parametrize(("device", "picked"), [("cpu", "chunkwise"), ("gpu", "batched"), ("tpu", "batched")])
def test_the_device_decides_how_chunks_are_taken(monkeypatch, device, picked):
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    name, reason = pick_implementation()
    assert name == picked
    assert name in implementations()
    assert reason


def test_what_chunks_add_to_a_state_is_all_that_a_loop_holds_where_they_are_taken_at_once():
    """A loop of one multiply-add: no product stands in it."""
    shapes = [(1, 64, 2, 8), (1, 64, 2, 8), (1, 64, 2, 8), (1, 64, 2), (1, 64, 2)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def products_in_loops(form):
        gradient = jax.grad(lambda *x: mlstm(*x, implementation=form, chunk_size=16).sum(), argnums=tuple(range(5)))
        loops = [e for e in all_equations(jax.make_jaxpr(gradient)(*inputs).jaxpr) if e.primitive.name == "scan"]
        inside = [e for loop in loops for e in all_equations(loop.params["jaxpr"].jaxpr)]
        return sum(e.primitive.name == "dot_general" for e in inside)

    assert products_in_loops("chunkwise") > 0
    assert products_in_loops("batched") == 0


def all_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from all_equations(inner)
