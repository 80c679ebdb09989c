"""Tokenizers by name or from disk."""

from __future__ import annotations

from pathlib import Path

from xlstm_jax.data.errors import TokenizerError, reason
from xlstm_jax.data.tokenizers.base import INFO_FILE, TOKENIZER_FILE, Tokenizer
from xlstm_jax.data.tokenizers.byte_level import ByteLevelTokenizer
from xlstm_jax.data.tokenizers.bytes import ByteTokenizer
from xlstm_jax.files import read_json_object


def load_tokenizer(path: str | Path, *, eod: str | None = None, drop_normalizer: bool = False) -> Tokenizer:
    """The tokenizer of a store, run or Hugging Face folder, of a `tokenizer.json`, or the one called `"bytes"`.

    Args:
        path: the word `bytes`, a folder that `Tokenizer.save` wrote, a folder with a `tokenizer.json`, or such a file.
        eod: the token that ends documents, where `tokenizer.json` leaves it open.
        drop_normalizer: use a tokenizer that normalises its text (and so cannot give bytes back) without that step.

    Raises:
        TokenizerError: for a missing or damaged file, and for a tokenizer that does not give bytes back or has no
            evident EOD.
    """
    if str(path) == ByteTokenizer.kind:
        return ByteTokenizer()
    path = Path(path)
    if path.is_dir() and (path / INFO_FILE).exists():
        return _load_saved(path)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        found = f"folder {path} holds no {TOKENIZER_FILE}" if path.is_dir() else f"there is no tokenizer at {path}"
        raise TokenizerError(f"{found}; give 'bytes', 'bpe' or the path of a tokenizer.json")
    return ByteLevelTokenizer.from_file(file, eod=eod, drop_normalizer=drop_normalizer)


def _load_saved(folder: Path) -> Tokenizer:
    info_path = folder / INFO_FILE
    try:
        info = read_json_object(info_path, TokenizerError)
        kind, fingerprint = info["kind"], info["fingerprint"]
    except KeyError as error:
        raise TokenizerError(f"{info_path} is damaged: {reason(error)}") from error
    if kind == ByteTokenizer.kind:
        tokenizer: Tokenizer = ByteTokenizer()
    elif kind == ByteLevelTokenizer.kind:
        tokenizer = ByteLevelTokenizer.from_file(
            folder / TOKENIZER_FILE, eod=info.get("eod"), drop_normalizer=bool(info.get("drop_normalizer"))
        )
    else:
        raise TokenizerError(f"{info_path} says kind {kind!r}, but must say 'bytes' or 'bpe'")
    if tokenizer.fingerprint != fingerprint:
        raise TokenizerError(
            f"the tokenizer in {folder} is not the one that was saved there: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}, {INFO_FILE} says {str(fingerprint)[:12]}"
        )
    return tokenizer
