"""The layer type "mlstm_v1"; it stands beside the other one, with which it shares its config."""

from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerV1

__all__ = ["mLSTMLayerV1"]
