"""What a model reads in one step, and what it is scored on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32


class Batch(NamedTuple):
    """Rows of tokens: NumPy arrays as they are read, arrays of JAX inside of a compiled step."""

    inputs: Int32[np.ndarray, "batch seq"]
    targets: Int32[np.ndarray, "batch seq"]
    """The token after each input."""
    document_borders: Bool[np.ndarray, "batch seq"]
    """True where a document opens: at the input EOD whose target is the first token."""
    loss_mask: Bool[np.ndarray, "batch seq"]
    """False where the target is not scored."""
