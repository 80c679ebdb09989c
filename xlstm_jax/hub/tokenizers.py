"""Tokenizers as they lie beside published weights: which it is, what opens a text, and the files for one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_jax.data.errors import NoEndOfDocumentError, NormalizerError, TokenizerError
from xlstm_jax.data.tokenizers import (
    TOKENIZER_FILE,
    ByteLevelTokenizer,
    ByteTokenizer,
    Tokenizer,
    byte_vocabulary_json,
    load_tokenizer,
)
from xlstm_jax.files import read_json_object
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.kept import SPECIAL_TOKENS, TOKENIZER_CONFIG, json_bytes


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
            read_json_object(one, WeightsError)
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


def bos_token(folder: Path, document: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    """The token that the model expects before every text, where that is another than the EOD.

    It is the config's `bos_token_id`, if the config (`force_bos_token_insert`) or the tokenizer's files say that it is
    put there.
    """
    bos = document.get("bos_token_id")
    if type(bos) is not int or not 0 <= bos < tokenizer.vocab_size or bos == tokenizer.eod_id:
        return None
    added = document.get("force_bos_token_insert") is True
    settings = folder / TOKENIZER_CONFIG
    added |= settings.is_file() and read_json_object(settings, WeightsError).get("add_bos_token") is True
    processor = read_json_object(folder / TOKENIZER_FILE, WeightsError).get("post_processor") if not added else None
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
    data = read_json_object(file, WeightsError)
    added = {token["id"]: token["content"] for token in data.get("added_tokens") or []}
    vocabulary = data["model"].get("vocab")
    if isinstance(vocabulary, dict):
        added = {number: text for text, number in vocabulary.items()} | added
    return added.get(token_id[0] if isinstance(token_id, list) and token_id else token_id)


def tokenizer_files(tokenizer: Tokenizer | None, files: Mapping[str, bytes]) -> dict[str, bytes]:
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
        made[TOKENIZER_CONFIG] = json_bytes(kind | special)
        made[SPECIAL_TOKENS] = json_bytes(special)
    return made
