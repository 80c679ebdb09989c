"""Weights and configs of other packages."""

from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.peer_config import config_from_xlstm_jax
from xlstm_jax.hub.peer_params import params_from_xlstm_jax

__all__ = ["WeightsError", "config_from_xlstm_jax", "params_from_xlstm_jax"]
