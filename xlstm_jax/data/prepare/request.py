"""From sources to a token store: scan, train the tokenizer, encode, merge.

Everything is done in pieces that survive a kill: a piece is a file that is written whole or not at all, and running the
same command again does only what is missing. The result depends on the documents and the settings alone, not on the
number of workers, the paths of the sources or how often the work was interrupted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.config import to_json
from xlstm_jax.data.errors import PrepareError, SourceError
from xlstm_jax.data.prepare import work
from xlstm_jax.data.prepare.order import (
    HASH_RANGE,
    content_digest,
    place_documents,
    split_entry,
    split_threshold,
    write_index,
)
from xlstm_jax.data.prepare.plan import PLAN_FILE, Plan, Settings, differences, make_plan
from xlstm_jax.data.prepare.sources import Format, Reading, list_files
from xlstm_jax.data.prepare.workers import WorkerPool
from xlstm_jax.data.store.store import INDEX_FILE, TOKENIZER_FOLDER, WORK_FOLDER, TokenStore, open_store, read_index
from xlstm_jax.data.tokenizers.base import ByteTokenizer, Tokenizer, load_tokenizer
from xlstm_jax.files import Lock, LockedError, check_space, remove_temporaries, write_array, write_json
from xlstm_jax.machine.cores import usable_cores
from xlstm_jax.machine.progress import Progress

DEFAULT_VOCAB_SIZE = 8192
DEFAULT_VALIDATION_FRACTION = 0.02
IN_PROCESS_BYTES = 1 << 22
LOCK_FILE = ".lock"


def prepare(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path = "bytes",
    vocab_size: int | None = None,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    format: Format = "auto",
    text_field: str = "text",
    separator: str | None = None,
    include: Sequence[str] | None = None,
    eod: str | None = None,
    drop_normalizer: bool = False,
    training_bytes: int = 1 << 30,
    shard_tokens: int = 1 << 26,
    task_bytes: int | None = None,
) -> TokenStore:
    """Make a token store, go on with an unfinished one, or open the finished one if it is what is asked for.

    Args:
        sources: files, folders, globs, or the word `stdlib`; see `sources.list_files`.
        out: folder of the store.
        tokenizer: `bytes`, `bpe` (trained on the training split), or a path for `load_tokenizer`.
        vocab_size: of a `bpe`, EOD included; 8192 if None.
        validation_fraction: share of the documents (by hash of their content) that become the validation split; at
            least one if there are two different ones, none if 0.
        seed: of the documents' order. The split does not depend on it.
        workers: processes; None means one for each core this process may use.
        format, text_field, separator, include: see `sources.Reading`.
        eod, drop_normalizer: see `load_tokenizer`.
        training_bytes: a `bpe` is trained on documents, chosen by hash, of about this size at most.
        shard_tokens: a shard file is closed at the first document end after so many tokens.
        task_bytes: source bytes in one piece of work; None chooses.

    Raises:
        SourceError, TokenizerError, PrepareError: see there; each is a `ValueError`.
        WriteError: if the store cannot be written; a `DiskFullError` for want of room.
    """
    out = Path(out)
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    reading = Reading(format, text_field, separator, tuple(include) if include else None)
    given = _given_tokenizer(tokenizer, vocab_size, eod, drop_normalizer)
    settings = Settings(
        tokenizer=_tokenizer_name(given),
        vocab_size=(DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size) if given is None else None,
        training_bytes=training_bytes,
        validation_fraction=float(validation_fraction),
        seed=seed,
        shard_tokens=shard_tokens,
    )
    _check_settings(settings)
    workers = workers if workers is not None else usable_cores()
    if workers < 1:
        raise PrepareError(f"workers is {workers}, but must be >= 1")
    plan = make_plan(list_files(listed, reading), reading, settings, task_bytes)
    if (out / INDEX_FILE).is_file():
        return _open_equal(plan, out, workers, progress)
    bars = Progress(progress, unit="bytes")
    with _locked(out):
        plan = _begin(plan, out)
        folder = out / WORK_FOLDER
        with WorkerPool(folder, _processes(plan, workers)) as pool:
            scanned = _scan(plan, folder, pool, bars)
            threshold = split_threshold(scanned["split"], validation_fraction)
            made = _make_tokenizer(plan, folder, pool, given, scanned, threshold, bars)
            _encode(plan, folder, pool, made, scanned, bars)
            splits = _merge(plan, folder, pool, made, threshold, bars)
        made.save(out / TOKENIZER_FOLDER)
        write_index(out, plan, splits, made, content_digest(scanned))
    shutil.rmtree(folder)
    return open_store(out)


# ---------------------------------------------------------------------------------------------------------------------
# The request
# ---------------------------------------------------------------------------------------------------------------------


def _given_tokenizer(tokenizer: str | Path, vocab_size: int | None, eod: str | None, drop: bool) -> Tokenizer | None:
    if str(tokenizer) == "bpe":
        from xlstm_jax.data.tokenizers.byte_level import check_vocab_size

        check_vocab_size(DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size)
        return None
    given = load_tokenizer(tokenizer, eod=eod, drop_normalizer=drop)
    if vocab_size is not None and vocab_size != given.vocab_size:
        raise PrepareError(
            f"vocab_size is {vocab_size}, but the tokenizer {str(tokenizer)!r} has {given.vocab_size} ids; "
            "vocab_size is for the tokenizer 'bpe', which is trained"
        )
    return given


def _tokenizer_name(given: Tokenizer | None) -> str:
    if given is None:
        return "bpe"
    return "bytes" if isinstance(given, ByteTokenizer) else given.fingerprint


def _processes(plan: Plan, workers: int) -> int:
    """How many processes to start; 0 means that what little there is to do is done in this one."""
    count = min(workers, len(plan.tasks))
    size = sum(file.size for file in plan.files)
    return 0 if count == 1 and size < IN_PROCESS_BYTES else count


def _check_settings(settings: Settings) -> None:
    if not 0 <= settings.validation_fraction < 1:
        raise PrepareError(f"validation_fraction is {settings.validation_fraction}, but must be >= 0 and < 1")
    if isinstance(settings.seed, bool) or not isinstance(settings.seed, int):
        raise PrepareError(f"seed is {settings.seed!r}, but must be a whole number")
    for name in ("training_bytes", "shard_tokens"):
        if getattr(settings, name) < 1:
            raise PrepareError(f"{name} is {getattr(settings, name)}, but must be >= 1")


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One preparation a folder at a time; the lock goes with the process that holds it."""
    if out.exists() and not out.is_dir():
        raise PrepareError(f"{out} is a file, but must be the folder of the store")
    if out.is_dir() and not (out / INDEX_FILE).exists() and not (out / WORK_FOLDER).exists():
        other = next((p.name for p in out.iterdir() if p.name != LOCK_FILE), None)
        if other is not None:
            raise PrepareError(f"{out} is not empty (it holds {other!r}) and not a token store; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / LOCK_FILE)
    try:
        lock.acquire()
    except LockedError as error:
        raise PrepareError(f"another process is preparing {out}; wait for it or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def _begin(plan: Plan, out: Path) -> Plan:
    """Write the plan down, or take up the unfinished one if it is the same; if it is of the same files before they were
    written to, begin again."""
    folder = out / WORK_FOLDER
    remove_temporaries(out)
    if not (folder / PLAN_FILE).is_file():
        folder.mkdir(exist_ok=True)
        plan.write(folder)
        return plan
    remove_temporaries(folder)
    found = Plan.read(folder)
    if found.settings == plan.settings and plan.is_edited(found):
        # What was made of the old content is of no use, and asking for it again would only send the user to delete it.
        for path in out.iterdir():
            if path.name != LOCK_FILE:
                (shutil.rmtree if path.is_dir() else os.unlink)(path)
        folder.mkdir()
        plan.write(folder)
        return plan
    differing = differences(_request(plan), _request(found))
    if differing:
        raise PrepareError(
            f"{out} holds an unfinished preparation of another request, which differs in {differing}; "
            "delete it or choose another folder"
        )
    return found


def _request(plan: Plan) -> dict[str, Any]:
    return to_json(plan.settings) | {"sources": plan.files_key()[:12]}


def _open_equal(plan: Plan, out: Path, workers: int, progress: bool) -> TokenStore:
    """The finished store, if this plan would make the same one."""
    found = read_index(out)["request"]
    differing = differences(to_json(plan.settings), found["settings"])
    if not differing and plan.files_key() != found["files_key"]:
        # Files were moved or written to; their content decides.
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            plan.write(folder)
            with WorkerPool(folder, _processes(plan, workers)) as pool:
                digest = content_digest(_scan(plan, folder, pool, Progress(progress, unit="bytes")))
        differing = differences({"documents": digest[:12]}, {"documents": found["content"][:12]})
    if differing:
        raise PrepareError(
            f"{out} holds a store of another request, which differs in {differing}; delete it or choose another folder"
        )
    # A process that was killed after it had written the index leaves its work behind.
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return open_store(out)


# ---------------------------------------------------------------------------------------------------------------------
# The work
# ---------------------------------------------------------------------------------------------------------------------


def _task_works(plan: Plan, name: str) -> list[tuple[dict[str, Any], int]]:
    return [({"do": name, "task": task}, plan.task_bytes(task)) for task in range(len(plan.tasks))]


def _run_missing(
    pool: WorkerPool,
    bars: Progress,
    title: str,
    works: list[tuple[dict[str, Any], int]],
    result: Callable[[dict[str, Any]], Path],
) -> None:
    """Do what has no result file yet, with a bar over all of it."""
    missing = [(w, size) for w, size in works if not result(w).exists()]
    sizes = {json.dumps(w): size for w, size in missing}
    finished = sum(size for _, size in works) - sum(sizes.values())
    with bars.bar(title, sum(size for _, size in works), finished) as advance:
        pool.run([w for w, _ in missing], lambda w: advance(sizes[json.dumps(w)]))


def _scan(plan: Plan, folder: Path, pool: WorkerPool, bars: Progress) -> np.ndarray:
    _run_missing(pool, bars, "reading", _task_works(plan, "scan"), lambda w: work.scan_path(folder, w["task"]))
    scanned = np.concatenate([np.load(work.scan_path(folder, task)) for task in range(len(plan.tasks))])
    if not scanned.size:
        raise SourceError(f"the sources hold no text: {len(plan.files)} files, all empty")
    return scanned


def _make_tokenizer(
    plan: Plan,
    folder: Path,
    pool: WorkerPool,
    given: Tokenizer | None,
    scanned: np.ndarray,
    threshold: int,
    bars: Progress,
) -> Tokenizer:
    path = work.tokenizer_path(folder)
    if given is not None:
        given.save(path)
    elif not (path / "finished").exists():
        training = plan.settings.training_bytes
        total = int(scanned["bytes"][scanned["split"] >= threshold].sum())
        limit = min(HASH_RANGE, HASH_RANGE * training // max(1, total))
        # In a process of its own, because the library does not hear Ctrl-C while it merges.
        with bars.bar("tokenizer", min(total, training)) as advance:
            pool.run([{"do": "train", "threshold": threshold, "limit": limit}], lambda _: None, advance)
        write_json(path / "finished", True)
    return load_tokenizer(path)


def _encode(
    plan: Plan, folder: Path, pool: WorkerPool, tokenizer: Tokenizer, scanned: np.ndarray, bars: Progress
) -> None:
    if isinstance(tokenizer, ByteTokenizer):
        # Two bytes a token, once as encoded and once as shard. What another tokenizer needs is known after encoding.
        done = sum(path.stat().st_size for path in folder.glob("tokens-*.bin"))
        check_space(folder, 4 * int(scanned["bytes"].sum()) - done, f"{folder} needs")
    _run_missing(pool, bars, "encoding", _task_works(plan, "encode"), lambda w: work.encoded_path(folder, w["task"]))


def _merge(
    plan: Plan, folder: Path, pool: WorkerPool, tokenizer: Tokenizer, threshold: int, bars: Progress
) -> dict[str, dict[str, Any]]:
    dtype = work.token_dtype(tokenizer.vocab_size)
    splits: dict[str, dict[str, Any]] = {}
    works: list[tuple[dict[str, Any], int]] = []
    for name, placed in place_documents(plan, folder, threshold).items():
        write_array(work.placed_path(folder, name), placed)
        splits[name], cuts = split_entry(folder.parent, name, placed, plan.settings.shard_tokens)
        for shard, (first, last) in enumerate(itertools.pairwise(cuts)):
            arguments = {"split": name, "shard": shard, "first": first, "last": last, "closing": last == len(placed)}
            kind = {"eod": tokenizer.eod_id, "dtype": dtype.str}
            tokens = int(placed["tokens"][first:last].sum()) + last - first
            works.append(({"do": "merge"} | arguments | kind, tokens * dtype.itemsize))
    missing = [size for w, size in works if not work.merged_path(folder, w["split"], w["shard"]).exists()]
    check_space(folder, sum(missing), f"{folder} needs")
    _run_missing(pool, bars, "writing", works, lambda w: work.merged_path(folder, w["split"], w["shard"]))
    for w, _ in works:
        splits[w["split"]]["shards"].append(json.loads(work.merged_path(folder, w["split"], w["shard"]).read_bytes()))
    return splits
