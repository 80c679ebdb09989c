"""The cells, the convolution and attention with batch, heads and sequence on several devices, against one device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.distributed import kernels
from xlstm_jax.distributed.mesh import axes_of, current, make_mesh, sizes_of, with_mesh
from xlstm_jax.kernels.mlstm import MLSTMState, mlstm
from xlstm_jax.kernels.slstm import SLSTMState, slstm
from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.shared.context import Context
from xlstm_jax.models.xlstm_parallel.components.conv import CausalConv1d, CausalConv1dConfig

BATCH, SEQ, HEADS, DIM = 4, 24, 4, 3
ROUNDING = 4096 * float(np.finfo(np.float64).eps)
"""Of sums in another order, through gates that weigh some of their terms a thousand times."""


def flags(rng):
    """Borders and padding, with a row that is all padding, and slices of others that are."""
    reset, mask = rng.random((BATCH, SEQ)) < 0.15, rng.random((BATCH, SEQ)) < 0.7
    mask[1], mask[2, 6:18], mask[3] = False, False, True
    reset[0, :12], reset[3] = False, False
    return jnp.asarray(reset), jnp.asarray(mask)


def arrays(rng, *shapes):
    return tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes)


def with_gradients(function, *inputs):
    """Results, and the gradient of a weighted sum of all of them by each input."""

    def weighted(*inputs):
        results = function(*inputs)
        rng = np.random.default_rng(5)
        total = sum(jnp.sum(x * rng.standard_normal(x.shape)) for x in jax.tree.leaves(results))
        return total, results

    places = tuple(range(len(inputs)))
    (_, results), gradients = jax.value_and_grad(weighted, argnums=places, has_aux=True)(*inputs)
    return results, gradients


def assert_same(function, truth, words, *inputs):
    """`function` on a mesh gives what `truth` gives without one, and all gradients."""
    wanted = jax.jit(functools.partial(with_gradients, truth))(*inputs)
    with jax.set_mesh(make_mesh(with_mesh(None, words))):
        assert current() is not None
        got = jax.jit(functools.partial(with_gradients, function))(*inputs)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=ROUNDING * max(1, float(jnp.max(jnp.abs(y)))))


@pytest.mark.parametrize(("words", "gate", "flagged"), [("sp=4,tp=2", "exp", True), ("sp=8", "sigmoid", False)])
def test_an_mlstm_goes_over_the_slices_of_a_sequence(words, gate, flagged, x64):
    rng = np.random.default_rng(0)
    q, k, v, i, f = arrays(rng, *((BATCH, SEQ, HEADS, DIM),) * 3, *((BATCH, SEQ, HEADS),) * 2)
    f = f.at[3, 10].set(-jnp.inf).at[3, 5].set(jnp.inf)
    i = i.at[3, 7].set(-jnp.inf).at[3, 0].add(30)
    state = MLSTMState(*arrays(rng, (BATCH, HEADS, DIM, DIM), (BATCH, HEADS, DIM), (BATCH, HEADS)))
    reset, mask = flags(rng) if flagged else (None, None)
    options = {"reset": reset, "mask": mask, "gate": gate}
    assert_same(
        lambda *x: kernels.mlstm(*x[:5], state=x[5], implementation="chunkwise", chunk_size=4, **options),
        lambda *x: mlstm(*x[:5], state=x[5], return_state=True, implementation="recurrent", **options),
        *(words, q, k, v, i, f, state),
    )


def test_what_is_not_a_number_ends_with_the_slice_that_its_document_ends_in():
    rng = np.random.default_rng(1)
    q, k, v, i, f = arrays(rng, *((BATCH, SEQ, HEADS, DIM),) * 3, *((BATCH, SEQ, HEADS),) * 2)
    i = i.at[0, 4].set(jnp.inf)
    f = f.at[1, 4].set(jnp.nan)
    reset = jnp.zeros((BATCH, SEQ), bool).at[:, 14].set(True)
    with jax.set_mesh(make_mesh(with_mesh(None, "sp=8"))):
        h, after = jax.jit(functools.partial(kernels.mlstm, reset=reset))(q, k, v, i, f)
    broken = np.isnan(h).any(axis=(2, 3))
    assert broken[:2, 4:14].all()
    assert not broken[:, :4].any()
    assert not broken[:, 15:].any()
    assert all(jnp.isfinite(x).all() for x in after)


@pytest.mark.parametrize("words", ["sp=2,tp=2", "sp=4"])
def test_an_slstm_changes_a_slice_for_heads(words, x64):
    rng = np.random.default_rng(2)
    wx, r, b = arrays(rng, (BATCH, SEQ, 4, HEADS, DIM), (4, HEADS, DIM, DIM), (4, HEADS, DIM))
    n, *rest = arrays(rng, *((BATCH, HEADS, DIM),) * 4)
    state = SLSTMState(rest[0], rest[1], jnp.abs(n) + 1, rest[2])
    reset, mask = flags(rng)
    assert_same(
        lambda *x: kernels.slstm(*x[:3], state=x[3], reset=reset, mask=mask),
        lambda *x: slstm(*x[:3], state=x[3], return_state=True, reset=reset, mask=mask, implementation="recurrent"),
        *(words, wx, r, b, state),
    )


@pytest.mark.parametrize(("words", "mixing", "borders"), [("sp=4,tp=2", False, True), ("sp=8", True, False)])
def test_a_convolution_hands_its_window_on(words, mixing, borders, x64):
    rng = np.random.default_rng(3)
    config = CausalConv1dConfig(feature_dim=8, kernel_size=4, channel_mixing=mixing, dtype="float64")
    x, window, kernel, bias = arrays(rng, (BATCH, SEQ, 8), (BATCH, 3, 8), (4, 8 if mixing else 1, 8), (8,))
    context = Context(document_borders=flags(rng)[0] if borders else None, keep_state=True)

    def run(x, window, kernel, bias):
        return CausalConv1d(config).apply({"params": {"kernel": kernel, "bias": bias}}, x, window, context)

    assert_same(run, run, words, x, window, kernel, bias)


def test_sizes_of_a_mesh_multiply_to_the_devices():
    assert sizes_of(None, 8) == (8, 1, 1, 1)
    assert sizes_of(with_mesh(None, "fsdp=2,tp=2"), 8) == (2, 2, 1, 2)
    assert sizes_of(with_mesh(None, "sp=-1,tp=2"), 8) == (1, 1, 4, 2)
    with pytest.raises(ConfigError, match="a mesh of tp 3 needs a number of devices that 3 divides, but there are 8"):
        sizes_of(with_mesh(None, "tp=3"), 8)
    with pytest.raises(ConfigError, match="a mesh of dp 2 x fsdp 4 needs 8 devices, but there is 1 device"):
        sizes_of(with_mesh(None, "dp=2,fsdp=4"), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fdsp=2", r"no axis 'fdsp' \(did you mean 'fsdp'\?\); its axes are dp, fsdp, sp, tp"),
        ("tp", "the mesh's tp is '', but must be a whole number from 1 on"),
        ("tp=0", "the mesh's tp is '0'"),
        ("", "no axis ''"),
    ],
)
def test_words_that_make_no_mesh_are_told(words, message):
    with pytest.raises(ConfigError, match=message):
        with_mesh(None, words)


def test_names_of_axes_are_the_configs():
    parallel = ParallelConfig(model_axis_name="heads", model_axis_size=4)
    mesh = make_mesh(parallel)
    assert mesh.axis_names == ("dp", "fsdp", "sp", "heads")
    assert axes_of(mesh).lying(("batch", None, "heads"), (6, 5, 8)) == (("dp",), None, ("heads",))
    assert axes_of(mesh).lying(("batch", None, "heads"), (3, 5, 6)) == (None, None, None)
