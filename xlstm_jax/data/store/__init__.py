"""Reading token stores: the documents of their splits, batches to learn from, held-out documents to score."""

from xlstm_jax.data.store.batch import Batch
from xlstm_jax.data.store.heldout import HeldoutBatch, HeldoutDocuments, HeldoutWindows, Window, windows
from xlstm_jax.data.store.loader import Loader
from xlstm_jax.data.store.mixed import MixedStore
from xlstm_jax.data.store.mixture import Mixture
from xlstm_jax.data.store.prefetch import Prefetcher
from xlstm_jax.data.store.split import Split, TokenArray
from xlstm_jax.data.store.store import INDEX_FILE, TOKENIZER_FOLDER, TokenStore, open_store, read_index

__all__ = [
    "INDEX_FILE",
    "TOKENIZER_FOLDER",
    "Batch",
    "HeldoutBatch",
    "HeldoutDocuments",
    "HeldoutWindows",
    "Loader",
    "MixedStore",
    "Mixture",
    "Prefetcher",
    "Split",
    "TokenArray",
    "TokenStore",
    "Window",
    "open_store",
    "read_index",
    "windows",
]
