"""What the memories of a model do with a text: gates, normalisers, states, token by token.

The cells write it into the collection "diagnostics", where a call makes that mutable; else nothing of it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import struct
from jaxtyping import Array, Bool, Int

from xlstm_jax.kernels.mlstm.trace import MLSTMTrace
from xlstm_jax.kernels.slstm.trace import SLSTMTrace
from xlstm_jax.models.causal_lm import CausalLM, State
from xlstm_jax.models.llama.attention import AttentionTrace
from xlstm_jax.models.shared.tracing import DIAGNOSTICS
from xlstm_jax.models.stack import span_of

Trace = MLSTMTrace | SLSTMTrace | AttentionTrace


class BlockTrace(struct.PyTreeNode):
    """What the memory of one block did."""

    trace: Trace
    block: int = struct.field(pytree_node=False)
    """Its place in the stack."""
    kind: str = struct.field(pytree_node=False)
    """The name of its kind: "mlstm", "slstm" or "attention"."""


def diagnose(
    model: CausalLM,
    params: Any,
    tokens: Int[Array, "batch seq"],
    *,
    document_borders: Bool[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    state: State | None = None,
) -> tuple[list[BlockTrace], State]:
    """What each block's memory does with the tokens, and the state after them.

    A text can be read in pieces, the state handed on, so that a long one needs no more memory. Blocks whose kind keeps
    no trace, as the LSTM's, are left out. It can be compiled: `jax.jit(functools.partial(diagnose, model))`.

    Args:
        tokens, document_borders, mask, state: as the model takes them.

    Example:
        >>> blocks, state = diagnose(run.model, run.params, tokens)
        >>> blocks[0].trace.log_f  # (batch, seq, heads)
    """
    (_, after), found = model.apply(
        {"params": params},
        tokens,
        document_borders=document_borders,
        mask=mask,
        state=state,
        return_state=True,
        method="features",
        mutable=[DIAGNOSTICS],
    )
    blocks = sorted(_traces(found.get(DIAGNOSTICS, {}), model.config.block_kinds), key=lambda entry: entry.block)
    return blocks, after


def _traces(found: Mapping[str, Any], kinds: Any, span: range | None = None) -> Iterator[BlockTrace]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _traces(value, kinds, span or span_of(name))
        elif span is not None and len(span) > 1:  # scanned: the blocks are the first axis
            for number, block in enumerate(span):
                yield BlockTrace(jax.tree.map(lambda leaf, at=number: leaf[at], value), block, kinds[block])
        elif span is not None:
            yield BlockTrace(value, span[0], kinds[span[0]])
