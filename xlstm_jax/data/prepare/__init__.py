"""Making a token store: text in any of the known formats -> documents -> tokens in their final order."""

from xlstm_jax.data.prepare.config import PrepareConfig
from xlstm_jax.data.prepare.pipeline import has_changed, prepare, prepare_beside

__all__ = ["PrepareConfig", "has_changed", "prepare", "prepare_beside"]
