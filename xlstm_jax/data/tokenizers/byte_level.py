"""Byte-level BPE: tokenizers from a `tokenizer.json`, and training one.

The `tokenizers` library reads text, not bytes. Here valid UTF-8 goes through it, and each byte that is not part of
valid UTF-8 becomes the single-byte token that a byte-level vocabulary has for it; so any bytes come back exactly.
Special tokens are taken out of the library's hands: `<|endoftext|>` in a document is thirteen characters of text.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from xlstm_jax.config import near_miss
from xlstm_jax.data.errors import NoEndOfDocumentError, NormalizerError, PrepareError, TokenizerError, reason
from xlstm_jax.data.tokenizers.base import INFO_FILE, TOKENIZER_FILE, Tokenizer, as_bytes, first_difference
from xlstm_jax.files import open_atomic, write_json

EOD_TEXT = "<|endoftext|>"
# What published tokenizers call the token that ends a document.
EVIDENT_EODS = (EOD_TEXT, "<|end_of_text|>", "</s>", "<eod>", "<|eod|>", "<EOD>", "<eos>", "<|eos|>", "[EOS]", "[EOD]")

# Words with the space before them, numbers of up to three digits, runs of signs, line ends with the blank lines before
# them, then indentation. Every character is in exactly one of them.
WORD_PATTERN = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Training takes a time that grows with the square of a word's length, so what has no border is cut for it: DNA, code on
# one line, Chinese, rulers of spaces. For all other text this is the same pattern.
LONGEST_WORD = 1000
_TRAINING_PATTERN = WORD_PATTERN.replace("+", f"{{1,{LONGEST_WORD}}}").replace("*", f"{{0,{LONGEST_WORD}}}")

# Far more than any vocabulary has: an id beyond is damage, and would cost memory for all ids below it.
MOST_IDS = 1 << 24

# The library keeps about a hundred bytes a token while it encodes; longer texts go through it in slices.
SLICE_CHARACTERS = 1 << 20
_LINE_START = re.compile(r"\n(?=\S)")
# `surrogateescape` puts bytes 0x80..0xFF that are not UTF-8 at U+DC80..U+DCFF, which UTF-8 itself never gives.
_STRAY_BYTES = re.compile("([\udc80-\udcff]+)")

_PROBES = (
    "def f(x):\n\treturn  x[ 0 ]\r\n\r\n    # Größe, naïve, cafe\u0301, Ω → ∞\n",
    " leading", "trailing ", "  two  spaces  ", "UPPER lower 1234567 3.14e-5", "\ufb01 \u212b ½ ½½ １２",
    "日本語テキスト ไทย हिन्दी \u0627\u0644\u0639 👩‍👩‍👧", "\x00\x01\x7f\x85\xa0\u2028\u200b\ufeff\ufffd",
    "▁ Ġ Ċ ## </w> @@ ''``", "don't we'll I'M", "\n\n\n", "\t", "a.b,c!d?e 'f' n't",
    "<|endoftext|></s><s>[CLS] x [SEP]<unk>",
)  # fmt: skip


class ByteLevelTokenizer(Tokenizer):
    """A byte-level BPE given by the text of a `tokenizer.json`.

    Raises:
        TokenizerError: if bytes would not come back, or no token is evidently the EOD.
    """

    kind = "bpe"

    def __init__(self, text: str, *, eod: str | None = None, drop_normalizer: bool = False, name: str = "tokenizer"):
        self._text, self._name, self._drop_normalizer = text, name, drop_normalizer
        try:
            data = json.loads(text)
            added = list(data.get("added_tokens") or [])
            vocabulary: dict[str, int] = dict(data["model"]["vocab"])
            _check_model(data, name, drop_normalizer)
            ids = vocabulary | {token["content"]: token["id"] for token in added}
            wrong = [token for token, number in ids.items() if type(token) is not str or type(number) is not int]
            if wrong or not all(0 <= number < MOST_IDS for number in ids.values()):
                raise ValueError("its vocabulary does not map texts to ids")
        except TokenizerError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TokenizerError(f"{name} is not a byte-level BPE tokenizer.json: {reason(error)}") from error
        self.eod_text = _find_eod(ids, eod, name)
        self.eod_id = ids[self.eod_text]
        self.vocab_size = max(ids.values()) + 1
        special = {t["content"] for t in added if t.get("special")} | {self.eod_text}
        self._bytes = _bytes_by_id(vocabulary, added, special, self.vocab_size)
        letters = _byte_letters()
        lacking = [b for b in range(256) if letters[b] not in vocabulary]
        if lacking:
            raise TokenizerError(f"{name} has no token for byte 0x{lacking[0]:02x}, so not all bytes would come back")
        self._byte_ids = np.array([vocabulary[letters[b]] for b in range(256)], np.int32)
        # Special tokens stay in the list, which decides the ids of the others, but are not looked for in text.
        plain = data | {"added_tokens": [t | {"special": t["content"] in special} for t in added]}
        plain |= {"truncation": None, "padding": None, "post_processor": None}
        self._library = _library_tokenizer(plain, name)
        # Where this package lets other readers put the EOD before a text, the ids of the text are what they were.
        if data.get("post_processor") == opening_template(self.eod_text, self.eod_id):
            data |= {"post_processor": None}
        identity = {"eod": self.eod_text, "tokenizer": data}
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._keep_all(plain)
        ordinary = [t for t in added if t["content"] not in special]
        for token, side in itertools.product(ordinary, ("lstrip", "rstrip")):
            if token.get(side):
                what = f"drops the spaces beside its token {token['content']!r} ({side})"
                raise TokenizerError(f"{name} {what}, so bytes would not come back")
        self._probe([token["content"] for token in ordinary])

    @classmethod
    def from_file(cls, path: str | Path, *, eod: str | None = None, drop_normalizer: bool = False) -> Tokenizer:
        """Read a `tokenizer.json`; a `tokenizer_config.json` beside it may name the EOD."""
        path = Path(path)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read the tokenizer {path}: {reason(error)}") from error
        eod = eod if eod is not None else _eod_of_config(path.with_name("tokenizer_config.json"))
        return cls(text, eod=eod, drop_normalizer=drop_normalizer, name=str(path))

    @property
    def text(self) -> str:
        """The `tokenizer.json` that it was made from, as it was."""
        return self._text

    def encode_array(self, text: bytes | str) -> Int32[np.ndarray, " tokens"]:
        decoded = as_bytes(text).decode("utf-8", "surrogateescape")
        parts = _STRAY_BYTES.split(decoded)
        texts = [short for part in parts[::2] for short in _slices(part)]
        encodings = iter(self._library.encode_batch_fast(texts, add_special_tokens=False))
        arrays: list[np.ndarray] = []
        for number, part in enumerate(parts):
            if number % 2:
                arrays.append(self._byte_ids[[ord(letter) - 0xDC00 for letter in part]])
            else:
                arrays.extend(np.array(next(encodings).ids, np.int32) for _ in _slices(part))
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        if (ids == self.eod_id).any():
            raise TokenizerError(f"{self._name} gives its EOD {self.eod_text!r} for ordinary text; name another EOD")
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        return self._bytes[token_id]

    def _decode(self, ids: np.ndarray) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids.tolist()))

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with open_atomic(folder / TOKENIZER_FILE) as file:
            file.write(self._text.encode())
        info = {"kind": self.kind, "eod": self.eod_text, "drop_normalizer": self._drop_normalizer}
        write_json(folder / INFO_FILE, info | {"fingerprint": self.fingerprint})

    def _keep_all(self, plain: dict[str, Any]) -> None:
        """Let the pre-tokenizer give on what it is told to remove beside its matches, if these are all of the text in
        practice: those of published tokenizers are, so their ids stay."""
        keeping = _keeping_all(plain["pre_tokenizer"])
        if keeping != plain["pre_tokenizer"]:
            given, self._library = self._library, _library_tokenizer(plain | {"pre_tokenizer": keeping}, self._name)
            if any(given.encode(text).ids != self._library.encode(text).ids for text in _PROBES):
                raise TokenizerError(
                    f"{self._name} drops what its pre-tokenizer does not match (behavior Removed, inverted), so bytes "
                    "would not come back"
                )

    def _probe(self, added: list[str]) -> None:
        for text in (*_PROBES, self.eod_text, *(f"a {content} b" for content in added[:100])):
            back = self.decode(self.encode_array(text))
            if back != text.encode():
                what = first_difference(text.encode(), back)
                raise TokenizerError(f"{self._name} does not give bytes back: {what}")


def train_byte_level(documents: Iterable[bytes], vocab_size: int) -> ByteLevelTokenizer:
    """Train a byte-level BPE; the same documents, in any order, give the same tokenizer.

    Args:
        documents: bytes each; stretches that are not UTF-8 are left out of the training.
        vocab_size: number of ids wanted, EOD included; fewer result where the text has no more pairs to merge.

    Raises:
        PrepareError: for a `vocab_size` below 257.
    """
    check_vocab_size(vocab_size)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = tokenizers.Tokenizer(models.BPE())

    def words(pattern: str) -> Any:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    library.pre_tokenizer = words(_TRAINING_PATTERN)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(_texts(documents), trainer)
    library.pre_tokenizer = words(WORD_PATTERN)
    return ByteLevelTokenizer(library.to_str(), eod=EOD_TEXT, name="the trained tokenizer")


def byte_vocabulary_json(tokenizer: Tokenizer) -> str:
    """The `tokenizer.json` of plain bytes: every byte is its own id, and the EOD that of `tokenizer`."""
    special = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.eod_id, "content": tokenizer.eod_text} | special],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {letter: byte for byte, letter in enumerate(_byte_letters())}, "merges": []},
    }
    return json.dumps(data, ensure_ascii=False, indent=2)


def opening_template(text: str, token_id: int) -> dict[str, Any]:
    """The `post_processor` of a tokenizer.json that puts a token before every text."""
    token = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, second],
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]}},
    }


def check_vocab_size(vocab_size: int) -> None:
    """Raise `PrepareError` unless a byte-level BPE can have `vocab_size` ids: 256 bytes and the EOD."""
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 257:
        raise PrepareError(f"vocab_size is {vocab_size!r}, but must be a whole number >= 257: 256 bytes and the EOD")


def _texts(documents: Iterable[bytes]) -> Iterator[str]:
    for document in documents:
        for part in _STRAY_BYTES.split(document.decode("utf-8", "surrogateescape"))[::2]:
            yield from _slices(part)


def _slices(text: str) -> list[str]:
    """`text` cut into slices of about `SLICE_CHARACTERS`, after line ends where there are any."""
    slices, start = [], 0
    while len(text) - start > SLICE_CHARACTERS:
        found = _LINE_START.search(text, start + SLICE_CHARACTERS - 1, start + 2 * SLICE_CHARACTERS)
        end = found.end() if found else min(start + 2 * SLICE_CHARACTERS, len(text))
        slices.append(text[start:end])
        start = end
    return [*slices, text[start:]] if start < len(text) else slices


@functools.cache
def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary.

    GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes follow in order from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def _bytes_by_id(vocabulary: dict[str, int], added: list[dict], special: set[str], size: int) -> list[bytes]:
    byte_of = {letter: b for b, letter in enumerate(_byte_letters())}
    table = [b""] * size
    for token, token_id in vocabulary.items():
        known = all(letter in byte_of for letter in token)
        table[token_id] = bytes(byte_of[letter] for letter in token) if known else as_bytes(token)
    for entry in added:
        table[entry["id"]] = as_bytes(entry["content"])
    for entry in (e for e in added if e["content"] in special):
        table[entry["id"]] = b""
    for token in special & vocabulary.keys():
        table[vocabulary[token]] = b""
    return table


def _check_model(data: dict[str, Any], name: str, drop_normalizer: bool) -> None:
    model = data["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(
            f"{name} is a {model['type']} tokenizer, which does not give bytes back; use a byte-level BPE"
        )
    if not any(part.get("type") == "ByteLevel" for part in _leaves(data.get("pre_tokenizer"))):
        raise TokenizerError(
            f"{name} is not byte-level (it has no ByteLevel pre-tokenizer), so bytes would not come back"
        )
    if model.get("dropout"):
        raise TokenizerError(f"{name} drops merges at random (model.dropout {model['dropout']}); set dropout to null")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"{name} marks its tokens ({key} {model[key]!r}), so bytes would not come back")
    if data.get("normalizer") is not None:
        kinds = ", ".join(str(part.get("type")) for part in _leaves(data["normalizer"]))
        if kinds and not drop_normalizer:
            raise NormalizerError(
                f"{name} normalises its text ({kinds}), so bytes would not come back; "
                "to use it without that step, pass drop_normalizer (--drop-normalizer)"
            )
        data["normalizer"] = None
    for part in _leaves(data["pre_tokenizer"]):
        kind = part.get("type")
        if part.get("add_prefix_space"):
            raise TokenizerError(
                f"{name} puts a space before each text (add_prefix_space), so bytes would not come back"
            )
        removes = part.get("behavior") == "Removed" and not part.get("invert")
        if kind not in _KEEPS_ALL or removes:
            how = f"{kind} with behavior Removed" if removes else kind
            raise TokenizerError(
                f"{name} drops or changes characters where it cuts its text (pre-tokenizer {how}), so bytes would not "
                "come back"
            )


_KEEPS_ALL = ("ByteLevel", "Split", "Punctuation", "Digits", "FixedLength")
"""Pre-tokenizers that give every character on, if they are not told to remove what they cut at. (`UnicodeScripts` loses
a space at the beginning.)"""


def _leaves(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, without the sequences that hold them; none if it does nothing."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [
        leaf for key in ("normalizers", "pretokenizers") for inner in part.get(key) or [] for leaf in _leaves(inner)
    ]


def _keeping_all(part: Any) -> Any:
    """A pre-tokenizer whose `Split`s give on what they are told to remove beside their matches."""
    if isinstance(part, dict):
        part = {key: _keeping_all(value) for key, value in part.items()}
        if part.get("behavior") == "Removed":
            return part | {"behavior": "Isolated", "invert": False}
    return [_keeping_all(inner) for inner in part] if isinstance(part, list) else part


def _find_eod(ids: dict[str, int], eod: str | None, name: str) -> str:
    if eod is not None:
        if eod not in ids:
            raise TokenizerError(f"{name} has no token {eod!r} to end documents with{near_miss(eod, ids)}")
        return eod
    evident = [token for token in EVIDENT_EODS if token in ids]
    if len(evident) == 1:
        return evident[0]
    found = f"several tokens that could be it ({', '.join(evident)})" if evident else "none of the usual tokens for it"
    raise NoEndOfDocumentError(f"{name} has no evident end-of-document token: {found}; name it with eod (--eod TOKEN)")


def _eod_of_config(path: Path) -> str | None:
    try:
        token = json.loads(path.read_text("utf-8")).get("eos_token")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"cannot read {path}: {reason(error)}") from error
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise TokenizerError(f"{path} gives {token!r} as its eos_token, but must give a text")
    return token


def _library_tokenizer(data: dict[str, Any], name: str) -> Any:
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(data))
        library.encode_special_tokens = True
        return library
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{name} is not a tokenizer.json that the tokenizers library can read: {reason(error)}"
        ) from error
