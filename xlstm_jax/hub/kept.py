"""What a run keeps of the folder that its weights were read from, so that it can become such a folder again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xlstm_jax.config import from_json, to_json
from xlstm_jax.data.tokenizers import TOKENIZER_FILE
from xlstm_jax.files import read_json_object
from xlstm_jax.hub.errors import WeightsError

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
RECORD_FILE = "format.json"

OF_TOKENIZER = (
    *(TOKENIZER_CONFIG, SPECIAL_TOKENS),
    *("added_tokens.json", "chat_template.jinja", "merges.txt", "vocab.json", "tokenizer.model"),
)
CARRIED = (CONFIG_FILE, GENERATION_FILE, *OF_TOKENIZER)
"""Small files that come along unchanged, where they are there."""


@dataclass
class Record:
    """What the model does not show of the files that it was read from."""

    format: str | None = None
    weight_mode: str | None = None
    """Of the format xlstm: "single" or "fused"."""
    recurrent_layout: Literal["vanilla", "cuda"] | None = None
    """Of the sLSTM, in the format xlstm-package."""
    stored_head: bool = False
    """Whether there was a tensor for the head, which may be tied."""

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in a file; the default if it is not there.

        Raises:
            WeightsError, ConfigError: if it is damaged.
        """
        data = read_json_object(path, WeightsError) if path.exists() else {}
        data.pop("opening_id", None)  # once here, now in the run's tokenizer_info.json
        return from_json(cls, data, str(path))


@dataclass
class Kept:
    """The small files that came along, and the record of the rest."""

    files: dict[str, bytes] = field(default_factory=dict)
    record: Record = field(default_factory=Record)

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """What `write` left in a folder; nothing if it is not there.

        Raises:
            WeightsError, ConfigError: if the record is damaged.
        """
        if not folder.is_dir():
            return cls()
        files = carried_files(folder)
        if (folder / TOKENIZER_FILE).is_file():
            files[TOKENIZER_FILE] = (folder / TOKENIZER_FILE).read_bytes()
        for name in files:
            if name.endswith(".json"):
                read_json_object(folder / name, WeightsError)
        return cls(files, Record.read(folder / RECORD_FILE))

    def write(self, folder: Path) -> None:
        """Make the folder."""
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        (folder / RECORD_FILE).write_bytes(json_bytes(to_json(self.record)))

    def config(self, format: str) -> dict[str, Any]:
        """The config.json that came along, if it is of that format."""
        if self.record.format != format or CONFIG_FILE not in self.files:
            return {}
        return json.loads(self.files[CONFIG_FILE])


def carried_files(folder: Path, tokenizer: bool = True) -> dict[str, bytes]:
    """The content of the small files that come along, by name; `tokenizer`: also of those around the tokenizer."""
    names = [name for name in CARRIED if tokenizer or name not in OF_TOKENIZER]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """JSON as files of Hugging Face have it."""
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"
