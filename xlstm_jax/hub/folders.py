"""Folders of published models: weights, config.json, tokenizer and the small files beside them, read and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import NoEndOfDocumentError, NormalizerError, TokenizerError
from xlstm_jax.data.tokenizers.base import TOKENIZER_FILE, ByteTokenizer, Tokenizer, load_tokenizer
from xlstm_jax.data.tokenizers.byte_level import ByteLevelTokenizer, byte_vocabulary_json
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.formats import Format, ReadOptions, Weights, detect, to_huggingface
from xlstm_jax.hub.safetensors_files import (
    SHARD_BYTES,
    StoredTensor,
    appearing_folder,
    open_tensors,
    write_synced,
    write_tensors,
)
from xlstm_jax.hub.tensor_map import tensors_from_params
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.runs.space import bytes_in_words

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
RECORD_FILE = "format.json"
"""What a run keeps of the folder that it was made from, beside the files below."""

OF_TOKENIZER = (
    *(TOKENIZER_CONFIG, SPECIAL_TOKENS),
    *("added_tokens.json", "chat_template.jinja", "merges.txt", "vocab.json", "tokenizer.model"),
)
CARRIED = (CONFIG_FILE, GENERATION_FILE, *OF_TOKENIZER)
"""Small files that come along unchanged, where they are there."""

Say = Callable[[str], None]


@dataclass
class Source:
    """A published model, opened: nothing but headers and small files has been read."""

    path: Path
    format: Format
    document: dict[str, Any]
    """config.json."""
    tensors: dict[str, StoredTensor]

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, options: ReadOptions | None = None) -> Weights:
        """The model and its parameters; see `Format.read`."""
        return self.format.read(self.document, self.tensors, options or ReadOptions())


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
    document = read_json_object(file)
    return Source(path, detect(document, format), document, open_tensors(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        WeightsError: if it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} is damaged: it holds a {type(data).__name__} instead of an object")
    return data


def carried_files(folder: Path, tokenizer: bool = True) -> dict[str, bytes]:
    """The content of the small files that come along, by name; `tokenizer`: also of those around the tokenizer."""
    names = [name for name in CARRIED if tokenizer or name not in OF_TOKENIZER]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers
# ---------------------------------------------------------------------------------------------------------------------


def read_tokenizer(folder: Path, document: Mapping[str, Any], eod: str | None = None) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a published model, with a note on what was changed about it.

    The token that ends documents is the one that is asked for, the `eos_token` of tokenizer_config.json, the evident
    one, or the config's `eos_token_id`, in this order.

    Raises:
        TokenizerError: if there is none, or it cannot give bytes back.
        WeightsError: if its files are damaged.
    """
    file, settings = folder / TOKENIZER_FILE, folder / TOKENIZER_CONFIG
    if not file.is_file():
        raise TokenizerError(f"{folder} holds no {TOKENIZER_FILE}")
    for one in (file, settings):
        # A tokenizer of another kind is left out with a note; one that cannot be read is a mistake to tell of.
        if one.is_file():
            read_json_object(one)
    notes: list[str] = []
    options: dict[str, Any] = {"eod": eod}
    while True:  # each of the two errors is mended once
        try:
            return load_tokenizer(file, **options), notes
        except NormalizerError:
            options["drop_normalizer"] = True
            notes.append(f"{file} normalises its text; here it does not, so that bytes come back as they are")
        except NoEndOfDocumentError:
            ending = _token_by_id(file, document.get("eos_token_id"))
            if ending is None:
                raise
            options["eod"] = ending


