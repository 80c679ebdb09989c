"""The stack of residual blocks: runs of equal blocks, each run scanned or a single block.

A run of one block is named `blocks_3`; one of several, which a scan goes over, `blocks_4_19`: its parameters have a
leading axis over the blocks.
"""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from xlstm_jax.models.configs import remat
from xlstm_jax.models.kinds import KINDS
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.layers import NormLayer, check_features
from xlstm_jax.models.shared.tracing import DIAGNOSTICS

_RUN = re.compile(r"blocks_(\d+)(?:_(\d+))?")


def spans(config: Any) -> tuple[range, ...]:
    """The blocks of each run: neighbours of one kind with `config.scan_blocks`, else every block by itself."""
    kinds = config.block_kinds
    if not config.scan_blocks:
        return tuple(range(i, i + 1) for i in range(len(kinds)))
    groups = [len(list(group)) for _, group in itertools.groupby(kinds)]
    ends = list(itertools.accumulate(groups))
    return tuple(range(end - size, end) for end, size in zip(ends, groups, strict=True))


def run_name(span: range) -> str:
    """The name of a run's parameters."""
    return f"blocks_{span[0]}" if len(span) == 1 else f"blocks_{span[0]}_{span[-1]}"


def span_of(name: str) -> range | None:
    """The blocks of the run of that name; None for the name of something else."""
    match = _RUN.fullmatch(name)
    return None if match is None else range(int(match[1]), int(match[2] or match[1]) + 1)


class BlockStack(nn.Module):
    """The blocks alone, of any kinds in `models.kinds`.

    Its config says `block_kinds` (a name for every block), `block_config(index)`, `scan_blocks` and `parallel`. Without
    `scan_blocks` every block is a run of its own; with it neighbours of one kind are a run, whose block is compiled
    once and scanned over.

    Parameters: one entry a run, named as in `models.layouts`. The state is a tuple with one entry a run. The batch is
    axis 0 of all its arrays; those of a run of several blocks have the block as axis 1.
    """

    config: Any

    def setup(self) -> None:
        # The keys of this dict become part of the parameters' names: blocks_0, blocks_1_3.
        self.blocks = self._create_blocks(self.config)

    @nn.nowrap
    def _create_blocks(self, config: Any) -> dict[str, nn.Module]:
        """The module of each run by what its name has behind `blocks_`.

        Raises:
            ConfigError: for a kind of block whose config is None.
        """
        kinds = config.block_kinds
        return {
            run_name(span).removeprefix("blocks_"): KINDS[kinds[span[0]]].module(config.block_config(span[0]))
            for span in spans(config)
        }

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int | None = None) -> tuple[Any, ...]:
        """The state before the first token; `capacity` is what attention has room for, in tokens."""
        cfg, states = self.config, []
        for span in spans(cfg):
            block = KINDS[cfg.block_kinds[span[0]]].module(cfg.block_config(span[0]), parent=None)
            state = block.init_state(batch_size, capacity)
            if len(span) > 1:
                state = jax.tree.map(partial(_for_each_block, len(span)), state)
            states.append(state)
        return tuple(states)

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: Any = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], tuple[Any, ...] | None]:
        """(y, state)

        Raises:
            TypeError: for an x that is no array.
            ValueError: for an x of another shape, or the state of another stack or batch.
        """
        cfg, runs = self.config, spans(self.config)
        check_features(x, cfg.embedding_dim, "the stack")
        if state is not None:
            self.check_state(state, x.shape[0])
        states = []
        for number, span in enumerate(runs):
            block = self.blocks[run_name(span).removeprefix("blocks_")]
            kind, before = KINDS[cfg.block_kinds[span[0]]], None if state is None else state[number]
            if len(span) == 1:
                x, after = remat(kind.remat, cfg.parallel, kind.module.__call__)(block, x, before, context)
            else:
                body = remat(kind.remat, cfg.parallel, _at_index, prevent_cse=False)
                scan = nn.scan(
                    body,
                    variable_axes={"params": 0, DIAGNOSTICS: 0},
                    split_rngs={"params": True, "dropout": True},
                    in_axes=(1, 0, nn.broadcast),
                    out_axes=1,
                    length=len(span),
                )
                x, after = scan(block, x, before, jnp.arange(span.start, span.stop), context)
            states.append(after)
        return self._finish(x), tuple(states) if context.keep_state else None

    @nn.nowrap
    def check_state(self, state: Any, batch: int) -> None:
        """Raise `ValueError` for a state of another stack, or of another number of rows than `batch`."""
        runs = spans(self.config)
        if not isinstance(state, tuple) or len(state) != len(runs):
            found = f"{len(state)} entries" if isinstance(state, tuple) else f"the type {type(state).__name__}"
            raise ValueError(f"state has {found}, but must be a tuple of {len(runs)}, one a run of blocks")
        capacity = next((entry.capacity for entry in state if hasattr(entry, "capacity")), 1)
        wanted = jax.eval_shape(lambda: self.init_state(batch, capacity))
        structure: Any = jax.tree.structure(state)
        if structure != jax.tree.structure(wanted):
            raise ValueError("state is of another stack: its blocks are of other kinds")
        for found, fitting in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            if found.shape != fitting.shape:
                raise ValueError(
                    f"state has an array of shape {found.shape}, but this stack and batch need {fitting.shape}: make "
                    f"it with init_state({batch})"
                )

    def _finish(self, x: Array) -> Array:
        return x


def _for_each_block(blocks: int, leaf: Array) -> Array:
    return jnp.repeat(leaf[:, None], blocks, axis=1)


def _at_index(block: Any, x: Array, state: Any, index: Int[Array, ""], context: Context) -> tuple[Array, Any]:
    return block(x, state, context.replace(block_index=index))


class NormedBlockStack(BlockStack):
    """The blocks, then the norm post_blocks_norm unless `config.add_post_blocks_norm` is False."""

    def setup(self) -> None:
        super().setup()
        cfg = self.config
        if cfg.add_post_blocks_norm:
            self.post_blocks_norm = NormLayer(eps=cfg.norm_eps, dtype=cfg.dtype, norm_type=cfg.norm_type)

    def _finish(self, x: Array) -> Array:
        return self.post_blocks_norm(x) if self.config.add_post_blocks_norm else x
