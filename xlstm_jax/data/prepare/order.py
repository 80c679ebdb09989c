"""Where each document of a store ends up: which split, in which order, in which shard; and the index that says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare import stages
from xlstm_jax.data.prepare.job import Job
from xlstm_jax.data.store.store import FORMAT_VERSION, INDEX_FILE, SPLITS, index_checksum
from xlstm_jax.data.tokenizers import Tokenizer
from xlstm_jax.files import sha256_of, write_array, write_json

HASH_RANGE = 1 << 64

REQUEST_VERSION = 2
"""Of how a request becomes a store. Before 2, nothing was held out of a single document."""


def split_threshold(hashes: UInt64[np.ndarray, " documents"], fraction: float) -> int:
    """Documents whose split hash is below this number are the validation split.

    About `fraction` of them; neither split is left empty if there are two different documents (unless `fraction` is 0).
    """
    if fraction == 0 or hashes.size == 0:
        return 0
    low, high = int(hashes.min()), int(hashes.max())
    return min(max(int(fraction * HASH_RANGE), low + 1), high) if low < high else 0


def content_digest(scanned: np.ndarray) -> str:
    """A hash of all documents (`stages.DOCUMENT` records), whatever their order and the files they come from."""
    columns = np.stack([scanned["bytes"], scanned["split"], scanned["order"]])
    return hashlib.sha256(columns[:, np.lexsort(columns)].tobytes()).hexdigest()


def place_documents(job: Job, folder: Path, threshold: int) -> dict[str, np.ndarray]:
    """For each split its documents in their final order, and where their tokens lie (`stages.PLACED` records)."""
    parts, hashes = [], []
    for task in range(len(job.tasks)):
        encoded = np.load(stages.encoded_path(folder, task))
        part = np.empty(len(encoded), stages.PLACED)
        part["task"], part["tokens"], part["bytes"] = task, encoded["tokens"], encoded["bytes"]
        part["start"] = np.cumsum(encoded["tokens"]) - encoded["tokens"]
        parts.append(part)
        hashes.append(encoded[["order", "split"]])
    placed, hashed = np.concatenate(parts), np.concatenate(hashes)
    # Documents of equal hash are equal, so their order among each other does not matter.
    order = np.argsort(hashed["order"], kind="stable")
    validation = hashed["split"][order] < threshold
    train = ~validation
    if job.holds_out:
        train &= ~np.isin(hashed["order"][order], hashed["order"][order[validation]])
    if not train.any():
        raise SourceError("no document is left to learn from: all of them are held out")
    return {"train": placed[order[train]], "validation": placed[order[validation]]}


def split_entry(folder: Path, name: str, placed: np.ndarray, shard_tokens: int) -> tuple[dict[str, Any], list[int]]:
    """What the index says of a split, its shards still to come; and at which documents its shards begin and end."""
    lengths = placed["tokens"].astype(np.uint64) + np.uint64(1)
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)])
    entry = {
        "documents": len(placed),
        "tokens": int(offsets[-1]) + 1 if len(placed) else 0,
        "raw_bytes": int(placed["bytes"].sum()),
        "offsets": _array_entry(folder, f"{name}.offsets.npy", offsets),
        "sizes": _array_entry(folder, f"{name}.sizes.npy", placed["bytes"].copy()),
        "shards": [],
    }
    cuts = [0]
    while cuts[-1] < len(placed):
        wanted = int(offsets[cuts[-1]]) + shard_tokens
        cuts.append(max(cuts[-1] + 1, min(len(placed), int(np.searchsorted(offsets, wanted)))))
    return entry, cuts


def write_index(out: Path, job: Job, splits: dict[str, dict[str, Any]], tokenizer: Tokenizer, content: str) -> None:
    """Write `index.json`, with which the store is finished."""
    hashes = [[f["sha256"] for f in (*splits[s]["shards"], splits[s]["offsets"], splits[s]["sizes"])] for s in SPLITS]
    identity = [FORMAT_VERSION, tokenizer.fingerprint, hashes]
    index = {
        "format_version": FORMAT_VERSION,
        "fingerprint": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        "dtype": stages.token_dtype(tokenizer.vocab_size).str,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "tokenizer": tokenizer.fingerprint,
        "splits": splits,
        "request": {
            "settings": job.settings,
            "version": REQUEST_VERSION,
            "files": len(job.files),
            "files_key": job.files_key(),
            "content": content,
        },
    }
    write_json(out / INDEX_FILE, index | {"checksum": index_checksum(index)})


def _array_entry(folder: Path, name: str, array: np.ndarray) -> dict[str, Any]:
    path = folder / name
    write_array(path, array)
    return {"file": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
