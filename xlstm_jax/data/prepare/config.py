"""What a token store shall be: the one list of settings for `prepare`, its command and a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xlstm_jax.config import ConfigError, check_choice, check_number, check_types, to_json
from xlstm_jax.data.prepare.formats import formats

AUTO = "auto"
DEFAULT_VOCAB_SIZE = 8192

CONTENT = ("tokenizer", "vocab_size", "training_bytes", "validation_fraction", "seed", "shard_tokens")
"""Fields that decide what a store holds, beside the documents."""
OF_TOKENIZER = ("eod", "drop_normalizer")
"""Fields that the fingerprint of the tokenizer stands for. All others say how files become documents."""


@dataclass
class PrepareConfig:
    """How text becomes a token store."""

    tokenizer: str = "bytes"
    """`bytes`, `bpe` (trained on the training split) or the path of a tokenizer.json."""
    vocab_size: int | None = None
    """Ids of a trained `bpe`, end-of-document included; 8192 if not given. Other tokenizers bring their own."""
    eod: str | None = None
    """The token of a tokenizer.json that ends documents, if it is not evident."""
    drop_normalizer: bool = False
    """Use a tokenizer.json without its text normalisation, which would not give every byte back."""
    format: str = AUTO
    """How to read all files; `auto` goes by their names."""
    text_field: str = "text"
    """Field of JSON lines that holds the text."""
    separator: str | None = None
    """Text between the documents of a text file (`\\n` and `\\t` are understood); a file is one if not given."""
    include: tuple[str, ...] | None = None
    """Name patterns: take only files from folders that match one of them."""
    validation_fraction: float = 0.02
    """Share of the documents (chosen by hash of their content) that is held out; at least one document if there are two
    different ones, none if 0."""
    seed: int = 0
    """Fixes the order of the documents. Which are held out does not depend on it."""
    training_bytes: int = 1 << 30
    """Bytes of the documents (chosen by hash) that a `bpe` is trained on at most."""
    shard_tokens: int = 1 << 26
    """Tokens after which a file of the store ends, with the document at hand."""

    def __post_init__(self) -> None:
        self.tokenizer = str(self.tokenizer)
        self.include = tuple(self.include) if self.include else None
        if self.separator is not None:
            self.separator = self.separator.replace(r"\n", "\n").replace(r"\t", "\t")
        name = type(self).__name__
        check_types(self)
        if not self.tokenizer:
            raise ConfigError(f"{name}.tokenizer is empty, but must be 'bytes', 'bpe' or a path")
        check_number(self, "vocab_size", at_least=257, integer=True, optional=True)
        check_choice(self, "format", (AUTO, *formats()))
        if self.separator == "":
            raise ConfigError(f"{name}.separator is empty, but must be the text that stands between documents")
        check_number(self, "validation_fraction", at_least=0, below=1)
        check_number(self, "seed", integer=True)
        for size in ("training_bytes", "shard_tokens"):
            check_number(self, size, at_least=1, integer=True)

    def content(self, tokenizer: str) -> dict[str, Any]:
        """JSON values of all that decides a store's content beside the documents; compared with what was asked before.

        Args:
            tokenizer: `bytes`, `bpe` or the fingerprint of a given one.
        """
        values = {name: getattr(self, name) for name in CONTENT}
        wanted = (self.vocab_size or DEFAULT_VOCAB_SIZE) if tokenizer == "bpe" else None
        return values | {
            "tokenizer": tokenizer,
            "vocab_size": wanted,
            "validation_fraction": float(self.validation_fraction),
        }

    def reading(self) -> dict[str, Any]:
        """JSON values of all that decides how files become documents."""
        return {name: value for name, value in to_json(self).items() if name not in (*CONTENT, *OF_TOKENIZER)}
