"""A run folder out of weights that were trained elsewhere: to generate from, to score with, to fine-tune a copy of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from xlstm_jax.data.errors import TokenizerError
from xlstm_jax.data.tokenizers import TOKENIZER_FILE, ByteTokenizer, Tokenizer, load_tokenizer
from xlstm_jax.files import appearing_folder, bytes_in_words
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.folders import Say, Source
from xlstm_jax.hub.formats.base import ReadOptions, Weights
from xlstm_jax.hub.kept import Kept, carried_files
from xlstm_jax.hub.tokenizers import bos_token, end_ids, read_tokenizer
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.runs.folder import RunFolder, TokenizerInfo, with_config
from xlstm_jax.runs.storage import bytes_needed

MakeConfig = Callable[[LanguageModelConfig, str], Any]
"""(model, tokenizer as a data config names one) -> the run's config: what a copy is trained with where nothing else is
said."""


def convert_to_run(
    source: Source,
    out: Path,
    options: ReadOptions,
    make_config: MakeConfig,
    *,
    tokenizer: str | Path | None = None,
    eod: str | None = None,
    say: Say = lambda sentence: None,
) -> None:
    """Make a run of a published model, with its tokenizer and all that is needed to write it out again.

    The tokenizer beside the weights is taken unless another is given. One that cannot be used is left out with a note:
    the run then takes tokens, but no text. Where another is given, the files around the first do not come along.

    Args:
        source: the model, opened.
        out: the run's folder, which must not be there yet.
        tokenizer: "bytes", or the path of a tokenizer.
        eod: the tokenizer's token that ends documents.
        say: gets sentences for the user; those on what he may not expect begin with "note:".

    Raises:
        WeightsError, ConfigError: if the weights or their config cannot be used; see also `write_run`.
        TokenizerError: if the tokenizer that is given, or whose `eod` is, cannot be used.
    """
    found, notes, lacks = _tokenizer_of(source, tokenizer, eod)
    for note in notes:
        say(f"note: {note}")
    for note in source.notes:
        say(f"note: {note}")
    weights = source.read(options)
    for note in weights.notes:
        say(f"note: {note}")
    own, info = tokenizer is None, None
    if found is not None:
        ends, ignored = end_ids(source.folder, source.document, found, weights.config.vocab_size)
        for note in ignored:
            say(f"note: {note}")
        info = TokenizerInfo(bos_token(source.folder, source.document, found) if own else None, ends)
    files = carried_files(source.folder, tokenizer=own)
    if found is None and (source.folder / TOKENIZER_FILE).is_file():
        files[TOKENIZER_FILE] = (source.folder / TOKENIZER_FILE).read_bytes()
    write_run(out, weights, found, Kept(files, weights.record), make_config, info, say)
    count = sum(leaf.size for leaf in jax.tree.leaves(weights.params))
    say(f"{out} holds {count:,} parameters of {source.title}, to compute in {weights.config.dtype}")
    if lacks is not None:
        say(f"note: {out} has no tokenizer, so it takes tokens but no text: {lacks} (--tokenizer gives one)")


def _tokenizer_of(
    source: Source, asked: str | Path | None, eod: str | None
) -> tuple[Tokenizer | None, list[str], str | None]:
    """(the tokenizer, notes on it, why there is none)"""
    if asked is not None:
        return load_tokenizer(asked, eod=eod), [], None
    try:
        return *read_tokenizer(source.folder, source.document, eod), None
    except TokenizerError as error:
        if eod is not None:
            raise
        return None, [], str(error)


def write_run(
    path: Path,
    weights: Weights,
    tokenizer: Tokenizer | None,
    kept: Kept,
    make_config: MakeConfig,
    info: TokenizerInfo | None = None,
    say: Say = lambda sentence: None,
) -> None:
    """Make a run whose one checkpoint, of step 0, holds the parameters alone. It appears complete or not at all.

    Args:
        path: the run's folder, which must not be there yet.
        tokenizer: the model's; without one the run has no text in and out.
        kept: what shall come along, so that the run can become such a folder again.
        info: the special tokens that it expects, if it expects any.
        say: gets a sentence on the disk.

    Raises:
        WeightsError: if the tokenizer has more tokens than the model.
        ExistsError, DiskFullError: if there is something at `path`, or the disk is too small.
    """
    if tokenizer is not None and tokenizer.vocab_size > weights.config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model knows {weights.config.vocab_size} only"
        )
    needed = bytes_needed({"params": weights.params})
    say(f"disk: {path} needs {bytes_in_words(needed)}")
    config = make_config(
        weights.config, "bytes" if isinstance(tokenizer, ByteTokenizer) else str(RunFolder(path).tokenizer_dir)
    )
    with appearing_folder(path, needed) as folder:
        draft = RunFolder(folder)
        if tokenizer is not None:
            tokenizer.save(draft.tokenizer_dir)
        if info is not None:
            draft.write_tokenizer_info(info)
        kept.write(draft.huggingface_dir)
        draft.write_environment()
        with draft.checkpoints() as checkpoints:
            checkpoints.save(0, {"params": weights.params}, with_config(config, tokens_seen=0, converted=True))
        draft.write_config(config)
