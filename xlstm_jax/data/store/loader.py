"""Batches as a pure function of the step.

A row is `seq_len` inputs and the `seq_len` tokens that follow each of them: window r of the concatenation covers tokens
r * seq_len to r * seq_len + seq_len, so every token but the very first is the target of one position of one row. The
last window is filled up with EOD at its end; the filling is not scored. Rows are counted over the whole run: the batch
at a step is the rows from step * batch_size on, row g is the j-th row of its source (`mixture`), and that is row
`permute(j mod n)` of the source's epoch j // n. Nothing else enters, so any step can be had at any time, in any order,
on any host.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import DamagedStoreError
from xlstm_jax.data.store.batch import Batch
from xlstm_jax.data.store.mixture import Mixture, rows_of_sources, shares
from xlstm_jax.data.store.permutation import permute
from xlstm_jax.data.store.split import Split


class Loader:
    """`loader(step)` gives the batch of a step.

    Args:
        source: a split, or a `Mixture` of several.
        seq_len: inputs in a row.
        seed: of the order of the rows.
        mask_crossing: do not score the first token of a document, which only an EOD precedes.

    Raises:
        ConfigError: for values that are out of range, or a split without documents.
        DamagedStoreError: by a call, for a token that the tokenizer does not have.
    """

    rows_per_epoch: int
    """Rows of all sources together."""

    def __init__(
        self, source: Split | Mixture, *, seq_len: int, batch_size: int, seed: int = 0, mask_crossing: bool = False
    ):
        if seq_len < 1 or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size} and seq_len is {seq_len}, but both must be >= 1")
        self._mixture = source if isinstance(source, Mixture) else Mixture([source], [1.0])
        self._shares = shares(self._mixture.weights)
        self.seq_len, self.batch_size, self.seed, self.mask_crossing = seq_len, batch_size, seed, mask_crossing
        for split in self._mixture.splits:
            if split.num_tokens < 2:
                raise ConfigError(f"the split {split.name} has no documents, so it gives no batches")
        self._rows = [-(-(split.num_tokens - 1) // seq_len) for split in self._mixture.splits]
        self.rows_per_epoch = sum(self._rows)

    def __call__(self, step: int, rows: slice | Int64[np.ndarray, " rows"] | None = None) -> Batch:
        """The batch of `step`, or those of its rows that `rows` selects (what one of several hosts reads)."""
        if step < 0:
            raise ValueError(f"step is {step}, but steps are counted from 0")
        places = np.arange(self.batch_size, dtype=np.int64)[rows if rows is not None else slice(None)]
        return self._read(*self._shuffled(step * self.batch_size + places))

    def _shuffled(self, rows: Int64[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
        """Source and window of global rows."""
        before = rows_of_sources(rows, self._shares)
        sources = np.argmax(rows_of_sources(rows + 1, self._shares) > before, axis=0)
        windows = np.empty(len(rows), np.int64)
        for source, size in enumerate(self._rows):
            mine = sources == source
            epochs, places = np.divmod(before[source, mine], size)
            found = np.empty(len(places), np.int64)
            for epoch in np.unique(epochs):
                now = epochs == epoch
                found[now] = permute(places[now], size, self.seed, source, int(epoch))
            windows[mine] = found
        return sources, windows

    def _read(self, sources: np.ndarray, windows: np.ndarray) -> Batch:
        eod = self._mixture.splits[0].eod_id
        tokens = np.full((len(windows), self.seq_len + 1), eod, np.int32)
        scored = np.zeros((len(windows), self.seq_len), bool)
        for row, (source, window) in enumerate(zip(sources.tolist(), windows.tolist(), strict=True)):
            array = self._mixture.splits[source].tokens
            start = window * self.seq_len
            found = array.read(start, min(start + self.seq_len + 1, len(array)))
            tokens[row, : len(found)] = found
            scored[row, : max(0, len(found) - 1)] = True
        tokenizer = self._mixture.splits[0].tokenizer
        if tokenizer is not None and tokens.size and (largest := int(tokens.max())) >= tokenizer.vocab_size:
            names = ", ".join(self._mixture.splits[source].name for source in np.unique(sources))
            raise DamagedStoreError(
                f"{names} holds the token {largest}, but its tokenizer has {tokenizer.vocab_size} only; "
                "`xlstm data inspect STORE --verify` names the damaged file"
            )
        inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        opens = (inputs == eod) & scored
        borders = opens.copy()
        borders[:, 0] = True
        return Batch(inputs, targets, borders, scored & ~opens if self.mask_crossing else scored)
