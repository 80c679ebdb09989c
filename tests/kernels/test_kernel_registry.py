"""The table of implementations: the best that is supported is taken, and what is not says why."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xlstm_jax.kernels
from xlstm_jax.kernels.mlstm import MLSTMState, mlstm, mlstm_step
from xlstm_jax.kernels.mlstm import api as mlstm_api
from xlstm_jax.kernels.mlstm.recurrent import recurrent, step
from xlstm_jax.kernels.registry import Device, Implementation, UnsupportedError, choose, table
from xlstm_jax.kernels.slstm import SLSTMState, slstm, slstm_step
from xlstm_jax.kernels.slstm import api as slstm_api

CPU, GPU = Device("cpu", "cpu"), Device("gpu", "NVIDIA H100 80GB HBM3")


def small_heads_only(shapes, dtype, device):
    if device.platform != "gpu":
        return f"it is written for GPUs, and this is a {device.platform}"
    if dtype != jnp.bfloat16:
        return f"it takes bfloat16, not {jnp.dtype(dtype).name}"
    too_large = shapes.get("q", (0,))[-1] > 64
    return f"it takes heads of up to 64, not of {shapes['q'][-1]}" if too_large else None


TOY = Implementation("toy", recurrent, supported=small_heads_only, best=lambda device: "it is fast")
FORMS = {"toy": TOY} | mlstm_api.FORMS


@pytest.mark.parametrize(
    ("device", "dtype", "heads", "picked"),
    [
        (GPU, jnp.bfloat16, 64, "toy"),
        (GPU, jnp.bfloat16, 128, "batched"),
        (GPU, jnp.float32, 64, "batched"),
        (CPU, jnp.bfloat16, 64, "chunkwise"),
    ],
)
def test_none_takes_the_best_that_is_supported_and_says_why(device, dtype, heads, picked):
    choice = choose(FORMS, None, {"q": (1, 8, 2, heads)}, dtype, device=device)
    assert choice.implementation.name == picked
    assert choice.reason == (FORMS[picked].best(device))


@pytest.mark.parametrize(
    ("device", "dtype", "heads", "why"),
    [
        (CPU, jnp.bfloat16, 64, "it is written for GPUs, and this is a cpu"),
        (GPU, jnp.float32, 64, "it takes bfloat16, not float32"),
        (GPU, jnp.bfloat16, 128, "it takes heads of up to 64, not of 128"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_its_reason(device, dtype, heads, why):
    with pytest.raises(UnsupportedError, match=f"implementation is 'toy', which cannot run here: {why}"):
        choose(FORMS, "toy", {"q": (1, 8, 2, heads)}, dtype, device=device)


def test_where_nothing_is_supported_that_is_said():
    with pytest.raises(UnsupportedError, match="none of toy can run on this cpu"):
        choose(table(TOY), None, {}, jnp.float32, device=CPU)


def test_a_form_without_a_step_leaves_one_token_to_the_best_that_has_one():
    assert choose(FORMS, "batched", {}, jnp.float32, step=True, device=CPU).implementation.step is step
    assert choose(FORMS, None, {}, jnp.float32, step=True, device=CPU).implementation.step is step


def test_the_cell_refuses_what_the_table_refuses(monkeypatch):
    monkeypatch.setitem(mlstm_api.FORMS, "toy", TOY)
    q, gate = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2))
    with pytest.raises(UnsupportedError, match="it is written for GPUs"):
        mlstm(q, q, q, gate, gate, implementation="toy")
    with pytest.raises(UnsupportedError, match="it is written for GPUs"):
        mlstm_step(MLSTMState(jnp.ones((1, 2, 4, 4)), q[:, 0], gate[:, 0]), *[q[:, 0]] * 3, *[gate[:, 0]] * 2, implementation="toy")  # fmt: skip  # noqa: E501


def test_names_are_those_of_files_and_functions():
    for cell, api in (("mlstm", mlstm_api), ("slstm", slstm_api)):
        for name, form in api.FORMS.items():
            assert (form.name, form.run.__name__) == (name, name)
            assert form.run.__module__ == f"xlstm_jax.kernels.{cell}.{name}"


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def mlstm_problem(seq, dtype=jnp.float32):
    q, k, v = (normal((2, seq, 2, 4), dtype, seed) for seed in (1, 2, 3))
    i, f = normal((2, seq, 2), seed=4), normal((2, seq, 2), seed=5)
    return (q, k, v, i, f), MLSTMState(normal((2, 2, 4, 4)), normal((2, 2, 4)), normal((2, 2)))


def slstm_problem(seq, dtype=jnp.float32):
    wx, r, b = normal((2, seq, 4, 2, 4), dtype), normal((4, 2, 4, 4), dtype), normal((4, 2, 4))
    return (wx, r, b), SLSTMState(*(1 + abs(normal((2, 2, 4), seed=s)) for s in range(4)))


FLAGS = {"reset": np.array([[True], [False]]), "mask": np.array([[True], [False]])}


@pytest.mark.parametrize("flags", [{}, FLAGS], ids=["plain", "flagged"])
@pytest.mark.parametrize("form", [None, *mlstm_api.FORMS])
def test_one_token_that_meets_a_state_is_a_step_bit_for_bit(form, flags):
    inputs, state = mlstm_problem(1)
    h, after = mlstm(*inputs, state=state, return_state=True, implementation=form, **flags)
    h_step, after_step = mlstm_step(state, *(x[:, 0] for x in inputs), **{n: x[:, 0] for n, x in flags.items()})
    jax.tree.map(np.testing.assert_array_equal, (h[:, 0], after), (h_step, after_step))


@pytest.mark.parametrize("flags", [{}, FLAGS], ids=["plain", "flagged"])
@pytest.mark.parametrize("form", [None, *slstm_api.FORMS])
def test_one_token_of_the_scalar_memory_is_a_step_bit_for_bit(form, flags):
    (wx, r, b), state = slstm_problem(1)
    y, after = slstm(wx, r, b, state=state, return_state=True, implementation=form, **flags)
    y_step, after_step = slstm_step(state, wx[:, 0], r, b, **{n: x[:, 0] for n, x in flags.items()})
    jax.tree.map(np.testing.assert_array_equal, (y[:, 0], after), (y_step, after_step))


def traced_through(function, *arguments):
    """(files of kernels/ that tracing a call enters, how many frames of ours are on top of each other at most)."""
    root, files, depth, deepest = str(Path(xlstm_jax.kernels.__file__).parent), set(), 0, 0

    def watch(frame, event, _):
        nonlocal depth, deepest
        if frame.f_code.co_filename.startswith(root):
            depth += {"call": 1, "return": -1}.get(event, 0)
            deepest = max(deepest, depth)
            files.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        jax.eval_shape(function, *arguments)
    finally:
        sys.setprofile(before)
    return files, deepest


def test_a_forward_pass_is_few_files_and_few_calls_deep():
    inputs, _ = mlstm_problem(70)
    files, deepest = traced_through(mlstm, *inputs)
    assert len(files) <= 6, sorted(files)
    assert deepest <= 8


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", mlstm_api.FORMS)
def test_no_dtype_is_promoted_without_a_word(form, dtype):
    inputs, state = mlstm_problem(11, dtype)
    reset, mask = np.arange(11) % 5 == 0, np.arange(11) % 4 > 0
    for flags in ({}, {"reset": np.stack([reset] * 2), "mask": np.stack([mask] * 2)}):
        for gate in ({}, {"gate": "sigmoid"}, {"gate": "sigmoid", "normalize": False}):
            options = flags | gate | {"implementation": form, "return_state": True, "chunk_size": 4}
            trace_gradients(lambda *x, o=options: mlstm(*x[:5], state=x[5], **o), *inputs, state)
    token, step_flags = [x[:, 0] for x in inputs], {"reset": reset[:2], "mask": mask[:2]}
    trace_gradients(lambda state, *x: mlstm_step(state, *x, **step_flags), state, *token)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", slstm_api.FORMS)
def test_no_dtype_of_the_scalar_memory_is_promoted_without_a_word(form, dtype):
    (wx, r, b), state = slstm_problem(11, dtype)
    reset, mask = np.arange(11) % 5 == 0, np.arange(11) % 4 > 0
    clips = {"gradient_recurrent_clipval": 0.5, "forward_clipval": 0.5}
    for flags in ({}, {"reset": np.stack([reset] * 2), "mask": np.stack([mask] * 2)}):
        for more in ({}, {"gradient_recurrent_cut": True}, clips):
            options = flags | more | {"implementation": form, "return_state": True}
            trace_gradients(lambda *x, o=options: slstm(*x[:3], state=x[3], **o), wx, r, b, state)
    step_flags = {"reset": reset[:2], "mask": mask[:2]}
    trace_gradients(lambda state, *x: slstm_step(state, *x, **step_flags), state, wx[:, 0], r, b)


def trace_gradients(function, *arguments):
    """Outputs and all gradients, traced where JAX promotes nothing by itself."""

    def both(*arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(out)

    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(both, *arguments)
