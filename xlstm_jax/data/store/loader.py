"""Batches as a pure function of the step.

A row is `seq_len` inputs and the `seq_len` tokens that follow each of them: window r of the concatenation covers tokens
r * seq_len to r * seq_len + seq_len, so every token but the very first is the target of one position of one row. The
last window is filled up with EOD at its end; the filling is not scored. Rows are counted over the whole run: the batch
at a step is the rows from `schedule.rows_before(step)` on, row g is the j-th row of its source (`mixture`), and that is
row `permute(j mod n)` of the source's epoch j // n. Nothing else enters, so any step can be had at any time, in
any order, on any host.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import DamagedStoreError
from xlstm_jax.data.store.mixture import Mixture, rows_of_sources, shares
from xlstm_jax.data.store.permutation import permute
from xlstm_jax.data.store.schedule import BatchSchedule
from xlstm_jax.data.store.store import Split


class Batch(NamedTuple):
    """What a model reads and what it is scored on.

    Attributes:
        inputs: token ids.
        targets: the token after each input.
        document_borders: true where a document opens: at the input EOD whose target is the first token.
        loss_mask: false where the target is not scored.
    """

    inputs: Int32[np.ndarray, "batch seq"]
    targets: Int32[np.ndarray, "batch seq"]
    document_borders: Bool[np.ndarray, "batch seq"]
    loss_mask: Bool[np.ndarray, "batch seq"]


class Loader:
    """`loader(step)` gives the batch of a step.

    Args:
        source: a split, or a `Mixture` of several.
        seq_len: inputs in a row.
        schedule: rows in a batch: a number, or a `BatchSchedule`.
        seed: of the order of the rows.
        carry_state: rows in the order of the text, for a model that carries its state from batch to batch: row i of
            every batch goes on where row i of the batch before ended, each row reading its own stretch of the split.
            Then column 0 is a border only where a stretch begins. Takes one split and one batch size.
        mask_crossing: do not score the first token of a document, which only an EOD precedes.

    Attributes:
        rows_per_epoch: rows of all sources together; with `carry_state`, filling rows included.

    Raises:
        ConfigError: for values that are out of range or do not go together.
        DamagedStoreError: by a call, for a token that the tokenizer does not have.
    """

    def __init__(
        self,
        source: Split | Mixture,
        *,
        seq_len: int,
        schedule: BatchSchedule | int,
        seed: int = 0,
        carry_state: bool = False,
        mask_crossing: bool = False,
    ):
        if seq_len < 1:
            raise ConfigError(f"seq_len is {seq_len}, but must be >= 1")
        self._mixture = source if isinstance(source, Mixture) else Mixture([source], [1.0])
        self._parts = shares(self._mixture.weights)
        self.seq_len, self.schedule, self.seed = seq_len, BatchSchedule.of(schedule), seed
        self.carry_state, self.mask_crossing = carry_state, mask_crossing
        for split in self._mixture.splits:
            if split.num_tokens < 2:
                raise ConfigError(f"the split {split.name} has no documents, so it gives no batches")
        self._rows = [-(-(split.num_tokens - 1) // seq_len) for split in self._mixture.splits]
        self.rows_per_epoch = sum(self._rows)
        if carry_state:
            if len(self._rows) > 1 or len(self.schedule.pieces) > 1:
                raise ConfigError("carry_state reads one split with one batch size, not a mixture or a batch schedule")
            lanes = self.schedule.batch_size(0)
            self._lane_rows = -(-self._rows[0] // lanes)
            self.rows_per_epoch = self._lane_rows * lanes

    def __call__(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of `step`, or those of its rows that `rows` selects (what one of several hosts reads)."""
        size = self.schedule.batch_size(step)
        places = np.arange(size, dtype=np.int64)[rows if rows is not None else slice(None)]
        if self.carry_state:
            sources, windows, continued = self._carried(step, places)
        else:
            sources, windows = self._shuffled(self.schedule.rows_before(step) + places)
            continued = np.zeros(len(places), bool)
        return self._read(sources, windows, continued)

    def tokens_before(self, step: int) -> int:
        """Positions in all batches before `step`: rows times `seq_len`."""
        return self.schedule.rows_before(step) * self.seq_len

    def epoch(self, step: int) -> float:
        """How many times all rows have been read before `step`; for a mixture, on average over the sources' rows."""
        return self.schedule.rows_before(step) / self.rows_per_epoch

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a batch: stores, weights, seed, schedule, options."""
        splits = [split.fingerprint for split in self._mixture.splits]
        options = [self.seq_len, self.seed, self.schedule.pieces, self.carry_state, self.mask_crossing]
        what = [splits, self._parts, *options]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _shuffled(self, rows: Int64[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
        """Source and window of global rows."""
        before = rows_of_sources(rows, self._parts)
        sources = np.argmax(rows_of_sources(rows + 1, self._parts) > before, axis=0)
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

    def _carried(self, step: int, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = step % self._lane_rows
        return np.zeros(len(lanes), np.int64), lanes * self._lane_rows + place, np.full(len(lanes), place > 0)

    def _read(self, sources: np.ndarray, windows: np.ndarray, continued: np.ndarray) -> Batch:
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
        borders[:, 0] |= ~continued
        return Batch(inputs, targets, borders, scored & ~opens if self.mask_crossing else scored)
