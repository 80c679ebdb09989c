"""From sources to a token store: scan, train the tokenizer, encode, merge.

Every stage is done by tasks that survive a kill: what a task makes is a file that is written whole or not at all, and
running the same command again does only what is missing. The result depends on the documents and the settings alone,
not on the number of workers, the paths of the sources or how often the work was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import PrepareError, SourceError
from xlstm_jax.data.prepare import stages
from xlstm_jax.data.prepare.config import PrepareConfig
from xlstm_jax.data.prepare.job import Job, differences, make_job
from xlstm_jax.data.prepare.notes import Notes
from xlstm_jax.data.prepare.order import (
    HASH_RANGE,
    REQUEST_VERSION,
    content_digest,
    place_documents,
    split_entry,
    split_threshold,
    write_index,
)
from xlstm_jax.data.prepare.pool import WorkerPool
from xlstm_jax.data.prepare.sources import list_files
from xlstm_jax.data.store.store import (
    INDEX_FILE,
    JOB_FILE,
    TOKENIZER_FOLDER,
    WORK_FOLDER,
    TokenStore,
    open_store,
    read_index,
)
from xlstm_jax.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from xlstm_jax.files import Lock, LockedError, check_space, remove_temporaries, write_array, write_json
from xlstm_jax.machine.cores import usable_cores
from xlstm_jax.machine.progress import Progress, clock

IN_PROCESS_BYTES = 1 << 22
IN_PROCESS_TRAINING_BYTES = 1 << 17
LOCK_FILE = ".lock"
MUCH_HELD_OUT = 0.2
"""Share of the bytes."""


def prepare(
    sources: str | Path | Sequence[str | Path],
    path: str | Path,
    config: PrepareConfig | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    task_bytes: int | None = None,
    say: Callable[[str], None] | None = None,
    **fields: Any,
) -> TokenStore:
    """Make a token store, go on with an unfinished one, or open the finished one if it is what is asked for.

    Args:
        sources: files, folders, globs, or the word `stdlib`; see `sources.list_files`.
        path: folder of the store.
        config: what the store shall be.
        workers: processes; None means one for each core this process may use.
        progress: show bars on a terminal.
        task_bytes: source bytes that a worker does at a time; None chooses.
        say: gets a sentence for each kind of thing that was left out; None writes them to standard error.
        fields: of `PrepareConfig`, in place of those of `config`: `prepare("books/", "stores/books", tokenizer="bpe")`.

    Raises:
        SourceError, TokenizerError, PrepareError: see there; each is a `ValueError`.
        WriteError: if the store cannot be written; a `DiskFullError` for want of room.
    """
    out = Path(path)
    try:
        config = dataclasses.replace(config or PrepareConfig(), **fields)
    except ConfigError as error:
        raise PrepareError(str(error)) from error
    workers = workers if workers is not None else usable_cores()
    if workers < 1:
        raise PrepareError(f"workers is {workers}, but must be >= 1")
    request = Request.of(sources, config, task_bytes, progress=progress)
    if (out / INDEX_FILE).is_file():
        return _open_equal(request, out, workers, progress)
    bars, say = Progress(progress, unit="bytes"), say or _to_stderr
    with _locked(out):
        job = _begin(request.job, out)
        folder = out / WORK_FOLDER
        with WorkerPool(folder, _processes(job, workers)) as pool:
            scanned = _scan(job, folder, pool, bars, request.notes)
            for sentence in request.notes.sentences():
                say(f"note: {sentence}")
            parted = _part(job, scanned)
            made = _make_tokenizer(job, folder, pool, request.tokenizer, scanned, parted, bars)
            _encode(job, folder, pool, made, scanned, parted, bars)
            splits = _merge(job, folder, pool, made, parted, bars)
        held_out = splits["validation"]["raw_bytes"] / sum(split["raw_bytes"] for split in splits.values())
        by_documents = not (job.holds_out or config.validation_tail)
        if by_documents and held_out > max(MUCH_HELD_OUT, 3 * config.validation_fraction):
            say(
                f"note: {held_out:.0%} of the text is held out, because documents are held out whole and are few here; "
                "`separator` cuts files into more, `validation` names files to hold out"
            )
        made.save(out / TOKENIZER_FOLDER)
        write_index(out, job, splits, made, content_digest(scanned))
    shutil.rmtree(folder)
    return open_store(out)


def prepare_beside(
    sources: Sequence[str], path: Path, config: PrepareConfig, say: Callable[[str], None] | None = None
) -> TokenStore:
    """`prepare` for a folder whose name nobody chose: if a store of other documents has it, one beside it is made."""
    if (path / INDEX_FILE).is_file():
        request = Request.of(sources, config)
        differing, content = request.compare(path, usable_cores(), progress=True)
        if differing:
            beside = path.with_name(f"{path.name}-{(content or request.job.files_key())[:8]}")
            (say or _to_stderr)(f"note: {', '.join(sources)} changed since {path} was made of it: taking {beside}")
            path = beside
    return prepare(sources, path, config, say=say)


def has_changed(sources: Sequence[str], path: Path, config: PrepareConfig) -> bool:
    """Whether the sources would give a store of other documents than the finished one that was made of them; False
    where they are there no more."""
    try:
        return bool(Request.of(sources, config).compare(path, usable_cores(), progress=True)[0])
    except SourceError:
        return False


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


# -- the request -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: files and settings, and the tokenizer if it is there already."""

    job: Job
    tokenizer: Tokenizer | None
    notes: Notes
    """What was left out when files were looked for."""

    @classmethod
    def of(
        cls,
        sources: str | Path | Sequence[str | Path],
        config: PrepareConfig,
        task_bytes: int | None = None,
        *,
        progress: bool = True,
    ) -> Request:
        """List the files, load the tokenizer."""
        given, notes = _given_tokenizer(config), Notes()
        listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
        with clock("looking for text", terminal_only=True) if progress else contextlib.nullcontext():
            files = list_files(listed, config, notes)
        job = make_job(files, config, _tokenizer_name(given), task_bytes)
        return cls(job, given, notes)

    def compare(self, out: Path, workers: int, progress: bool) -> tuple[str, str]:
        """In what this differs from the request of a finished store (empty if it would give the same one), and the
        digest of the documents, if it was needed."""
        found = read_index(out)
        request, job = found["request"], self.job
        differing, digest = differences(job.settings, request["settings"]), ""
        old = request.get("version", 1) < REQUEST_VERSION and not found["splits"]["validation"]["documents"]
        if job.files_key() != request["files_key"] or old:
            # Files were moved or written to; their content decides.
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                job.write(folder)
                with WorkerPool(folder, _processes(job, workers)) as pool:
                    scanned = _scan(job, folder, pool, Progress(progress, unit="bytes"), self.notes)
            digest = content_digest(scanned)
            if not differing:
                differing = differences({"documents": digest[:12]}, {"documents": request["content"][:12]})
            if not differing and old and _part(job, scanned).tail:
                differing = "held-out text (asked for the last part of the document, there none)"
        return differing, digest


