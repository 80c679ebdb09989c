"""A new kind of block takes its own file, a row in `models.kinds` and two fields in the config of the stack."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from jaxtyping import Array, Float
from small_models import ROUNDING, assert_close, model_config, tokens_of

from xlstm_jax.models.configs import SubModelConfig
from xlstm_jax.models.kinds import KINDS, Kind
from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig


@dataclass
class AverageBlockConfig(SubModelConfig):
    keep: float = 0.8
    """Share of the memory that is left at the next token."""
    embedding_dim: int = -1

    def in_stack(self, stack: Any, index: int) -> Self:
        return dataclasses.replace(self, embedding_dim=stack.embedding_dim)

    def exact(self) -> Self:
        return self

    def check_parts(self) -> None:
        pass

    def matmul_flops(self, seq: int) -> float:
        return 4 * self.embedding_dim**2


class AverageBlock(nn.Module):
    """x + xlstm(x), whose memory is a running average."""

    config: AverageBlockConfig

    def setup(self) -> None:
        self.xlstm = AverageLayer(self.config)

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int | None = None) -> Float[Array, "batch dim"]:
        return jnp.zeros((batch_size, self.config.embedding_dim))

    def __call__(self, x: Array, state: Any = None, context: Context = PLAIN) -> tuple[Array, Any]:
        y, state = self.xlstm(x, self.init_state(len(x)) if state is None else state, context)
        return x + y, state if context.keep_state else None


class AverageLayer(nn.Module):
    config: AverageBlockConfig

    @nn.compact
    def __call__(self, x: Array, state: Array, context: Context) -> tuple[Array, Array]:
        dim, shape = self.config.embedding_dim, x.shape[:2]
        values = nn.Dense(dim, use_bias=False, name="v")(x)
        starts = jnp.zeros(shape, bool) if context.document_borders is None else context.document_borders
        counts = jnp.ones(shape, bool) if context.mask is None else context.mask

        def step(memory: Array, token: Any) -> tuple[Array, Array]:
            value, start, count = token
            memory = jnp.where(start[:, None], 0, memory)
            memory = jnp.where(count[:, None], self.config.keep * memory + value, memory)
            return memory, memory

        in_time = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (values, starts, counts))
        state, memories = jax.lax.scan(step, state, in_time)
        return nn.Dense(dim, use_bias=False, name="proj_down")(jnp.swapaxes(memories, 0, 1)), state


@dataclass
class WithAverages(xLSTMLMModelConfig):
    average_block: AverageBlockConfig | None = None
    average_at: list[int] = field(default_factory=list)


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "average", Kind(AverageBlock, "running average", "AverageBlock"))


def mixed(**fields: Any) -> WithAverages:
    """mLSTM, average, average, mLSTM."""
    base = model_config(num_blocks=4, context_length=12, **fields)
    public = {f.name: getattr(base, f.name) for f in dataclasses.fields(base) if not f.name.startswith("_")}
    return WithAverages(**public, average_block=AverageBlockConfig(), average_at=[1, 2])


def test_a_mix_with_the_new_kind_trains_and_is_counted() -> None:
    model, tokens = build_model(mixed(scan_blocks=True)), tokens_of(4, 13)
    params = model.init(jax.random.key(0), tokens[:, :-1])["params"]
    optimizer = optax.adam(1e-2)

    def loss(params: Any) -> Array:
        logits = model.apply({"params": params}, tokens[:, :-1])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, Array, Any]:
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, gradient

    state, losses = optimizer.init(params), []
    for _ in range(30):
        params, state, value, gradient = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2
    stack = gradient["xlstm_block_stack"]
    assert set(stack) == {"blocks_0", "blocks_1_2", "blocks_3", "post_blocks_norm"}
    assert float(optax.tree.norm(stack["blocks_1_2"])) > 0

    leaves = jax.tree.leaves(describe(params, model.config.block_kinds), is_leaf=lambda leaf: isinstance(leaf, Leaf))
    ours = [leaf for leaf in leaves if leaf.part == "running average layers"]
    assert [leaf.axes for leaf in ours] == [("block", "heads", "embed"), ("block", "embed", "heads")]
    plain = build_model(dataclasses.replace(model.config, num_blocks=2, average_at=[]))
    assert model.param_count - plain.param_count == 2 * 2 * 16**2
    assert model.flops_per_token(12) - plain.flops_per_token(12) == 2 * 4 * 16**2


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_its_state_handed_on_equals_one_pass_and_padding_leaves_it(scan_blocks: bool) -> None:
    model, tokens = build_model(mixed(scan_blocks=scan_blocks)), tokens_of(2, 9)
    variables = model.init(jax.random.key(0), tokens)
    whole, after = model.apply(variables, tokens, return_state=True)
    first, state = model.apply(variables, tokens[:, :5], return_state=True)
    padded = jnp.pad(tokens[:, 5:], ((0, 0), (0, 3)))
    mask = jnp.broadcast_to(jnp.arange(7) < 4, (2, 7))
    second, state = model.apply(variables, padded, state=state, mask=mask, return_state=True)
    assert_close(jnp.concatenate([first, second[:, :4]], 1), whole, 2 * ROUNDING)
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert_close(found, wanted, 2 * ROUNDING)
