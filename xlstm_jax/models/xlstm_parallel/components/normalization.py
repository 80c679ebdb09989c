"""RMSNorm and LayerNorm over the last axis, with one scale vector or one a head."""

from xlstm_jax.models.shared.layers import LayerNorm, MultiHeadNormLayer, NormLayer, NormType, RMSNorm

__all__ = ["LayerNorm", "MultiHeadNormLayer", "NormLayer", "NormType", "RMSNorm"]
