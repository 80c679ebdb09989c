"""A run folder out of weights that were trained elsewhere: to generate from, to score with, to fine-tune a copy of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xlstm_jax.data.tokenizers.base import ByteTokenizer, Tokenizer
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.folders import Kept
from xlstm_jax.hub.formats import Weights
from xlstm_jax.hub.safetensors_files import appearing_folder
from xlstm_jax.runs.folder import CONVERTED, RunFolder, with_config
from xlstm_jax.runs.space import bytes_in_words, bytes_needed
from xlstm_jax.training.config import DataConfig, Experiment, TrainingConfig


def write_run(
    path: Path,
    weights: Weights,
    tokenizer: Tokenizer | None,
    kept: Kept,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Make a run whose one checkpoint, of step 0, holds the parameters alone. It appears complete or not at all.

    Args:
        path: the run's folder, which must not be there yet.
        weights: the model.
        tokenizer: its tokenizer; without one the run has no text in and out.
        kept: what shall come along, so that the run can become such a folder again.
        say: gets a sentence on the disk.

    Raises:
        WeightsError: if there is something at `path`, the disk is too small, or the tokenizer has more tokens than the
            model.
    """
    if tokenizer is not None and tokenizer.vocab_size > weights.config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model knows {weights.config.vocab_size} only"
        )
    needed = bytes_needed({"params": weights.params})
    say(f"disk: {path} needs {bytes_in_words(needed)}")
    with appearing_folder(path, needed) as folder:
        draft = RunFolder(folder)
        if tokenizer is not None:
            tokenizer.save(draft.tokenizer_dir)
        kept.write(draft.huggingface_dir)
        draft.write_environment()
        experiment = _experiment(path, weights, tokenizer)
        with draft.checkpoints() as checkpoints:
            checkpoints.save(0, {"params": weights.params}, with_config(experiment, tokens_seen=0, **{CONVERTED: True}))
        draft.write_config(experiment)


def _experiment(path: Path, weights: Weights, tokenizer: Tokenizer | None) -> Experiment:
    """What a copy of the run is trained with where its user says nothing else."""
    kind = "bytes" if isinstance(tokenizer, ByteTokenizer) else str(RunFolder(path).tokenizer_dir)
    return Experiment(
        model=weights.config,
        data=DataConfig(tokenizer=kind),
        training=TrainingConfig(sample_prompts=()),
    )
