"""What the configs of layers with an up-projection share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from xlstm_jax.config import ConfigError, PositiveFloat, PositiveInt
from xlstm_jax.models.configs import SubModelConfig


@dataclass
class UpProjConfigMixin(SubModelConfig):
    """The width of an up-projection: a factor of the embedding, rounded to a multiple."""

    proj_factor: PositiveFloat | None = None
    round_proj_up_dim_up: bool = True
    """Round the width up (True) or down (False)."""
    round_proj_up_to_multiple_of: PositiveInt = 64
    _proj_up_dim: int | None = field(default=None, repr=False, compare=False)

    def _set_proj_up_dim(self, embedding_dim: int) -> None:
        self._proj_up_dim = None
        if self.proj_factor is None or embedding_dim <= 0:
            return
        multiple = self.round_proj_up_to_multiple_of
        round_to_int = math.ceil if self.round_proj_up_dim_up else math.floor
        self._proj_up_dim = round_to_int(self.proj_factor * embedding_dim / multiple) * multiple
        if self._proj_up_dim == 0:
            raise ConfigError(
                f"{type(self).__name__}.proj_factor {self.proj_factor} of embedding_dim {embedding_dim}, rounded down "
                f"to a multiple of {multiple}, is 0: set round_proj_up_dim_up or a smaller round_proj_up_to_multiple_of"
            )
