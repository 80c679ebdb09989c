"""Checkpoints of a run: written in the background, verified before use, never half there.

A checkpoint is the folder `STEP/` (eight digits) with the arrays in `state/PART/` (Orbax) and `manifest.json`. It is
written as `STEP.unfinished/`, and gets its name last, when the manifest is on the disk; so what has a name is complete
and what has none is ignored, and removed by the next writer. The parts are the top-level keys of the state: each can
be read, and verified, without the others.

Several processes write one checkpoint together, into a folder that all see: each its part of the arrays and the sums of
these files, and the leader everything else. They verify it together, too, each some of the files.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from xlstm_jax.distributed.processes import ALONE, Processes, Talk
from xlstm_jax.files import DiskFullError, check_space, free_in_words, held_folder, is_disk_full, sync_folder
from xlstm_jax.runs.errors import CheckpointError, DamagedCheckpointError, NoCheckpointError
from xlstm_jax.runs.manifest import (
    MANIFEST_NAME,
    STATE_FOLDER,
    Manifest,
    Sums,
    checked_extra,
    own_files,
    read_manifest,
    sums_of,
    write_manifest,
)
from xlstm_jax.runs.storage import AsyncWriter, bytes_needed, read_part
from xlstm_jax.runs.tree import Layout, Names, check_parts, layout, named_leaves, refuse

if TYPE_CHECKING:  # jaxtyping's PyTree brings JAX in
    from jaxtyping import PyTree

    State = Mapping[str, PyTree]
    """Named parts, each a pytree of arrays: `{"params": ..., "optimizer": ..., "step": ..., "key": ...}`."""

DAMAGED_FOLDER = "damaged"
_NAME = re.compile(r"\d{8,}")
_LEFTOVER = re.compile(r"\d{8,}\.(unfinished|deleted)")
T = TypeVar("T")
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY)
"""What a file system on a network may fail with once."""
PAUSE_SECONDS = 1.0
_READ_ATTEMPTS = 50
"""A reader starts over when the checkpoint that it chose is rotated away; each time there is a newer one."""


class Checkpoints:
    """The checkpoints in one folder.

    One writer at a time may hold it (see `RunFolder.lock`); any number of readers (`read_only=True`) work beside it.
    They change nothing; a checkpoint that is being read is rotated away later, with the next one that is saved.

    Args:
        folder: made by the first save.
        keep: how many checkpoints stay; an older one goes when a newer one is complete and nobody reads the old one.
        read_only: never change anything in the folder.
        say: gets one sentence whenever a damaged checkpoint is passed over.
        processes: that write and read together, all of them the same calls with the same steps; one alone if not given.
        older_name: for checkpoints from before arrays were renamed: today's name of an array in its part, as
            `"0/mu/blocks_0_23/norm/scale"`, to the one that it had. An older array may also have a leading axis of one
            that today's has not.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 3,
        read_only: bool = False,
        say: Callable[[str], None] | None = None,
        processes: Processes = ALONE,
        older_name: Callable[[str], str] = str,
    ):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep is {keep!r}, but must be a whole number >= 1")
        self.folder = Path(folder)
        self.keep = keep
        self.read_only = read_only
        self._say = say or (lambda sentence: None)
        self._processes = processes
        self._older_name = older_name
        self._writer = AsyncWriter()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._landed: int | None = None
        self._cleaned = False

    # -- what is there ------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(int(p.name) for p in _entries(self.folder) if _NAME.fullmatch(p.name) and _complete(p))

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return max(self.steps(), default=None)

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    # -- writing ------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: State, extra: Mapping[str, Any] | None = None) -> None:
        """Start to save; returns once the arrays are copied, so that they may be donated.

        Waits for a save that is still going on, and raises what went wrong with it.

        Args:
            step: beyond that of every checkpoint that is there.
            state: named parts, each a pytree of arrays.
            extra: what JSON can hold, kept in the manifest.

        Raises:
            DiskFullError: if the disk has too little space.
            CheckpointError: if the state or the step cannot be saved, or the save before failed.
        """
        self._check_writable()
        self.wait()
        self._clean()
        check_parts(state)
        leaves = {part: named_leaves(part, tree) for part, tree in state.items()}
        arrays = {part: {n: layout(a) for n, a in named.items()} for part, named in leaves.items()}
        kept = checked_extra(extra)
        unfinished = self.folder / f"{step:08d}.unfinished"
        self._processes.agree(lambda: self._check_new(step, state))
        try:
            self._processes.agree(lambda: self._patiently(lambda: self._make(unfinished)))
            self._writer.start(unfinished / STATE_FOLDER, leaves)
        except BaseException as error:
            explained = self._explained(error, step)
            self._abandon(unfinished)
            if explained is error:
                raise
            raise explained from error
        self._thread = threading.Thread(
            target=self._finish,
            args=(step, unfinished, arrays, kept, self._processes.talk("checkpoint")),
            name=f"checkpoint-{step}",
        )
        self._thread.start()

    def _check_new(self, step: int, state: State) -> None:
        latest = self.latest_step()
        if step < 0 or (latest is not None and step <= latest):
            raise CheckpointError(
                f"nothing was saved at step {step}: {self.folder} already has a checkpoint of step {latest}"
                if step >= 0
                else f"nothing was saved: the step is {step}, but must be >= 0"
            )
        self.check_space(state)

    def _make(self, unfinished: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir(exist_ok=True)  # `_clear` has removed what was left from before

    @property
    def may_fail(self) -> bool:
        """Whether another save can be tried after one that has failed. Several processes are then no longer at the same
        point: they must end."""
        return self._processes.count == 1

    def landed(self, step: int) -> bool:
        """Whether the checkpoint of a step that was saved is complete, and still there."""
        return self._landed == step and (not self._processes.leader or self.latest_step() == step)

    def wait(self) -> None:
        """Wait until the save that is going on is complete.

        Raises:
            CheckpointError: what went wrong in the background (`DiskFullError` for a full disk).
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """`wait`, and end the threads of Orbax. To be called before the program ends."""
        try:
            self.wait()
        finally:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(
        self, step: int, unfinished: Path, arrays: dict[str, dict[Names, Layout]], extra: dict, talk: Talk
    ) -> None:
        """The background half of a save: sums, manifest, name, rotation."""
        try:
            self._writer.finish()
            sums: Sums = {}
            if self._processes.count > 1:
                for theirs in talk.gather(
                    list(sums_of(unfinished, own_files(unfinished, self._processes.index)).items())
                ):
                    sums |= {path: (size, digest) for path, (size, digest) in theirs}

            def complete() -> None:
                manifest = write_manifest(unfinished, step, arrays, extra, sums)
                for part, layouts in arrays.items():
                    stored = f"{STATE_FOLDER}/{part}/"
                    if any(a.size for a in layouts.values()) and not any(f.startswith(stored) for f in manifest.files):
                        raise CheckpointError(f"nothing was saved for {part!r} at step {step}")
                if unfinished.exists() or not self.path(step).exists():
                    os.rename(unfinished, self.path(step))
                sync_folder(self.folder)

            talk.agree(lambda: self._patiently(complete))
            self._landed = step
            if self._processes.leader:
                self._rotate()
        except BaseException as error:
            self._error = self._explained(error, step)
            self._processes.tell_failure(str(self._error))  # they wait for this one
            self._abandon(unfinished)
            if self._error is not error:
                self._error.__cause__ = error

    def _rotate(self) -> None:
        for step in self.steps()[: -self.keep]:
            with held_folder(self.path(step), alone=True) as free:
                if not free:
                    continue  # somebody reads it; the next rotation takes it along
                # The name goes first: a reader must find a whole checkpoint or none.
                doomed = self.folder / f"{step:08d}.deleted"
                os.rename(self.path(step), doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _abandon(self, unfinished: Path) -> None:
        """Drop what a failed save has written, and the writer that may be left in any state."""
        try:
            self._writer.close()
        except Exception:  # the error that led here is the one to tell
            self._writer = AsyncWriter()
        if self._processes.count == 1:  # else the others may be writing to it: the next start removes it
            shutil.rmtree(unfinished, ignore_errors=True)

    def _explained(self, error: BaseException, step: int) -> BaseException:
        if isinstance(error, CheckpointError) or not isinstance(error, Exception):
            return error
        if is_disk_full(error):
            return DiskFullError(
                f"the checkpoint of step {step} was not saved: the disk of {self.folder} is full "
                f"({free_in_words(self.folder)}; earlier checkpoints are untouched)"
            )
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" [tensorstore_spec=")[0]
        if not (self.folder / f"{step:08d}.unfinished").exists():
            reason = "it was removed while it was being written"
        return CheckpointError(f"the checkpoint of step {step} was not saved in {self.folder}: {reason}")

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call once more, a moment later, if the file system fails."""
        try:
            return call()
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            if cause.errno not in PASSING:
                raise
            self._say(f"note: the file system of {self.folder} failed ({cause.strerror}); it is tried once more")
            time.sleep(PAUSE_SECONDS)
            return call()

    def _check_writable(self) -> None:
        if self.read_only:
            raise CheckpointError(f"{self.folder} was opened for reading only")

    def _clean(self) -> None:
        """Once, before the first change: remove what killed writers have left."""
        if self._cleaned:
            return
        self._cleaned = True
        self._processes.agree(self._clear)

    def _clear(self) -> None:
        for entry in _entries(self.folder):
            if _LEFTOVER.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)
            elif _NAME.fullmatch(entry.name) and not _complete(entry):
                # It was complete once, or it would not have this name.
                self._set_aside(entry, f"{entry / MANIFEST_NAME} is missing")

    # -- space --------------------------------------------------------------------------------------------------------

    def check_space(self, state: State, count: int = 1) -> None:
        """See that `count` more checkpoints of `state` fit on the disk.

        Before training, `count = keep + 1 - len(steps())` is what the run will hold at most.

        Raises:
            DiskFullError: with the space that is needed and the space that is free.
        """
        what = "a checkpoint needs" if count == 1 else f"{count} checkpoints need"
        check_space(self.folder, bytes_needed(state) * max(count, 0), what)

    # -- reading ------------------------------------------------------------------------------------------------------

    def restore(self, target: State, step: int | None = None) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """The newest good checkpoint in the structure of `target`.

        A damaged one is passed over with a sentence to `say` (and moved to `damaged/` by a writer).

        Args:
            target: abstract (or concrete) arrays with the same parts, names, shapes and dtypes. An abstract array's
                `sharding`, if it has one, says where it goes; the others go to the default device.
            step: that checkpoint and no other.

        Returns:
            (step, state, extra)

        Raises:
            NoCheckpointError: if there is none, or none is good.
            DamagedCheckpointError: if `step` was asked for and is damaged.
            StateMismatchError: naming the arrays that do not fit; nothing is restored in part.
        """
        check_parts(target)
        return self._read(dict(target), None, step)

    def restore_part(
        self, part: str, target: PyTree | None = None, step: int | None = None, *, any_float: bool = False
    ) -> tuple[int, Any, dict[str, Any]]:
        """One part of the newest good checkpoint; only its files are verified and read.

        Args:
            part: its name, as `"params"`.
            target: as in `restore`; without one the part comes as nested dicts of arrays.
            step: that checkpoint and no other.
            any_float: floating-point numbers may be of another width than in `target`; they come as they were saved.

        Returns:
            (step, part, extra)
        """
        step, state, extra = self._read({part: target}, [part], step, any_float=any_float)
        return step, state[part], extra

    def manifest(self) -> Manifest:
        """What the newest complete checkpoint consists of; no file of it is verified.

        Raises:
            NoCheckpointError: if there is none.
            DamagedCheckpointError: if its manifest is damaged.
        """
        step = self.latest_step()
        if step is None:
            raise NoCheckpointError(self._none_yet())
        return read_manifest(self.path(step))

    def verified(self, step: int | None = None) -> tuple[int, Path]:
        """(step, folder) of the newest good checkpoint, all its files verified."""
        self._before_reading()

        def once() -> tuple[int, Path]:
            with ExitStack() as held:
                return self._find(step, None, held)[:2]

        return self._retry(once)

    def _read(
        self, targets: dict[str, Any], parts: list[str] | None, step: int | None, *, any_float: bool = False
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        self._before_reading()

        def once() -> tuple[int, dict[str, Any], dict[str, Any]]:
            with ExitStack() as held:
                found, folder, manifest = self._find(step, parts, held)
                problems = [f"there is no {part!r}" for part in targets if part not in manifest.arrays]
                if parts is None:
                    problems += [f"{part!r} is not wanted" for part in manifest.arrays if part not in targets]
                refuse(folder, problems)
                try:
                    stored = folder / STATE_FOLDER
                    how: dict[str, Any] = {"any_float": any_float, "older_name": self._older_name}
                    state = {p: read_part(stored, p, manifest.arrays[p], t, **how) for p, t in targets.items()}
                except CheckpointError:
                    raise
                except Exception as error:
                    if not folder.exists():
                        raise _RotatedAwayError from error
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise CheckpointError(f"{folder} cannot be restored: {reason}") from error
                return found, state, manifest.extra

        return self._retry(once)

    def _before_reading(self) -> None:
        if not self.read_only:
            self.wait()
            self._clean()

    def _retry(self, once: Callable[[], Any]) -> Any:
        for _ in range(_READ_ATTEMPTS):
            try:
                return once()
            except _RotatedAwayError:
                continue
        raise CheckpointError(f"the checkpoints in {self.folder} are replaced faster than they can be read")

    def _find(self, step: int | None, parts: Iterable[str] | None, held: ExitStack) -> tuple[int, Path, Manifest]:
        """The newest checkpoint (or the one of `step`) whose files for `parts` are good; `held` then holds it."""
        steps = self._processes.agree(self.steps)
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise NoCheckpointError(f"{self.folder} has no checkpoint of step {step} (there: {there})")
        if not steps:
            raise NoCheckpointError(self._none_yet())
        for candidate in reversed(steps) if step is None else [step]:
            folder = self.path(candidate)
            if not held.enter_context(held_folder(folder, alone=False)):
                raise _RotatedAwayError
            manifest, problem = None, None
            try:
                manifest = read_manifest(folder)
                if manifest.step != candidate:
                    raise DamagedCheckpointError(f"{folder} holds the checkpoint of step {manifest.step}")
                manifest.check_files(folder, parts, share=(self._processes.index, self._processes.count))
            except DamagedCheckpointError as error:
                if not folder.exists():
                    raise _RotatedAwayError from error
                if step is not None:
                    raise
                problem = str(error)
            problem = next(filter(None, self._processes.gather(problem)), None)
            if manifest is not None and problem is None:
                return candidate, folder, manifest
            self._processes.agree(functools.partial(self._pass_over, folder, str(problem)))
        raise NoCheckpointError(f"none of the {len(steps)} checkpoints in {self.folder} is undamaged")

    def _none_yet(self) -> str:
        places = (self.folder, self.folder / DAMAGED_FOLDER)
        damaged = any(_NAME.fullmatch(entry.name) for place in places for entry in _entries(place))
        begin = f"`xlstm train {shlex.quote(str(self.folder.parent))}` goes on to its first save"
        return f"{self.folder} has no complete checkpoint{': all are damaged' if damaged else f' yet; {begin}'}"

    def _pass_over(self, folder: Path, reason: str) -> None:
        if self.read_only:
            self._say(f"{reason}, so the checkpoint {folder.name} is passed over")
        else:
            self._set_aside(folder, reason)

    def _set_aside(self, folder: Path, reason: str) -> None:
        shelf = self.folder / DAMAGED_FOLDER
        shelf.mkdir(exist_ok=True)
        place, count = shelf / folder.name, 1
        while place.exists():
            count += 1
            place = shelf / f"{folder.name}-{count}"
        os.rename(folder, place)
        sync_folder(self.folder)
        self._say(f"{reason}, so the checkpoint {folder.name} was moved to {place}")


class _RotatedAwayError(Exception):
    """The folder that was being read has gone."""


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise CheckpointError(f"{folder} is a file, but must be the folder of the checkpoints") from None


def _complete(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()
