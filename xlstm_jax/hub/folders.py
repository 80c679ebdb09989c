"""Folders of published models: weights, config.json, tokenizer and the small files beside them, read and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import Tokenizer
from xlstm_jax.files import appearing_folder, bytes_in_words, read_json_object
from xlstm_jax.hub.errors import WeightsError, refuse
from xlstm_jax.hub.formats import TITLES, detect, format_for, get_format
from xlstm_jax.hub.formats.base import ReadOptions, Weights, Written, unwrapped
from xlstm_jax.hub.formats.document import remarks
from xlstm_jax.hub.kept import CONFIG_FILE, GENERATION_FILE, TOKENIZER_CONFIG, Kept, Record, json_bytes
from xlstm_jax.hub.mapping import FLOATS, NOT_FINITE, count_not_finite, not_finite_values, tensors_from_params
from xlstm_jax.hub.safetensors_files import SHARD_BYTES, StoredTensor, open_tensors, write_tensors
from xlstm_jax.hub.tokenizers import tokenizer_files
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.runs.folder import TokenizerInfo

Say = Callable[[str], None]

README_FILE = "README.md"
GENERATION: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": 256}
"""How `xlstm generate` continues a text where nothing is said, in the names of transformers."""

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass
class Source:
    """A published model, opened: nothing but headers and small files has been read."""

    path: Path
    format: str
    document: dict[str, Any]
    """config.json."""
    tensors: Mapping[str, StoredTensor]
    """By the names of the format."""
    notes: list[str] = field(default_factory=list)
    """What its user may not expect, a sentence each."""

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
        options = options or ReadOptions()
        weights = get_format(self.format).read(self.document, self.tensors, options)
        weights.record.format = self.format
        floats = {tensor.dtype.name for tensor in self.tensors.values() if tensor.dtype in FLOATS.values()}
        weights.notes += remarks(self.document, floats if options.dtype is None else ())
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
        if (folder / "adapter_config.json").is_file():
            raise WeightsError(f"{folder} holds an adapter, not a model: merge it into its model first")
        raise WeightsError(f"{file} is missing, which says what model the weights are of")
    document = read_json_object(file, WeightsError)
    notes: list[str] = []
    name, stored = detect(document, format), open_tensors(path, notes)
    tensors, note = unwrapped(stored, get_format(name).landmarks)
    return Source(path, name, document, tensors, notes if note is None else [*notes, note])


def write_huggingface(
    out: Path,
    config: LanguageModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    kept: Kept | None = None,
    *,
    info: TokenizerInfo | None = None,
    format: str | None = None,
    readme: str | None = None,
    weight_mode: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_nonfinite: bool = False,
    say: Say = lambda sentence: None,
) -> None:
    """Write a model as a folder of published weights. It appears complete or not at all.

    Args:
        out: the folder, which must not be there yet.
        kept: what came along when these weights, or those that they were trained from, were read from such a folder.
        info: the special tokens that the model expects.
        format: its name; None: that which the weights were read from, else the one of transformers.
        readme: the model card, README.md.
        weight_mode: "single" or "fused" (xlstm alone); None: as it was in that folder, else "single".
        dtype: of the tensors; None keeps that of each parameter.
        shard_bytes: values in one file, at most.
        allow_nonfinite: write values that are NaN or infinite with a note, rather than refuse them.
        say: gets notes for the user.

    Raises:
        ConfigError: for a model that the format cannot express.
        WeightsError: for values that are not finite, naming the tensors.
        ExistsError, DiskFullError: if `out` is there already, or the disk is too small.
    """
    kept, info = kept or Kept(), info or TokenizerInfo()
    format, written = written_as(config, kept.record, weight_mode, format)
    tensors = tensors_from_params(written.entries, config, params, dtype)
    recorded = kept.config(format)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    document = recorded | written.document | _dtypes(recorded, dtypes, written.dtype_names)
    files = {name: content for name, content in kept.files.items() if recorded and name != CONFIG_FILE}
    special = {} if tokenizer is None else _special_tokens(tokenizer, info)
    if not recorded and special and written.with_tokenizer is not None:
        document |= special | written.with_tokenizer
    elif tokenizer is not None and not set(_ids(special)) <= _declared(tokenizer, document, files):
        # Another token was named to end documents than those that its files know.
        files[GENERATION_FILE] = json_bytes(_object(files, GENERATION_FILE) | special)
    longest = config.context_length if isinstance(config, LlamaConfig) else None
    files |= tokenizer_files(tokenizer, files, None if recorded else info.bos_id, not recorded, longest)
    files[CONFIG_FILE] = json_bytes(document)
    if GENERATION_FILE not in files:
        ids = special or {k: document[k] for k in _TOKEN_IDS if k in document}
        files[GENERATION_FILE] = json_bytes(({} if recorded else GENERATION) | ids)
    if readme is not None:
        files[README_FILE] = readme.encode()
    needed = sum(tensor.nbytes for tensor in tensors.values()) + sum(map(len, files.values())) + 512 * len(tensors)
    for note in written.notes:
        say(f"note: {note}")
    say(f"disk: {out} needs {bytes_in_words(needed)}")
    broken: list[str] = []

    def look(name: str, values: np.ndarray) -> None:
        if count := count_not_finite(values):
            broken.append(not_finite_values(name, count))

    with appearing_folder(out, needed) as draft:
        write_tensors(draft, tensors, shard_bytes, look)
        if not allow_nonfinite:
            refuse(NOT_FINITE, broken)
        for sentence in broken:
            say(f"note: {sentence}")
        for name, content in files.items():
            (draft / name).write_bytes(content)


def written_as(
    config: LanguageModelConfig, record: Record | None = None, weight_mode: str | None = None, format: str | None = None
) -> tuple[str, Written]:
    """(name of the format, how a model of ours is written in it), without its parameters.

    Args:
        record: of the folder that its weights were read from.
        weight_mode, format: see `write_huggingface`.

    Raises:
        ConfigError: for a model that the format cannot express, naming the fields and the formats that can.
        WeightsError: for a `weight_mode` that the format does not have.
    """
    record = record or Record()
    name = format or format_for(config, record.format)
    # What was told of one format says nothing of another.
    record = record if name == record.format else Record()
    row = get_format(name)
    if row.write is None or not isinstance(config, row.holds):
        raise ConfigError(f"the format {name} does not hold a {type(config).__name__}{_others(config, name)}")
    try:
        return name, row.write(config, replace(record, weight_mode=weight_mode or record.weight_mode))
    except ConfigError as error:
        raise ConfigError(f"{error}{_others(config, name)}") from None


def _others(config: LanguageModelConfig, name: str) -> str:
    """The formats that hold a model which the format of that name does not, for an error."""
    others = []
    for other in TITLES:
        row = get_format(other)
        if other != name and row.write is not None and isinstance(config, row.holds):
            with suppress(ConfigError):
                row.write(config, Record())
                others.append(f"`--format {other}`")
    return f". It can be written with {' or '.join(others)}" if others else ""


def _dtypes(recorded: Mapping[str, Any], dtypes: set[np.dtype], names: tuple[str, ...]) -> dict[str, Any]:
    """What config.json says about dtypes. Its older name is kept where it was used."""
    name = max(dtypes, key=lambda dtype: dtype.itemsize).name
    if len(dtypes) > 1 and recorded.get("torch_dtype", recorded.get("dtype")) in {dtype.name for dtype in dtypes}:
        return {}
    used = [older for older in ("torch_dtype", "dtype") if names and older in recorded]
    return dict.fromkeys(used or (names[:1] if recorded else names), name)


def _special_tokens(tokenizer: Tokenizer, info: TokenizerInfo) -> dict[str, Any]:
    eod = tokenizer.eod_id
    ends = [eod, *info.stop_ids] if info.stop_ids else eod
    return {"bos_token_id": eod if info.bos_id is None else info.bos_id, "eos_token_id": ends, "pad_token_id": eod}


def _declared(tokenizer: Tokenizer, document: Mapping[str, Any], files: Mapping[str, bytes]) -> set[int]:
    """The tokens that files from elsewhere say to end a text, as far as a run takes them from there."""
    token = _object(files, TOKENIZER_CONFIG).get("eos_token", tokenizer.eod_text)
    text = token.get("content") if isinstance(token, dict) else token
    own = {tokenizer.eod_id} if text == tokenizer.eod_text else set()
    return {*_ids(document), *_ids(_object(files, GENERATION_FILE)), *own}


def _ids(document: Mapping[str, Any]) -> list[int]:
    ends = document.get("eos_token_id")
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return json.loads(files[name]) if name in files else {}


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
