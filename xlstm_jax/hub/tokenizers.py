"""Tokenizers as they lie beside published weights: which it is, what opens and ends a text, and the files for ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import NoEndOfDocumentError, NormalizerError, TokenizerError
from xlstm_jax.data.tokenizers import (
    TOKENIZER_FILE,
    ByteLevelTokenizer,
    ByteTokenizer,
    Tokenizer,
    byte_vocabulary_json,
    load_tokenizer,
    opening_template,
)
from xlstm_jax.files import read_json_object
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.kept import CONFIG_FILE, GENERATION_FILE, SPECIAL_TOKENS, TOKENIZER_CONFIG, json_bytes

NO_LIMIT = int(1e30)
"""What transformers writes for a model that takes texts of any length."""


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


def end_ids(
    folder: Path, document: Mapping[str, Any], tokenizer: Tokenizer, vocab_size: int
) -> tuple[tuple[int, ...], list[str]]:
    """(the tokens that end a text beside the EOD, notes on those that are left out)

    They are all that config.json, generation_config.json and the tokenizer's files declare. Left out are those that
    the model does not have, and those that are text where the tokenizer is not the one beside the weights.

    Raises:
        ConfigError: for what is no token's id.
    """
    generation = folder / GENERATION_FILE
    declared: dict[int, str] = {}
    for name, data in (
        (CONFIG_FILE, document),
        (GENERATION_FILE, read_json_object(generation, WeightsError) if generation.is_file() else {}),
    ):
        value = data.get("eos_token_id")
        for number in value if isinstance(value, list) else [] if value is None else [value]:
            if type(number) is not int:
                raise ConfigError(f"{name}: eos_token_id is {value!r}, but must be a token's id or a list of them")
            declared.setdefault(number, name)
    if (folder / TOKENIZER_FILE).is_file():
        ids = {text: number for number, text in _texts_by_id(folder / TOKENIZER_FILE).items()}
        for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
            file = folder / name
            token = read_json_object(file, WeightsError).get("eos_token") if file.is_file() else None
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str) and text in ids:
                declared.setdefault(ids[text], name)
    declared.pop(tokenizer.eod_id, None)
    notes, file = [], folder / TOKENIZER_FILE
    own = isinstance(tokenizer, ByteLevelTokenizer) and file.is_file() and tokenizer.text == file.read_text("utf-8")
    for number, name in list(declared.items()):
        if not 0 <= number < vocab_size:
            why = f"the model has the tokens 0 to {vocab_size - 1}"
        elif not own and number < tokenizer.vocab_size and tokenizer.token_bytes(number):
            why = f"it is the text {tokenizer.token_bytes(number)!r} in the tokenizer that was given"
        else:
            continue
        del declared[number]
        notes.append(f"{name} names the end token {number}, which is left out: {why}")
    return tuple(sorted(declared)), notes


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
    return _texts_by_id(file).get(token_id[0] if isinstance(token_id, list) and token_id else token_id)


def _texts_by_id(file: Path) -> dict[int, str]:
    return _texts(read_json_object(file, WeightsError))


def _texts(data: Mapping[str, Any]) -> dict[int, str]:
    """Id -> token of what a tokenizer.json holds, as far as that is of a known form."""
    added, model = data.get("added_tokens") or [], data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    texts = {number: text for text, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    return texts | {token["id"]: token["content"] for token in added if isinstance(token, dict)}


def tokenizer_files(
    tokenizer: Tokenizer | None,
    files: Mapping[str, bytes],
    bos_id: int | None = None,
    opens: bool = False,
    longest: int | None = None,
) -> dict[str, bytes]:
    """tokenizer.json, and what transformers needs beside it where nothing came along.

    Args:
        files: what came along.
        bos_id: the token that opens a text; the EOD if None.
        opens: let the tokenizer put that token before every text, unless it says itself what it puts there.
        longest: tokens that the model takes at most, if there is a limit.
    """
    if tokenizer is None:
        return {}
    if isinstance(tokenizer, ByteTokenizer):
        text = byte_vocabulary_json(tokenizer)
    else:
        assert isinstance(tokenizer, ByteLevelTokenizer)
        text = tokenizer.text
    data = json.loads(text)
    eod, texts = tokenizer.eod_text, _texts(data)
    bos_id = bos_id if bos_id in texts else tokenizer.eod_id
    bos = texts.get(bos_id, eod)
    if opens and data.get("post_processor") is None:
        text = json.dumps(data | {"post_processor": opening_template(bos, bos_id)}, ensure_ascii=False, indent=2)
    made = {TOKENIZER_FILE: text.encode()}
    special = {"bos_token": bos, "eos_token": eod, "pad_token": eod}
    if TOKENIZER_CONFIG not in files:
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "model_max_length": NO_LIMIT if longest is None else longest,
        }
        made[TOKENIZER_CONFIG] = json_bytes(settings | special)
        made[SPECIAL_TOKENS] = json_bytes(special)
    return made
