"""Folders of published models: weights, config.json, tokenizer and the small files beside them, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import Tokenizer
from xlstm_jax.files import appearing_folder, bytes_in_words, read_json_object
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.formats import TITLES, detect, format_for, get_format
from xlstm_jax.hub.formats.base import ReadOptions, Weights, Written
from xlstm_jax.hub.kept import CONFIG_FILE, GENERATION_FILE, Kept, Record, json_bytes
from xlstm_jax.hub.mapping import tensors_from_params
from xlstm_jax.hub.safetensors_files import SHARD_BYTES, StoredTensor, open_tensors, write_tensors
from xlstm_jax.hub.tokenizers import tokenizer_files
from xlstm_jax.models.language_model import LanguageModelConfig

Say = Callable[[str], None]


@dataclass
class Source:
    """A published model, opened: nothing but headers and small files has been read."""

    path: Path
    format: str
    document: dict[str, Any]
    """config.json."""
    tensors: dict[str, StoredTensor]

    @property
    def title(self) -> str:
        """Of the format, for people."""
        return TITLES[self.format]

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, options: ReadOptions | None = None) -> Weights:
        """The model and its parameters; see `Format.read`."""
        weights = get_format(self.format).read(self.document, self.tensors, options or ReadOptions())
        weights.record.format = self.format
        return weights


def open_source(path: str | Path, *, format: str | None = None, config: str | Path | None = None) -> Source:
    """Open a folder of a published model, or its one safetensors file.

    Args:
        path: the folder or file.
        format: name of the format; told from config.json if None.
        config: the config's file; the config.json beside the weights if None.

    Raises:
        WeightsError: if a file is missing or damaged.
        ConfigError: if the config cannot be used, or is of no known format.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"there is no file or folder {path}")
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG_FILE if config is None else Path(config)
    if not file.is_file():
        raise WeightsError(f"{file} is missing, which says what model the weights are of")
    document = read_json_object(file, WeightsError)
    return Source(path, detect(document, format), document, open_tensors(path))


def write_huggingface(
    out: Path,
    config: LanguageModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    kept: Kept | None = None,
    *,
    weight_mode: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    say: Say = lambda sentence: None,
) -> None:
    """Write a model as a folder that transformers loads. It appears complete or not at all.

    Args:
        out: the folder, which must not be there yet.
        kept: what came along when these weights, or those that they were trained from, were read from such a folder.
        weight_mode: "single" or "fused" (xlstm alone); None: as it was in that folder, else "single".
        dtype: of the tensors; None keeps that of each parameter.
        shard_bytes: values in one file, at most.
        say: gets notes for the user.

    Raises:
        ConfigError: for a model that the format cannot express.
        ExistsError, DiskFullError: if `out` is there already, or the disk is too small.
    """
    kept = kept or Kept()
    format, written = written_as(config, kept.record, weight_mode)
    tensors = tensors_from_params(written.entries, config, params, dtype)
    recorded = kept.config(format)
    document = recorded | written.document | _dtypes(recorded, {tensor.dtype for tensor in tensors.values()})
    if not recorded and tokenizer is not None:
        document |= {f"{name}_token_id": tokenizer.eod_id for name in ("bos", "eos", "pad")} | written.with_tokenizer
    files = {name: content for name, content in kept.files.items() if recorded and name != CONFIG_FILE}
    files |= tokenizer_files(tokenizer, files) | {CONFIG_FILE: json_bytes(document)}
    if GENERATION_FILE not in files:
        generation = {k: document[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in document}
        files[GENERATION_FILE] = json_bytes({"_from_model_config": True} | generation)
    needed = sum(tensor.nbytes for tensor in tensors.values()) + sum(map(len, files.values())) + 512 * len(tensors)
    for note in written.notes:
        say(f"note: {note}")
    say(f"disk: {out} needs {bytes_in_words(needed)}")
    with appearing_folder(out, needed) as draft:
        write_tensors(draft, tensors, shard_bytes)
        for name, content in files.items():
            (draft / name).write_bytes(content)


def written_as(
    config: LanguageModelConfig, record: Record | None = None, weight_mode: str | None = None
) -> tuple[str, Written]:
    """(name of the format, how a model of ours is written in it), without its parameters.

    Args:
        record: of the folder that its weights were read from.
        weight_mode: see `write_huggingface`.

    Raises:
        ConfigError: for a model that no format can express, naming the fields.
        WeightsError: for a `weight_mode` that the format does not have.
    """
    record = record or Record()
    format = format_for(config, record.format)
    write = get_format(format).write
    assert write is not None
    return format, write(config, replace(record, weight_mode=weight_mode or record.weight_mode))


def _dtypes(recorded: Mapping[str, Any], dtypes: set[np.dtype]) -> dict[str, Any]:
    """What config.json says about dtypes. Its older name is kept where it was used."""
    name = max(dtypes, key=lambda dtype: dtype.itemsize).name
    if len(dtypes) > 1 and recorded.get("torch_dtype", recorded.get("dtype")) in {dtype.name for dtype in dtypes}:
        return {}
    values = {"torch_dtype" if "torch_dtype" in recorded and "dtype" not in recorded else "dtype": name}
    if not recorded:
        values |= {"autocast_kernel_dtype": name, "inference_state_dtype": "float32"}
    return values


def parse_size(text: str) -> int:
    """`"5GB"`, `"200MB"`, `"1e9"` -> bytes (powers of 1000, as transformers counts).

    Raises:
        ConfigError: for anything else.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1, "": 1}
    plain = text.strip().upper()
    unit = next(u for u in units if plain.endswith(u))
    try:
        size = int(float(plain.removesuffix(unit)) * units[unit])
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ConfigError(f"the size is {text!r}, but must be as 5GB or 200MB")
    return size
