"""Several stores read as one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from xlstm_jax.data.store.mixture import Mixture, shares
from xlstm_jax.data.store.split import join
from xlstm_jax.data.store.store import SPLITS, TokenStore, open_store


class MixedStore(TokenStore):
    """Finished stores of one tokenizer: `train` mixes their rows by weight, a split has the documents of all.

    Args:
        weights: the folder of each store -> its weight; a store of weight 2 gives twice the rows of one of weight 1.

    Raises:
        StoreError: for a store that is missing or damaged.
        ConfigError: for stores of different tokenizers, or a weight that is not a positive number.
    """

    def __init__(self, weights: Mapping[str, float]):
        self._stores = [open_store(path) for path in weights]
        self._train = Mixture([store.split("train") for store in self._stores], list(weights.values()))
        self.path, self.tokenizer = self._stores[0].path, self._stores[0].tokenizer
        self._splits = {name: join([store.split(name) for store in self._stores]) for name in SPLITS}
        # Shares and not weights: 3 to 1 gives the same rows as 6 to 2.
        identity = [[store.fingerprint for store in self._stores], shares(self._train.weights)]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def __str__(self) -> str:
        return ", ".join(str(store) for store in self._stores)

    @property
    def train(self) -> Mixture:
        return self._train

    @property
    def disk_bytes(self) -> int:
        return sum(store.disk_bytes for store in self._stores)

    def verify(self) -> None:
        for store in self._stores:
            store.verify()
