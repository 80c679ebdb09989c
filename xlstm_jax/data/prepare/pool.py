"""Worker processes for a preparation.

Each is a fresh interpreter that reads one JSON line of work from its standard input and answers with lines: how far it
is, and last that it is done. What it makes goes to files. Nothing is forked (a forked JAX or tokenizers process can
hang), the caller's main module is not run again, and when the caller is killed the workers read the end of their input
and leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xlstm_jax import files
from xlstm_jax.data import errors
from xlstm_jax.data.prepare.stages import Worker

Work = dict[str, Any]


class WorkerPool:
    """Does lists of work with `count` processes, or in this one if `count` is 0; a context manager."""

    def __init__(self, folder: Path, count: int):
        self._folder = folder
        self._local = Worker(folder) if count == 0 else None
        self._processes = [_start(folder) for _ in range(count)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    # Work may wait in the pipe that nobody will read any more.
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def run(
        self, works: Sequence[Work], done: Callable[[Work], None], advance: Callable[[int], None] | None = None
    ) -> None:
        """Do all of `works`, in any order; `done` is called here after each, `advance` with what work in hand reports.

        Raises:
            DataError, WriteError: the first error that one of `works` raised.
            RuntimeError: a worker died, or met something that is nobody's input.
        """
        if self._local is not None:
            for work in works:
                self._local.do(work, advance)
                done(work)
            return
        waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[Work, dict[str, Any]]] = queue.SimpleQueue()
        for work in works:
            waiting.put(work)
        for process in self._processes:
            threading.Thread(target=_drive, args=(process, waiting, answers), daemon=True).start()
        left = len(works)
        while left:
            work, answer = answers.get()
            if "error" in answer:
                kind: Any = getattr(errors, answer["error"], None) or getattr(files, answer["error"], RuntimeError)
                raise kind(answer["message"])
            if "advance" in answer:
                if advance is not None:
                    advance(answer["advance"])
                continue
            left -= 1
            done(work)


def _drive(process: subprocess.Popen, waiting: queue.SimpleQueue, answers: queue.SimpleQueue) -> None:
    while True:
        try:
            work = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            line = _ask(process, work)
            while line and "advance" in (answer := json.loads(line)):
                answers.put((work, answer))
                line = _answer(process)
        except (OSError, ValueError):
            line = b""
        if not line:
            message = f"a worker process ended (exit code {process.wait()}) during {work}; is there enough memory?"
            answers.put((work, {"error": "WorkerDied", "message": message}))
            return
        answers.put((work, json.loads(line)))


def _ask(process: subprocess.Popen, work: Work) -> bytes:
    """Hand `work` to a worker and wait for the first line that it answers; empty if it is gone."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(work).encode() + b"\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def _start(folder: Path) -> subprocess.Popen:
    # The child must find the same packages, also where the caller changed sys.path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", "from xlstm_jax.data.prepare.pool import serve; serve()", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,  # so that Ctrl-C reaches the caller alone, who ends its workers
    )


def serve() -> None:
    """What a worker process runs: answers lines of work for the folder named by its argument until they end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    worker: Worker | None = None

    def send(answer: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # the caller was killed: there is nobody to tell

    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        try:
            worker = worker or Worker(Path(sys.argv[1]))
            worker.do(json.loads(line), lambda size: send({"advance": size}))
            answer = {}
        except (errors.DataError, files.WriteError) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": "Unexpected", "message": f"{type(error).__name__} in a worker process: {error}"}
        send(answer)


def _leave_with(parent: int) -> None:
    """End this process when its caller has been killed, also in the middle of long work."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
