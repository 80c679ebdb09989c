"""Small models that the tests here share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.models.xlstm_parallel.blocks.mlstm.backend import mLSTMBackendNameAndKwargs
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig

VOCAB = 31
LAYER_TYPES = ("mlstm", "mlstm_v1")


def model_config(layer_type="mlstm_v1", *, layer=None, cell=None, feedforward=True, add_post_norm=False, **model):
    """A two-block float32 config; `layer`, `cell` and `feedforward` are dicts of fields to set."""
    if feedforward is True:
        feedforward = {"proj_factor": 1.5, "act_fn": "swish", "round_proj_up_to_multiple_of": 8}
    cell_config = mLSTMCellConfig(**(cell or {}))
    options = {"num_heads": 2, "round_proj_up_to_multiple_of": 8, "layer_type": layer_type} | (layer or {})
    block = mLSTMBlockConfig(
        mlstm=mLSTMLayerConfig(mlstm_cell=cell_config, **options),
        feedforward=FeedForwardConfig(**feedforward) if feedforward else None,
        add_post_norm=add_post_norm,
    )
    fields = {"vocab_size": VOCAB, "num_blocks": 2, "embedding_dim": 16, "dtype": "float32"} | model
    return xLSTMLMModelConfig(mlstm_block=block, **fields)


def backend(name, **kwargs):
    return mLSTMBackendNameAndKwargs(name, kwargs)


def tokens_of(batch, seq, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, seq), 0, VOCAB)


def random_like(shapes, seed=1):
    """Parameters of these shapes in which nothing is zero or one by chance, so that every one of them matters."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        last = path[-1].key
        centre = 1.0 if last in ("scale", "learnable_skip") else 2.0 if "fgate" in str(path) and last == "bias" else 0.0
        return jnp.asarray(centre + 0.3 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def build(config):
    """The model and random parameters, without compiling the initialisation."""
    model = xLSTMLMModel(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, random_like(shapes)


ROUNDING = 4 * float(jnp.finfo("float32").eps)
"""A tolerance of `assert_close` for what is computed in a few operations of float32."""


def assert_close(value, truth, tolerance=1e-5):
    """Norm of the error within `tolerance` of the norm of the truth."""
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    assert value.shape == truth.shape
    error = np.linalg.norm(value - truth)
    assert error <= tolerance * np.linalg.norm(truth) + 1e-30, error / np.linalg.norm(truth)


def assert_trees_close(tree, truth, tolerance):
    """All leaves as one vector: a leaf that cancels to almost nothing has no digits of its own in float32."""
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, truth)
    assert_close(*(np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (tree, truth)), tolerance)
