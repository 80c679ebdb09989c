"""Text -> tokenizer -> token store (`data.prepare`) -> batches."""

from xlstm_jax.data.errors import (
    DamagedStoreError,
    DataError,
    MissingStoreError,
    PrepareError,
    SourceError,
    StoreError,
    StoreVersionError,
    TokenizerError,
    TruncatedStoreError,
)
from xlstm_jax.data.store.heldout import HeldoutBatch, HeldoutDocuments, bits_per_byte
from xlstm_jax.data.store.loader import Batch, Loader
from xlstm_jax.data.store.mixture import Mixture
from xlstm_jax.data.store.prefetch import Prefetcher
from xlstm_jax.data.store.schedule import BatchSchedule
from xlstm_jax.data.store.store import Split, TokenStore, open_store
from xlstm_jax.data.tokenizers.base import Tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "BatchSchedule",
    "DamagedStoreError",
    "DataError",
    "HeldoutBatch",
    "HeldoutDocuments",
    "Loader",
    "MissingStoreError",
    "Mixture",
    "Prefetcher",
    "PrepareError",
    "SourceError",
    "Split",
    "StoreError",
    "StoreVersionError",
    "TokenStore",
    "Tokenizer",
    "TokenizerError",
    "TruncatedStoreError",
    "bits_per_byte",
    "load_tokenizer",
    "open_store",
]