def _given_tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """The tokenizer to use; None if one is to be trained."""
    if config.tokenizer == "bpe":
        return None
    given = load_tokenizer(config.tokenizer, eod=config.eod, drop_normalizer=config.drop_normalizer)
    if config.vocab_size not in (None, given.vocab_size):
        raise PrepareError(
            f"vocab_size is {config.vocab_size}, but the tokenizer {config.tokenizer!r} has {given.vocab_size} ids; "
            "vocab_size is for the tokenizer 'bpe', which is trained"
        )
    return given


def _tokenizer_name(given: Tokenizer | None) -> str:
    if given is None:
        return "bpe"
    return "bytes" if isinstance(given, ByteTokenizer) else given.fingerprint


def _processes(job: Job, workers: int) -> int:
    """How many processes to start; 0 means that what little there is to do is done in this one."""
    count = min(workers, len(job.tasks))
    size = sum(file.size for file in job.files)
    # The library does not hear Ctrl-C while it trains a tokenizer, but a process can be ended.
    little = IN_PROCESS_TRAINING_BYTES if job.settings["tokenizer"] == "bpe" else IN_PROCESS_BYTES
    return 0 if count == 1 and size < little else count


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One preparation a folder at a time; the lock goes with the process that holds it."""
    if out.exists() and not out.is_dir():
        raise PrepareError(f"{out} is a file, but must be the folder of the store")
    if out.is_dir() and not (out / INDEX_FILE).exists() and not (out / WORK_FOLDER / JOB_FILE).exists():
        # A work folder that is empty was made just before a kill.
        other = next((p.name for p in out.iterdir() if p.name != LOCK_FILE and not _is_empty_work(p)), None)
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


def _is_empty_work(path: Path) -> bool:
    return path.name == WORK_FOLDER and path.is_dir() and all(inner.suffix == ".tmp" for inner in path.iterdir())


def _begin(job: Job, out: Path) -> Job:
    """Write the job down, or take up the unfinished one if it is the same; begin again if that is of the same files
    before they were written to, or was only reading (as one that was refused for a file in it)."""
    folder = out / WORK_FOLDER
    remove_temporaries(out)
    if not (folder / JOB_FILE).is_file():
        folder.mkdir(exist_ok=True)
        job.write(folder)
        return job
    remove_temporaries(folder)
    found = Job.read(folder)
    was_reading = found.files_key() != job.files_key() and not _has_work(folder)
    if found.settings == job.settings and (job.is_edited(found) or was_reading):
        # What is there is of no use, or soon made again, and asking would only send the user to delete it.
        for path in out.iterdir():
            if path.name != LOCK_FILE:
                (shutil.rmtree if path.is_dir() else os.unlink)(path)
        folder.mkdir()
        job.write(folder)
        return job
    differing = differences(_request(job), _request(found))
    if differing:
        raise PrepareError(
            f"{out} holds an unfinished preparation of another request, which differs in {differing}; "
            "delete it or choose another folder"
        )
    return found


def _has_work(folder: Path) -> bool:
    return any(folder.glob("tokens-*")) or (stages.tokenizer_path(folder) / "finished").exists()


def _request(job: Job) -> dict[str, Any]:
    return job.settings | {"sources": job.files_key()[:12]}


def _open_equal(request: Request, out: Path, workers: int, progress: bool) -> TokenStore:
    """The finished store, if this request would make the same one."""
    differing, _ = request.compare(out, workers, progress)
    if differing:
        raise PrepareError(
            f"{out} holds a store of another request, which differs in {differing}; delete it or choose another folder"
        )
    # A process that was killed after it had written the index leaves its work behind.
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return open_store(out)


# -- the work ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parted:
    """What parts training and validation: documents whose split hash is below `threshold` are held out; if `tail` is
    not 0, that share of the end of each document."""

    threshold: int
    tail: float = 0.0


def _part(job: Job, scanned: np.ndarray) -> Parted:
    fraction = job.config.validation_fraction
    if job.holds_out:
        if not (scanned["split"] == stages.HELD_OUT).any():
            raise SourceError("the sources of validation hold no text")
        return Parted(1)
    if job.config.validation_tail:
        return Parted(1, job.config.validation_tail)
    threshold = split_threshold(scanned["split"], fraction)
    # One document (or copies of one) cannot be held out as a whole.
    return Parted(1, fraction) if fraction and not threshold else Parted(threshold)


def _task_works(job: Job, name: str, **arguments: Any) -> list[tuple[dict[str, Any], int]]:
    return [({"do": name, "task": task} | arguments, job.task_bytes(task)) for task in range(len(job.tasks))]


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


def _scan(job: Job, folder: Path, pool: WorkerPool, bars: Progress, notes: Notes) -> np.ndarray:
    _run_missing(pool, bars, "reading", _task_works(job, "scan"), lambda w: stages.scan_path(folder, w["task"]))
    for task in range(len(job.tasks)):
        notes.update(json.loads(stages.notes_path(folder, task).read_bytes()))
    scanned = np.concatenate([np.load(stages.scan_path(folder, task)) for task in range(len(job.tasks))])
    if not scanned.size:
        why = "; ".join(notes.sentences()) or f"{len(job.files)} files, all empty"
        raise SourceError(f"the sources hold no text: {why}")
    return scanned


def _make_tokenizer(
    job: Job,
    folder: Path,
    pool: WorkerPool,
    given: Tokenizer | None,
    scanned: np.ndarray,
    parted: Parted,
    bars: Progress,
) -> Tokenizer:
    path = stages.tokenizer_path(folder)
    if given is not None:
        given.save(path)
    elif not (path / "finished").exists():
        training, learnt = job.config.training_bytes, scanned[scanned["split"] >= parted.threshold]
        total = int(learnt["bytes"].sum())
        # At least one document, however long it is.
        limit = max(
            min(HASH_RANGE, HASH_RANGE * training // max(1, total)),
            int(learnt["order"].min(initial=HASH_RANGE - 1)) + 1,
        )
        work = {"do": "train", "threshold": parted.threshold, "limit": limit, "tail": parted.tail}
        with bars.bar("tokenizer", min(total, training)) as advance:
            pool.run([work], lambda _: None, advance)
        write_json(path / "finished", True)
    return load_tokenizer(path)


def _encode(
    job: Job,
    folder: Path,
    pool: WorkerPool,
    tokenizer: Tokenizer,
    scanned: np.ndarray,
    parted: Parted,
    bars: Progress,
) -> None:
    if isinstance(tokenizer, ByteTokenizer):
        # Two bytes a token, once as encoded and once as shard. What another tokenizer needs is known after encoding.
        done = sum(path.stat().st_size for path in folder.glob("tokens-*.bin"))
        check_space(folder, 4 * int(scanned["bytes"].sum()) - done, f"{folder} needs")
    works = _task_works(job, "encode", tail=parted.tail)
    _run_missing(pool, bars, "encoding", works, lambda w: stages.encoded_path(folder, w["task"]))


def _merge(
    job: Job, folder: Path, pool: WorkerPool, tokenizer: Tokenizer, parted: Parted, bars: Progress
) -> dict[str, dict[str, Any]]:
    dtype = stages.token_dtype(tokenizer.vocab_size)
    splits: dict[str, dict[str, Any]] = {}
    works: list[tuple[dict[str, Any], int]] = []
    for name, placed in place_documents(job, folder, parted.threshold).items():
        write_array(stages.placed_path(folder, name), placed)
        splits[name], cuts = split_entry(folder.parent, name, placed, job.config.shard_tokens)
        for shard, (first, last) in enumerate(itertools.pairwise(cuts)):
            arguments = {"split": name, "shard": shard, "first": first, "last": last, "closing": last == len(placed)}
            kind = {"eod": tokenizer.eod_id, "dtype": dtype.str}
            tokens = int(placed["tokens"][first:last].sum()) + last - first
            works.append(({"do": "merge"} | arguments | kind, tokens * dtype.itemsize))
    missing = [size for w, size in works if not stages.merged_path(folder, w["split"], w["shard"]).exists()]
    check_space(folder, sum(missing), f"{folder} needs")
    _run_missing(pool, bars, "writing", works, lambda w: stages.merged_path(folder, w["split"], w["shard"]))
    for w, _ in works:
        splits[w["split"]]["shards"].append(json.loads(stages.merged_path(folder, w["split"], w["shard"]).read_bytes()))
    return splits
