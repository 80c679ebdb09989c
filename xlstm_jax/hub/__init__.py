"""Weights and configs of other packages."""

from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.folders import open_source, write_huggingface
from xlstm_jax.hub.formats import ReadOptions, Weights
from xlstm_jax.hub.peer_config import config_from_xlstm_jax
from xlstm_jax.hub.peer_params import params_from_xlstm_jax
from xlstm_jax.hub.xlstm_package import params_from_xlstm_package, xlstm_package_from_params
from xlstm_jax.hub.xlstm_package_config import config_from_xlstm_package

__all__ = [
    "ReadOptions",
    "Weights",
    "WeightsError",
    "config_from_xlstm_jax",
    "config_from_xlstm_package",
    "open_source",
    "params_from_xlstm_jax",
    "params_from_xlstm_package",
    "write_huggingface",
    "xlstm_package_from_params",
]
