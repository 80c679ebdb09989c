"""What one call of a model hands down to all of its parts."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Int


class Context(struct.PyTreeNode):
    """The call around a part: what its tokens are, and what is wanted of it."""

    document_borders: Bool[Array, "batch seq"] | None = None
    """True at the first token of a document."""
    mask: Bool[Array, "batch seq"] | None = None
    """False at padding, which leaves every state as it was."""
    layout: Any = None
    """Where attention finds its tokens (`models.llama.attention.Layout`); made once for all blocks."""
    block_index: Int[Array, ""] | None = None
    """The block's place in the stack, where a scan alone knows it."""
    train: bool = struct.field(pytree_node=False, default=False)
    """Whether dropout is on."""
    keep_state: bool = struct.field(pytree_node=False, default=False)
    """Whether states are made; every part returns (y, state), with None for the state where not."""


PLAIN = Context()
"""Neither documents nor padding, no dropout, no state to come."""
