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
from xlstm_jax.models.shared.layers import Linear, LMHead, product, soft_cap_logits

__all__ = [
    "InitDistribution",
    "InitFnName",
    "LMHead",
    "Linear",
    "bias_linspace_init",
    "create_common_init_fn",
    "product",
    "small_init",
    "soft_cap_logits",
    "uniform_init",
    "wang_init",
]
