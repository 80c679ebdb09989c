"""Tiny models learn a formal language, and are tested at lengths that they have not seen."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import Batch
from xlstm_jax.evaluation.synthetic.at_targets import AtTargets, batch_of
from xlstm_jax.evaluation.synthetic.recipes import MODELS, synthetic_model, synthetic_recipe
from xlstm_jax.evaluation.synthetic.tasks import get_task
from xlstm_jax.evaluation.synthetic.training import train_synthetic, training_rows
from xlstm_jax.models.language_model import build_model
from xlstm_jax.training.step import loss_sum


def test_a_batch_asks_for_the_answer_alone_and_is_no_wider_than_training():
    task = get_task("cycle_nav")
    config = synthetic_recipe("[0:1]", "cycle navigation", steps=10, short_share=0.5)
    first, *_, last = (training_rows(task, config, step, 1)[0] for step in range(10))
    assert (first.inputs.tokens.shape, last.inputs.tokens.shape) == ((64, 10), (64, 40))
    assert last.targets.shape == (64, 1)
    assert last.loss_mask.all()
    ends = np.sum(last.inputs.tokens != 0, axis=1) - 1
    assert (last.inputs.positions[:, 0] == ends).all()


def test_the_head_sees_targets_alone_and_the_loss_is_that_of_whole_rows():
    task = get_task("stack_manipulation")
    rows = task.rows(0, "train", 0, 6, 3, 20)
    model = build_model(synthetic_model("llama", task, dim=8))
    params = jax.jit(model.init)(jax.random.key(0), rows.inputs)["params"]
    whole = Batch(rows.inputs, rows.targets, np.zeros_like(rows.mask), rows.mask)
    wanted = jax.jit(jax.value_and_grad(lambda params: loss_sum(model, params, whole).nats))(params)
    asked, width = batch_of(rows, task.max_targets(20)), task.max_targets(20)

    def loss(params):
        return loss_sum(AtTargets(model), params, asked).nats

    for found, fitting in zip(*map(jax.tree.leaves, (jax.jit(jax.value_and_grad(loss))(params), wanted)), strict=True):
        np.testing.assert_allclose(found, fitting, atol=2e-5, rtol=2e-5)
    program = str(jax.make_jaxpr(loss)(params))
    assert f"[{6 * width},{task.vocab_size}]" in program
    assert f"[{6 * 20},{task.vocab_size}]" not in program


@pytest.mark.parametrize("name", MODELS)
def test_the_tiny_models_are_what_their_names_say(name):
    config = synthetic_model(name, get_task("parity"))
    kinds = {"[0:1]": [1, 1], "[1:0]": [0, 0], "[1:1]": [0, 1]}
    if name in kinds:
        assert config.block_map == kinds[name]
    assert config.num_blocks == 2
    assert 5_000 < build_model(config).param_count < 60_000


def test_the_command_writes_what_it_found(tmp_path, capsys):
    words = [
        "eval",
        "synthetic",
        "--task",
        "parity",
        "--models",
        "[0:1],llama",
        "--steps",
        "4",
        "--test-rows",
        "64",
        "--train-lengths",
        "3-10",
        "--test-lengths",
        "40-50",
    ]
    assert main([*words, "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert printed["results"] == saved["results"]
    assert [result["model"] for result in saved["results"]] == ["[0:1]", "llama"]
    assert all(result["steps"] == 4 and 0 <= result["test_accuracy"] <= 1 for result in saved["results"])
    assert saved["results"][0]["published"] == {"mean": 100.0, "deviation": 0.0}
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert main(["eval", "synthetic", "--task", "parity", "--models", "[2:1]"]) == 2
    assert "model is '[2:1]', but must be one of [0:1]" in capsys.readouterr().err
    assert main(["eval", "synthetic", "--task", "parity", "--train-lengths", "9-3"]) == 2
    with pytest.raises(ConfigError, match="steps is 0"):
        synthetic_recipe("[0:1]", "parity", steps=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solved"), [("[0:1]", True), ("[1:0]", False)])
def test_the_scalar_memory_finds_parity_and_the_matrix_memory_does_not(name, solved):
    """Both with the same rows of up to 16 tokens and at most as many steps; tested at up to four times the length."""
    lengths = {"train_lengths": (2, 16), "short_length": 6, "test_lengths": (16, 64)}
    config = synthetic_recipe(name, "parity", steps=300, batch_size=32, test_rows=512, validation_rows=128, **lengths)
    result = train_synthetic(synthetic_model(name, get_task("parity")), config)
    if solved:
        assert result.test_accuracy >= 0.99
    else:
        assert result.steps == 300
        assert abs(result.test_accuracy - 0.5) < 0.1
    jax.clear_caches()
