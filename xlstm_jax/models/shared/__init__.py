"""What every language model here shares: initialisers, the head with its soft cap, recomputation by name."""

from xlstm_jax.models.shared.init import (
    InitDistribution,
    InitFnName,
    bias_linspace_init,
    create_common_init_fn,
    small_init,
    uniform_init,
    wang_init,
)
from xlstm_jax.models.shared.linear import Linear, product
from xlstm_jax.models.shared.lm_head import LMHead, soft_cap_logits
from xlstm_jax.models.shared.remat import remat

__all__ = [
    "InitDistribution",
    "InitFnName",
    "LMHead",
    "Linear",
    "bias_linspace_init",
    "create_common_init_fn",
    "product",
    "remat",
    "small_init",
    "soft_cap_logits",
    "uniform_init",
    "wang_init",
]
