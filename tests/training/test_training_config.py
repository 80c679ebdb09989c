"""Experiments check themselves and survive JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from xlstm_jax.config import ConfigError, dumps
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.presets import get_preset, preset_names, preset_summary
from xlstm_jax.training.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig, with_vocabulary


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_reads_back_equal_and_says_what_it_is(name: str) -> None:
    experiment = get_preset(name)
    assert Experiment.from_dict(json.loads(dumps(experiment))) == experiment
    assert preset_summary(name)
    assert get_preset(name) is not get_preset(name)


@pytest.mark.parametrize(
    ("make", "field", "takes"),
    [
        (lambda: OptimizerConfig(lr=0), "OptimizerConfig.lr is 0", "> 0"),
        (lambda: OptimizerConfig(lr=math.nan), "OptimizerConfig.lr is nan", "> 0"),
        (lambda: OptimizerConfig(schedule="cosin"), "OptimizerConfig.schedule is 'cosin'", "did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "OptimizerConfig.betas", ">= 0 and < 1"),
        (lambda: OptimizerConfig(end_lr_factor=1.5), "OptimizerConfig.end_lr_factor is 1.5", "<= 1"),
        (
            lambda: OptimizerConfig(schedule="exponential", end_lr_factor=0),
            "OptimizerConfig.end_lr_factor is 0",
            "> 0 for the schedule 'exponential'",
        ),
        (lambda: TrainingConfig(steps=0), "TrainingConfig.steps is 0", ">= 1"),
        (lambda: TrainingConfig(steps=True), "TrainingConfig.steps is True", "whole number"),
        (lambda: TrainingConfig(batch_size=6, accumulate=4), "TrainingConfig.accumulate is 4", "divide batch_size = 6"),
        (lambda: DataConfig(validation_fraction=1), "DataConfig.validation_fraction is 1", "< 1"),
        (lambda: DataConfig(sources=()), "DataConfig.sources is empty", "DataConfig.store"),
        (lambda: TrainingConfig(seed=10**20), "TrainingConfig.seed is 100000000000000000000", "< 2**63"),
        (lambda: TrainingConfig(steps=3 * 10**9), "TrainingConfig.steps is 3000000000", "< 2**31"),
        (lambda: TrainingConfig(eval_tokens=10**30), "TrainingConfig.eval_tokens is 1000", "< 2**63 or None"),
        (lambda: xLSTMLMModelConfig(num_blocks=10**9), "num_blocks is 1000000000", "<= 10000"),
        (lambda: xLSTMLMModelConfig(vocab_size=10**14), "vocab_size is 1000", "< 2**31 or -1"),
        (lambda: LlamaConfig(context_length=10**12), "context_length is 1000000000000", "< 2**31"),
        (lambda: DataConfig(vocab_size=10**23), "DataConfig.vocab_size is 1000", "< 2**31"),
        (
            lambda: Experiment(training=TrainingConfig(batch_size=10**8, seq_len=64)),
            "training.batch_size is 100000000",
            "must be < 33554432",
        ),
        (lambda: Experiment(), "model.context_length is -1", "training.seq_len"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(make, field: str, takes: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert field in str(error.value)
    assert takes in str(error.value)


def test_a_warm_up_or_cool_down_longer_than_the_training_is_refused() -> None:
    experiment = get_preset("tiny")
    with pytest.raises(ConfigError, match=r"optimizer.warmup_steps is 500, but must be <= training.steps = 60"):
        dataclasses.replace(experiment, optimizer=OptimizerConfig(warmup_steps=500))
    with pytest.raises(ConfigError, match=r"cooldown_steps is 51, but must be <= .* = 50"):
        dataclasses.replace(experiment, optimizer=OptimizerConfig(warmup_steps=10, cooldown_steps=51))


def test_the_vocabulary_follows_the_tokenizer_in_a_copy() -> None:
    experiment = get_preset("tiny")
    assert with_vocabulary(experiment, 257).model.vocab_size == 320
    assert with_vocabulary(experiment, 320).model.vocab_size == 320
    assert experiment.model.vocab_size == -1
    fixed = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab_size=300))
    assert with_vocabulary(fixed, 257).model.vocab_size == 300
    with pytest.raises(ConfigError, match=r"model.vocab_size is 300, but the tokenizer has 301 tokens"):
        with_vocabulary(fixed, 301)


def test_stores_of_different_requests_have_different_places_and_equal_ones_the_same() -> None:
    places = {
        DataConfig().store_path(),
        DataConfig(vocab_size=2048).store_path(),
        DataConfig(sources=("text",)).store_path(),
        DataConfig(tokenizer="bytes").store_path(),
    }
    assert len(places) == 4
    assert DataConfig(mask_crossing=True, fingerprint="x").store_path() == DataConfig().store_path()
    assert DataConfig(store="here").store_path().name == "here"


def test_rows_are_as_long_as_the_context_unless_told_otherwise() -> None:
    experiment = get_preset("tiny")
    assert experiment.seq_len == experiment.model.context_length
    assert dataclasses.replace(experiment, training=TrainingConfig(seq_len=7, steps=50)).seq_len == 7
