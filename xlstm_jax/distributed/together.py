"""What single processes want, seen alike by all at the same step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Together:
    """The largest of the numbers that all processes give, one question late: it is there when the next step is, so
    nobody waits for it. Once it is not 0, it stays.

    All processes must ask equally often, in the same order as they start their steps.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._own = NamedSharding(mesh, P(mesh.axis_names))
        self._shape = (mesh.size,)
        self._largest: Callable[[jax.Array], jax.Array] = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
        self._asked: jax.Array | None = None
        self.found = 0

    def __call__(self, number: int) -> int:
        """What all gave at the last question; `number` counts from the next one on."""
        before, self._asked = self._asked, self._largest(self._given(number))
        if before is not None:
            self.found = max(self.found, int(before))
        return self.found

    def _given(self, number: int) -> jax.Array:
        def piece(index: Any) -> np.ndarray:
            return np.full(
                [len(range(*cut.indices(n))) for cut, n in zip(index, self._shape, strict=True)], number, np.int32
            )

        return jax.make_array_from_callback(self._shape, self._own, piece)
