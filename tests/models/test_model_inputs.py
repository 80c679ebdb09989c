"""What models and their parts say of inputs that they cannot take, and under JAX's strictest settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import VOCAB, model_config

import xlstm_jax
from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import xLSTMBlockStack, xLSTMBlockStackConfig

TOKENS = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
CONFIGS = {
    "mixed": model_config("mlstm", slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(num_heads=2)), slstm_at=[1]),
    "llama": LlamaConfig(embedding_dim=16, num_blocks=1, vocab_size=VOCAB, head_dim=8, context_length=8),
    "lstm": LSTMConfig(embedding_dim=16, num_blocks=1, vocab_size=VOCAB),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    model = build_model(CONFIGS[request.param])
    return model, model.init(jax.random.key(0), TOKENS)


@pytest.mark.parametrize("token", [-100, -1, VOCAB, 2**31 - 1])
@pytest.mark.parametrize("method", ["__call__", "features"])
def test_a_token_outside_the_vocabulary_is_refused_by_place_and_number(model, token, method):
    model, variables = model
    wrong = TOKENS.at[1, 2].set(token)
    with pytest.raises(ValueError, match=rf"tokens\[1, 2\] is {token}, but the vocabulary has {VOCAB} tokens"):
        model.apply(variables, wrong, method=method)
    # As padding it may stand there.
    model.apply(variables, wrong, mask=wrong == TOKENS, method=method)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_where_tokens_have_no_values_yet_one_outside_the_vocabulary_makes_its_row_nan(model, token):
    model, variables = model
    logits = jax.jit(model.apply)(variables, TOKENS.at[1, 2].set(token))
    assert not np.isfinite(logits[1, 2:]).any()
    assert np.isfinite(logits[0]).all()


def test_what_is_no_array_of_tokens_is_named(model):
    model, variables = model
    for wrong, error, words in (
        ([[1, 2, 3]], TypeError, "tokens is of type list, but must be an array"),
        (None, TypeError, "tokens is of type NoneType"),
        ("text", TypeError, "tokens is of type str"),
        (TOKENS[0], ValueError, r"tokens has shape \(4,\)"),
        (TOKENS.astype(float), ValueError, "dtype float32, but must be integers"),
    ):
        with pytest.raises(error, match=words):
            model.apply(variables, wrong)
    with pytest.raises(TypeError, match="mask is of type list"):
        model.apply(variables, TOKENS, mask=[[True] * 4] * 2)
    np.testing.assert_array_equal(
        model.apply(variables, np.asarray(TOKENS, np.int16)), model.apply(variables, np.asarray(TOKENS, np.int64))
    )


def test_the_state_of_another_batch_or_model_is_refused(model):
    model, variables = model
    other = build_model(CONFIGS["llama" if isinstance(model, xlstm_jax.xLSTMLMModel) else "mixed"])
    for state in (model.init_state(3), other.init_state(2), 3, list(model.init_state(2))):
        with pytest.raises(ValueError, match=r"^state "):
            model.apply(variables, TOKENS, state=state)


def test_a_sequence_of_no_tokens_gives_no_logits(model):
    model, variables = model
    logits, state = model.apply(variables, TOKENS[:, :0], return_state=True)
    assert logits.shape == (2, 0, VOCAB)
    assert np.isfinite(model.apply(variables, TOKENS, state=state)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_models_train_under_strict_promotion(name, dtype):
    model = build_model(dataclasses.replace(CONFIGS[name], dtype=dtype))
    flags = jnp.ones(TOKENS.shape, bool)

    def loss(params, state):
        out = model.apply(
            {"params": params}, TOKENS, state=state, mask=flags, document_borders=flags, return_state=True
        )
        return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(out))

    with jax.numpy_dtype_promotion("strict"):
        variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        jax.eval_shape(jax.grad(loss), variables["params"], None)
        jax.eval_shape(jax.grad(loss), variables["params"], model.init_state(2))


def parts():
    stack = xLSTMBlockStackConfig(
        mlstm_block=CONFIGS["mixed"].mlstm_block,
        slstm_block=CONFIGS["mixed"].slstm_block,
        slstm_at=[1],
        num_blocks=2,
        embedding_dim=16,
        dtype="float32",
    )
    mlstm, slstm = stack.block_config(0), stack.block_config(1)
    return {
        "the stack": xLSTMBlockStack(stack),
        "the block": xlstm_jax.mLSTMBlock(mlstm),
        "the block of the sLSTM": xlstm_jax.sLSTMBlock(slstm),
        "the layer": xlstm_jax.mLSTMLayer(mlstm.layer_config()),
        "the layer of the sLSTM": xlstm_jax.sLSTMLayer(slstm.layer_config()),
    }


@pytest.mark.parametrize("part", parts())
def test_a_part_says_which_features_it_takes(part):
    module, owner = parts()[part], part.removesuffix(" of the sLSTM")
    x = jnp.ones((2, 5, 16))
    for wrong in (x[0], x[..., :12], x[..., None]):
        with pytest.raises(ValueError, match=rf"x has shape .*, but {owner} takes \(batch, seq, 16\)"):
            module.init(jax.random.key(0), wrong)
    with pytest.raises(TypeError, match="x is of type list"):
        module.init(jax.random.key(0), [[1.0]])
    with pytest.raises(ValueError, match="x has dtype complex64"):
        module.init(jax.random.key(0), x.astype(complex))
