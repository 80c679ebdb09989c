"""Tokenizers that give every byte back: plain bytes, and byte-level BPE read from a file or trained here."""

from xlstm_jax.data.tokenizers.base import TOKENIZER_FILE, Tokenizer, as_bytes, first_difference
from xlstm_jax.data.tokenizers.byte_level import (
    EOD_TEXT,
    ByteLevelTokenizer,
    byte_vocabulary_json,
    opening_template,
    train_byte_level,
)
from xlstm_jax.data.tokenizers.bytes import ByteTokenizer
from xlstm_jax.data.tokenizers.load import load_tokenizer

__all__ = [
    "EOD_TEXT",
    "TOKENIZER_FILE",
    "ByteLevelTokenizer",
    "ByteTokenizer",
    "Tokenizer",
    "as_bytes",
    "byte_vocabulary_json",
    "first_difference",
    "load_tokenizer",
    "opening_template",
    "train_byte_level",
]