def opening_token(folder: Path, document: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    """The token that the model expects before every text, where that is another than the EOD.

    It is the config's `bos_token_id`, if the config (`force_bos_token_insert`) or the tokenizer's files say that it is
    put there.
    """
    bos = document.get("bos_token_id")
    if type(bos) is not int or not 0 <= bos < tokenizer.vocab_size or bos == tokenizer.eod_id:
        return None
    added = document.get("force_bos_token_insert") is True
    settings = folder / TOKENIZER_CONFIG
    added |= settings.is_file() and read_json_object(settings).get("add_bos_token") is True
    processor = read_json_object(folder / TOKENIZER_FILE).get("post_processor") if not added else None
    added |= bos in _special_ids(processor)
    return bos if added else None


def _special_ids(processor: Any) -> set[int]:
    """The ids that a post-processor puts around a text."""
    if not isinstance(processor, dict):
        return set()
    inner = [part for part in processor.get("processors") or [] if isinstance(part, dict)]
    own = {entry["SpecialToken"]["id"] for entry in processor.get("single") or [] if "SpecialToken" in entry}
    special = processor.get("special_tokens") or {}
    ids = {number for name in own if name in special for number in special[name].get("ids", [])}
    return ids.union(*map(_special_ids, inner))


def _token_by_id(file: Path, token_id: Any) -> str | None:
    data = read_json_object(file)
    added = {token["id"]: token["content"] for token in data.get("added_tokens") or []}
    vocabulary = data["model"].get("vocab")
    if isinstance(vocabulary, dict):
        added = {number: text for text, number in vocabulary.items()} | added
    return added.get(token_id[0] if isinstance(token_id, list) and token_id else token_id)


def _tokenizer_files(tokenizer: Tokenizer | None, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """tokenizer.json, and what transformers needs beside it where nothing came along."""
    if tokenizer is None:
        return {}
    if isinstance(tokenizer, ByteTokenizer):
        text = byte_vocabulary_json(tokenizer)
    else:
        assert isinstance(tokenizer, ByteLevelTokenizer)
        text = tokenizer.text
    made = {TOKENIZER_FILE: text.encode()}
    special = {"bos_token": tokenizer.eod_text, "eos_token": tokenizer.eod_text, "pad_token": tokenizer.eod_text}
    if TOKENIZER_CONFIG not in files:
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        made[TOKENIZER_CONFIG] = _json(kind | special)
        made[SPECIAL_TOKENS] = _json(special)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """What a run holds of the folder that it was made from."""

    files: dict[str, bytes] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """What `write` left in a folder; nothing if it is not there."""
        if not folder.is_dir():
            return cls()
        files = carried_files(folder)
        if (folder / TOKENIZER_FILE).is_file():
            files[TOKENIZER_FILE] = (folder / TOKENIZER_FILE).read_bytes()
        record = folder / RECORD_FILE
        return cls(files, read_json_object(record) if record.is_file() else {})

    def write(self, folder: Path) -> None:
        """Make the folder."""
        folder.mkdir()
        for name, content in self.files.items():
            write_synced(folder / name, content)
        write_synced(folder / RECORD_FILE, _json(self.record))

    def config(self, format: str) -> dict[str, Any]:
        """The config.json that came along, if it is of that format."""
        if self.record.get("format") != format or CONFIG_FILE not in self.files:
            return {}
        return json.loads(self.files[CONFIG_FILE])


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
        config, params: the model.
        tokenizer: its tokenizer, if there is one.
        kept: what came along when these weights, or those that they were trained from, were read from such a folder.
        weight_mode: "single" or "fused" (xlstm alone); None: as it was in that folder, else "single".
        dtype: of the tensors; None keeps that of each parameter.
        shard_bytes: values in one file, at most.
        say: gets notes for the user.

    Raises:
        ConfigError: for a model that the format cannot express.
        WeightsError: if `out` is there already, or the disk is too small.
    """
    kept = kept or Kept()
    mode = weight_mode or kept.record.get("weight_mode") or "single"
    format, ours, entries, notes = to_huggingface(config, mode, bool(kept.record.get("stored_head")))
    tensors = tensors_from_params(entries, config, params, dtype)
    recorded = kept.config(format)
    document = recorded | ours | _dtypes(recorded, {tensor.dtype for tensor in tensors.values()})
    if not recorded and tokenizer is not None:
        ids = {f"{name}_token_id": tokenizer.eod_id for name in ("bos", "eos", "pad")}
        document |= ids | ({"force_bos_token_insert": True} if format == "xlstm" else {})
    files = {name: content for name, content in kept.files.items() if recorded and name != CONFIG_FILE}
    files |= _tokenizer_files(tokenizer, files) | {CONFIG_FILE: _json(document)}
    if GENERATION_FILE not in files:
        generation = {k: document[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in document}
        files[GENERATION_FILE] = _json({"_from_model_config": True} | generation)
    needed = sum(tensor.nbytes for tensor in tensors.values()) + sum(map(len, files.values())) + 512 * len(tensors)
    for note in notes:
        say(f"note: {note}")
    say(f"disk: {out} needs {bytes_in_words(needed)}")
    with appearing_folder(out, needed) as draft:
        write_tensors(draft, tensors, shard_bytes)
        for name, content in files.items():
            write_synced(draft / name, content)


def _dtypes(recorded: Mapping[str, Any], dtypes: set[np.dtype]) -> dict[str, Any]:
    """What config.json says about dtypes. Its older name is kept where it was used."""
    name = max(dtypes, key=lambda dtype: dtype.itemsize).name
    if len(dtypes) > 1 and recorded.get("torch_dtype", recorded.get("dtype")) in {dtype.name for dtype in dtypes}:
        return {}
    values = {"torch_dtype" if "torch_dtype" in recorded and "dtype" not in recorded else "dtype": name}
    if not recorded:
        values |= {"autocast_kernel_dtype": name, "inference_state_dtype": "float32"}
    return values


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"


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
