"""`metrics.jsonl`: one JSON object a line, appended as training goes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from xlstm_jax.files import still_named, write_atomic, write_error
from xlstm_jax.runs.errors import DamagedRunError


class MetricsLog:
    """Appends records to a file of JSON lines and reads them back, also while another process appends.

    A line is written by one call to the kernel, so a killed writer leaves at most one torn line, the last one; readers
    leave it out and the next `append` removes it. JSON knows no NaN and no infinity: both are written as null.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._handle: int | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record (numbers, texts, lists, dicts; array scalars count as numbers).

        Raises:
            TypeError: for a value that JSON cannot hold, naming its key.
            WriteError: if it cannot be written; a `DiskFullError` for want of room.
        """
        line = json.dumps({str(k): _plain(v, str(k)) for k, v in record.items()}, allow_nan=False) + "\n"
        if self._handle is not None and not still_named(self._handle, self.path):
            self._write_again()
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._drop_torn_line()
        data = line.encode()
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise write_error(self.path, error) from error

    def read(self) -> list[dict[str, Any]]:
        """All complete records, oldest first; an empty list if there is no file yet.

        Raises:
            DamagedRunError: for a line (but a torn last one) that is not a JSON object.
        """
        return [record for record, _ in self._records(strict=True)]

    def cut_after(self, step: int) -> int:
        """Remove the records whose `"step"` lies beyond `step`, atomically; how many went.

        Lines that cannot be read go too: a run must be able to continue over them.
        """
        self.close()
        if not self.path.exists():
            return 0
        records = self._records(strict=False)
        kept = [line for record, line in records if not _beyond(record, step)]
        write_atomic(self.path, b"".join(line + b"\n" for line in kept))
        return len(records) - len(kept)

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _records(self, strict: bool) -> list[tuple[dict[str, Any], bytes]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        records = []
        # What follows the last line end is torn, or being written at this moment.
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records.append((record, line))
            elif strict:
                raise DamagedRunError(f"line {number} of {self.path} is not a JSON object: {line[:60]!r}")
        return records

    def _write_again(self) -> None:
        """Put back a file that somebody has removed or replaced: as long as it is open, it can be read."""
        assert self._handle is not None
        write_atomic(self.path, os.pread(self._handle, os.fstat(self._handle).st_size, 0))
        self.close()

    def _drop_torn_line(self) -> None:
        assert self._handle is not None
        size = os.fstat(self._handle).st_size
        if size == 0 or os.pread(self._handle, 1, size - 1) == b"\n":
            return
        data = self.path.read_bytes()
        os.ftruncate(self._handle, data.rfind(b"\n") + 1)


def _beyond(record: dict[str, Any], step: int) -> bool:
    at = record.get("step")
    return isinstance(at, (int, float)) and at > step


def _plain(value: Any, key: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        return _plain(value.item(), key)
    raise TypeError(f"the metric {key!r} is of type {type(value).__name__}, which a line of JSON cannot hold")
