"""Safetensors files, and folders of them, as lazily read tensors; and tensors as such files, one at a time.

A file is a length (8 bytes, little endian), a JSON header of that length and the values. The header gives each tensor's
dtype, shape and place. A larger model is cut into shards, and `model.safetensors.index.json` says which tensor is in
which. Nothing here trusts a file: its sizes, places and names are checked before a value is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from xlstm_jax.hub.errors import WeightsError, refuse

SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
SHARD_BYTES = 5_000_000_000
"""Values in one shard, at most; a larger tensor has a shard of its own."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: what the header says of it. No value is read before `read`, or `np.asarray`."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    path: Path
    start: int
    """Of its values, in bytes from the beginning of the file."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.read()
        return values if dtype is None else values.astype(dtype, copy=False)

    def read(self) -> np.ndarray:
        """The values, in memory of their own.

        They are read rather than mapped: pages of a mapped file stay in the process's memory when nobody needs them.

        Raises:
            WeightsError: if the file has become shorter, or cannot be read.
        """
        try:
            values = np.fromfile(self.path, np.uint8, self.nbytes, offset=self.start)
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if values.size != self.nbytes:
            raise WeightsError(f"{self.path} ends inside the tensor {self.name!r}: it has been cut off meanwhile")
        return values.view(self.dtype).reshape(self.shape)


def open_tensors(path: str | Path, notes: list[str] | None = None) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, or of a folder with one file or with shards and their index.

    Only headers are read. What is read is what the index names, else `model.safetensors`, else the one file that there
    is; other files with weights are left alone.

    Args:
        notes: gets a sentence on such files.

    Raises:
        WeightsError: if a file is missing, damaged or cut off, or the shards are not those of the index; it names all
            the files and tensors.
    """
    path = Path(path)
    if path.is_file():
        return _read_headers([path], f"{path} cannot be used")
    if not path.is_dir():
        raise WeightsError(f"there is no file or folder {path}")
    files, pickled = sorted(path.glob("*.safetensors")), sorted(p for p in path.iterdir() if p.suffix in _PICKLED)
    index = _index(path)
    if index is not None:
        tensors = _read_shards(index)
        read, why = {tensor.path for tensor in tensors.values()}, f"{index.name} names those that are"
    else:
        file = _single_file(path, files, pickled)
        tensors = _read_headers([file], f"{path} cannot be used")
        read, why = {file}, f"{file.name} is"
    weights = [file for file in pickled if file.name.startswith(("pytorch_model", "consolidated"))]
    others = [file.name for file in (*files, *weights) if file not in read]
    if notes is not None and others:
        notes.append(f"not read: {', '.join(others[:3])}{_and_more(others[2:])} ({why})")
    return tensors


def _index(folder: Path) -> Path | None:
    found, usual = sorted(folder.glob("*.safetensors.index.json")), folder / INDEX_NAME
    if len(found) > 1 and usual not in found:
        raise WeightsError(f"{folder} has several indices ({', '.join(i.name for i in found)}); which one holds?")
    return usual if usual in found else next(iter(found), None)


def _single_file(folder: Path, files: list[Path], pickled: list[Path]) -> Path:
    """The file with all tensors, in a folder without an index."""
    if not files:
        hint = f" ({pickled[0].name} can hold any program and is not read: save it as safetensors)" if pickled else ""
        raise WeightsError(f"{folder} has no *.safetensors file{hint}")
    if folder / SINGLE_NAME in files:
        return folder / SINGLE_NAME
    own = [file for file in files if file.name != ADAPTER_NAME]
    if not own:
        raise WeightsError(f"{folder} holds an adapter ({ADAPTER_NAME}), not a model: merge it into its model first")
    if len(own) > 1:
        raise WeightsError(
            f"{folder} has {len(own)} *.safetensors files ({own[0].name}, {own[1].name}, ...), but no {INDEX_NAME} "
            "that says which belong together"
        )
    return own[0]


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    what = f"{index.parent} cannot be used"
    content, problems = _json_object(_bytes(index), index, "it")
    refuse(what, problems)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        problems.append(f"{index} has no 'weight_map' from tensors' names to files' names")
        weight_map = {}
    refuse(what, problems)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not shard or Path(shard).name != shard:
            problems.append(f"{index.name} names the file {shard!r}, which is not in the folder")
        elif not (index.parent / shard).is_file():
            names = [name for name, file in weight_map.items() if file == shard]
            problems.append(f"{shard} is missing, which {index.name} names for {names[0]!r}{_and_more(names)}")
    refuse(what, problems)
    tensors = _read_headers([index.parent / shard for shard in shards], what)
    for name, shard in weight_map.items():
        if name not in tensors:
            problems.append(f"missing: {name}, which {index.name} says is in {shard}")
        elif tensors[name].path.name != shard:
            problems.append(f"misplaced: {name} is in {tensors[name].path.name}, but {index.name} says in {shard}")
    problems += [
        f"surplus: {tensor.path.name} holds {name}, which {index.name} does not name"
        for name, tensor in tensors.items()
        if name not in weight_map
    ]
    refuse(what, problems)
    return tensors


def _read_headers(paths: Iterable[Path], what: str) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for path in paths:
        for tensor in _read_header(path, problems):
            if tensor.name in tensors:
                problems.append(
                    f"duplicate: {tensor.name} is in {tensors[tensor.name].path.name} and in {path.name} as well"
                )
            tensors[tensor.name] = tensor
    refuse(what, problems)
    return tensors


