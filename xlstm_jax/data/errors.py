"""What can go wrong with data, one type a cause; every message is a sentence for whoever gave the input."""

from __future__ import annotations

from xlstm_jax.config import ConfigError


def reason(error: BaseException) -> str:
    """What an error says, on one line and short: some repeat all that they could not read."""
    text = " ".join(str(error).split())
    said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else text
    return said if len(said) <= 200 else said[:197] + "..."


class DataError(ValueError):
    """Base of the errors in this package that come from what the user gave."""


class SourceError(DataError):
    """A source that is missing, unreadable or not in the format it claims; the message names file and line."""


class TokenizerError(DataError):
    """A tokenizer that cannot be used; the message names the part of it that is to blame."""


class NormalizerError(TokenizerError):
    """A tokenizer that normalises its text; without that step (`drop_normalizer`) it can be used."""


class NoEndOfDocumentError(TokenizerError):
    """A tokenizer of which no token evidently ends documents; with one named (`eod`) it can be used."""


class PrepareError(DataError, ConfigError):
    """A request to prepare a store that cannot be carried out."""


class StoreError(DataError):
    """Base of the errors about a token store on disk."""


class MissingStoreError(StoreError, FileNotFoundError):
    """There is no finished store at the path."""


class TruncatedStoreError(StoreError):
    """A file of the store is missing or not as long as the index says."""


class DamagedStoreError(StoreError):
    """A file of the store does not hold what was written."""


class StoreVersionError(StoreError):
    """The store was written by another version of the format."""
