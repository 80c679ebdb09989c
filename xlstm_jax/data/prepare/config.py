"""What a token store shall be: the one list of settings for `prepare`, its command and a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from xlstm_jax.config import AnyPositiveInt, AtLeast, Below, Config, ConfigError, near_miss, to_json
from xlstm_jax.data.prepare.formats import formats

AUTO = "auto"
DEFAULT_VOCAB_SIZE = 8192

CONTENT = (
    "tokenizer",
    "vocab_size",
    "training_bytes",
    "validation_fraction",
    "validation_tail",
    "seed",
    "shard_tokens",
)
"""Fields that decide what a store holds, beside the documents."""
LATER = ("validation_tail",)
"""Those that older stores were made without: at their default they are not written down."""
STOOD_FOR = ("eod", "drop_normalizer", "validation")
"""Fields that the fingerprint of the tokenizer and the files stand for. All others say how files become documents."""


@dataclass
class PrepareConfig(Config):
    """How text becomes a token store."""

    tokenizer: str = "bytes"
    """`bytes`, `bpe` (trained on the training split) or the path of a tokenizer.json."""
    vocab_size: Annotated[int, AtLeast(257), Below(2**31)] | None = None
    """Ids of a trained `bpe`, end-of-document included; 8192 if not given. Other tokenizers bring their own."""
    eod: str | None = None
    """The token of a tokenizer.json that ends documents, if it is not evident."""
    drop_normalizer: bool = False
    """Use a tokenizer.json without its text normalisation, which would not give every byte back."""
    format: str = AUTO
    """How to read all files; `auto` goes by their names."""
    text_field: str = "text"
    """Field of JSON records that holds the text."""
    skip_invalid: bool = False
    """Leave out JSON records whose text is missing, null or no string, and lines that are not JSON, and count them."""
    separator: str | None = None
    """Text between the documents of a text file (`\\n` and `\\t` are understood); a file is one if not given."""
    include: tuple[str, ...] | None = None
    """Name patterns: take only files from folders that match one of them."""
    validation_fraction: Annotated[float, AtLeast(0), Below(1)] = 0.02
    """Share of the documents (chosen by hash of their content) that is held out; at least one document if there are two
    different ones, none if 0. Of a single document the last part is held out, from the beginning of a line."""
    validation_tail: Annotated[float, AtLeast(0), Below(1)] = 0.0
    """Share of the bytes of each document that is held out at its end, to the byte, in place of a share of the
    documents: the usual split of a corpus that is one file. None if 0."""
    validation: tuple[str, ...] = ()
    """Files, folders or globs of which all documents are held out, in place of a share of the others. What is in both
    is not learnt from."""
    seed: int = 0
    """Fixes the order of the documents. Which are held out does not depend on it."""
    training_bytes: AnyPositiveInt = 1 << 30
    """Bytes of the documents (chosen by hash) that a `bpe` is trained on at most."""
    shard_tokens: AnyPositiveInt = 1 << 26
    """Tokens after which a file of the store ends, with the document at hand."""

    def __post_init__(self) -> None:
        self.tokenizer, self.include = str(self.tokenizer), self.include or None
        named = [self.validation] if isinstance(self.validation, (str, Path)) else self.validation
        self.validation = tuple(map(str, named))
        if self.separator is not None:
            self.separator = self.separator.replace(r"\n", "\n").replace(r"\t", "\t")
        super().__post_init__()
        name, known = type(self).__name__, (AUTO, *formats())
        if not self.tokenizer:
            raise ConfigError(f"{name}.tokenizer is empty, but must be 'bytes', 'bpe' or a path")
        if self.format not in known:
            listed = ", ".join(map(repr, known))
            hint = near_miss(self.format, known)
            raise ConfigError(f"{name}.format is {self.format!r}, but must be one of {listed}{hint}")
        if self.validation and self.validation_tail:
            raise ConfigError(
                f"{name}.validation_tail is {self.validation_tail}, but {name}.validation names what is held out; "
                "give one of them"
            )
        if self.separator == "":
            raise ConfigError(f"{name}.separator is empty, but must be the text that stands between documents")

    def content(self, tokenizer: str) -> dict[str, Any]:
        """JSON values of all that decides a store's content beside the documents; compared with what was asked before.

        `tokenizer` is `bytes`, `bpe` or the fingerprint of a given one.
        """
        values = {name: getattr(self, name) for name in CONTENT if name not in LATER or getattr(self, name)}
        wanted = (self.vocab_size or DEFAULT_VOCAB_SIZE) if tokenizer == "bpe" else None
        return values | {"tokenizer": tokenizer, "vocab_size": wanted}

    def reading(self) -> dict[str, Any]:
        """JSON values of all that decides how files become documents."""
        return {name: value for name, value in to_json(self).items() if name not in (*CONTENT, *STOOD_FOR)}