def _read_header(path: Path, problems: list[str]) -> list[StoredTensor]:
    """The tensors that the file's header lists; what is wrong with the file goes to `problems`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8:
                problems.append(f"{path.name} has {size} bytes, too few for a safetensors file: it has been cut off")
                return []
            if length > min(size - 8, _MAX_HEADER):
                problems.append(
                    f"{path.name} has {size} bytes, but its header alone should have {length}: it is cut off, or no "
                    "safetensors file"
                )
                return []
            header = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    content, wrong = _json_object(header, path, "its header")
    problems += wrong
    content.pop("__metadata__", None)
    begin = 8 + length
    tensors, beyond = [], []
    for name, entry in content.items():
        tensor = _parse_entry(name, entry, path, begin, problems)
        if tensor is None:
            continue
        if tensor.start + tensor.nbytes > size:
            beyond.append(tensor)
        else:
            tensors.append(tensor)
    if beyond:
        last = max(beyond, key=lambda tensor: tensor.start + tensor.nbytes)
        others = f" (so do {len(beyond) - 1} more)" if len(beyond) > 1 else ""
        problems.append(
            f"{path.name}: {last.name} ends {last.start + last.nbytes - size} bytes after the end of the file{others}, "
            "which must have been cut off"
        )
    if wrong or len(tensors) < len(content):
        return tensors
    end, before = begin, "the header"
    for tensor in sorted(tensors, key=lambda t: (t.start, t.start + t.nbytes)):
        if tensor.start < end:
            problems.append(f"{path.name}: the values of {tensor.name} overlap those of {before}")
        elif tensor.start > end:
            problems.append(f"{path.name}: {tensor.start - end} bytes before {tensor.name} belong to no tensor")
        end, before = max(end, tensor.start + tensor.nbytes), tensor.name
    if end < size:
        problems.append(f"{path.name}: {size - end} bytes at its end belong to no tensor")
    return tensors


def _parse_entry(name: str, entry: Any, path: Path, begin: int, problems: list[str]) -> StoredTensor | None:
    place = f"{path.name}: {name}"
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
            raise TypeError
    except (TypeError, KeyError, ValueError):
        problems.append(f"{place} has no valid dtype, shape and data_offsets, but {json.dumps(entry)[:200]}")
        return None
    if dtype not in DTYPES:
        problems.append(f"{place} has the dtype {dtype!r}, which is none of {', '.join(DTYPES)}")
        return None
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - start != nbytes:
        problems.append(f"{place} of shape {shape} and dtype {dtype} takes {nbytes} bytes, but has {end - start}")
        return None
    return StoredTensor(name, shape, DTYPES[dtype], path, begin + start)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error


def _json_object(text: bytes, path: Path, what: str) -> tuple[dict[str, Any], list[str]]:
    """The object that `text` holds (`what`, in errors), and what is wrong with it: a name that stands twice would hide
    the first."""
    problems: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                problems.append(f"duplicate: {key} stands twice in {path.name}")
            seen[key] = value
        return seen

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        return {}, [f"{path.name} is damaged: {what} is not JSON"]
    if not isinstance(content, dict):
        return {}, [f"{path.name} is damaged: {what} is not a JSON object"]
    return content, problems


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


# -- writing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write. Its values are made when their turn comes, and not kept."""

    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path,
    tensors: Mapping[str, NewTensor],
    shard_bytes: int = SHARD_BYTES,
    look: Callable[[str, np.ndarray], None] = lambda name, values: None,
) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `shard_bytes` of values and their index, into a folder.

    One tensor is in memory at a time. The files come into being one after the other; see `files.appearing_folder`.

    Args:
        look: gets each tensor's name and values on the way.

    Raises:
        WeightsError: for a dtype that such files cannot hold, or values that are not as announced.
    """
    problems = [
        f"{name} has the dtype {t.dtype}, which safetensors does not know"
        for name, t in tensors.items()
        if np.dtype(t.dtype) not in _NAMES
    ]
    refuse(f"nothing was written to {folder}", problems)
    shards: list[dict[str, NewTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return [_write_file(folder / SINGLE_NAME, shards[0], look)]
    paths = [folder / f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for path, shard in zip(paths, shards, strict=True):
        _write_file(path, shard, look)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {name: path.name for path, shard in zip(paths, shards, strict=True) for name in sorted(shard)},
    }
    (folder / INDEX_NAME).write_bytes(json.dumps(index, indent=2).encode() + b"\n")
    return [*paths, folder / INDEX_NAME]


def _write_file(path: Path, tensors: Mapping[str, NewTensor], look: Callable[[str, np.ndarray], None]) -> Path:
    # Wide values first, so that all are aligned; readers that map the file count on it.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[np.dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors[name]
            values = np.asarray(tensor.values())
            if values.shape != tensor.shape or values.dtype != tensor.dtype:
                raise WeightsError(
                    f"{name} should have been {tensor.dtype}{list(tensor.shape)}, but its values are "
                    f"{values.dtype}{list(values.shape)}"
                )
            values = np.ascontiguousarray(values)
            look(name, values)
            file.write(values.reshape(-1).view(np.uint8).data)
            del values
    return path
