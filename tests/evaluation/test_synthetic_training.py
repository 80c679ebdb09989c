"""Tiny models learn a formal language, and are tested at lengths that they have not seen."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import Batch
from xlstm_jax.evaluation.synthetic.at_targets import AtTargets, batch_of
from xlstm_jax.evaluation.synthetic.protocols import PROTOCOLS, choose
from xlstm_jax.evaluation.synthetic.published import SOURCES, STATEMENTS, published
from xlstm_jax.evaluation.synthetic.recipes import MODELS, synthetic_model, synthetic_recipe
from xlstm_jax.evaluation.synthetic.tasks import TASKS, get_task
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
        # Sums in another order: roundings of float32, of the largest entry.
        assert np.max(np.abs(found - fitting)) <= 32 * np.finfo(np.float32).eps * np.max(np.abs(fitting))
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
        "--lr",
        "1e-2",
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
    assert saved["results"][0]["published"][0] == {"mean": 100.0, "deviation": 0.0, "source": "slice"}
    assert list(saved["published"]) == ["slice", "xlstm-4", "grazzi"]
    assert saved["protocol"]["name"] == "quick"
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert main(["eval", "synthetic", "--task", "parity", "--models", "[2:1]"]) == 2
    assert "model is '[2:1]', but must be one of [0:1]" in capsys.readouterr().err
    assert main(["eval", "synthetic", "--task", "parity", "--train-lengths", "9-3"]) == 2
    with pytest.raises(ConfigError, match="steps is 0"):
        synthetic_recipe("[0:1]", "parity", steps=0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--task parity --protocol slise", "--protocol is 'slise', but must be one of quick, .*did you mean 'slice'"),
        ("--task parity --protocol zoology-fig2", "the protocol zoology-fig2 is for mqar, but the task is parity"),
        ("--task mqar --task-fields pairs", "--task-fields has 'pairs', but must be NAME=VALUE"),
        ("--task mqar --task-fields pairs=x", "MQAR.pairs is 'x', but must be a whole number >= 1"),
        ("--task mqar --task-fields pairs=60", "rows of mqar have even lengths from 240"),
        ("--task parity --lr fast", "--lr is 'fast', but must be numbers"),
        (
            "--task parity --lr 0.1,0.1",
            r"Protocol.lrs is \(0.1, 0.1\), but must have at least one value, and each once",
        ),
        ("--task parity --seed a", "--seed is 'a', but must be whole numbers"),
        ("--task parity --dim 30", "--dim is 30, but must be a multiple of 4"),
    ],
)
def test_options_that_cannot_be_are_refused(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "synthetic", *words.split()]) == 2
    assert re.search(sentence, capsys.readouterr().err.replace("\n", " "))
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_chosen_from_on_validation_rows_alone():
    """By the mean over seeds, for each model; what the test says does not count."""
    entries = [
        *(("a", 0.1, 0.5, 0.9), ("a", 0.1, 0.7, 0.9), ("a", 0.2, 0.9, 0.1), ("a", 0.2, 0.5, 0.2)),
        *(("b", 0.1, 0.4, 0.5), ("b", 0.2, 0.4, 1.0)),
    ]
    results = [
        {"model": model, "config": {"lr": lr}, "validation_accuracy": seen, "test_accuracy": test}
        for model, lr, seen, test in entries
    ]
    assert choose(results) == [False, False, True, True, True, False]


def test_protocols_say_what_they_train():
    trials = list(PROTOCOLS["zoology-fig2"].trials(get_task("mqar"), ["[1:0]", "lstm"], {"pairs": 2}))
    assert [(trial.model, trial.config.lr) for trial in trials[3:5]] == [("[1:0]", 1e-2), ("lstm", 1e-4)]
    config = trials[0].config
    assert (config.steps, config.batch_size, config.patience, config.warmup) == (12_544, 512, None, 0.0)
    assert config.build_task() == get_task("mqar", {"pairs": 2, "random_non_queries": False})
    assert config.lr * config.end_lr_factor == pytest.approx(1e-7)
    assert trials[0].model_config.embedding_dim == 64
    trials = list(PROTOCOLS["slice"].trials(get_task("bucket_sort_slice"), ["[0:1]"], {}))
    assert [trial.config.seed for trial in trials] == [0, 1, 2, 3, 4]
    layer = trials[0].model_config.slstm_block.slstm
    assert (layer.num_heads, layer.conv1d_kernel_size, layer.slstm_cell.recurrent_weight_init) == (4, 4, "zeros")
    assert len(list(PROTOCOLS["xlstm"].trials(get_task("parity"), ["llama"], {}))) == 6
    for name in TASKS:  # every quick recipe has rows
        quick = next(PROTOCOLS["quick"].trials(get_task(name), ["lstm"], {}))
        assert quick.config.patience == 4
        assert training_rows(quick.config.build_task(), quick.config, 0, 1)[0].loss_mask.any()


def test_published_values_stand_with_their_sources_and_all_where_they_disagree():
    """One cell, three values: sLSTM on modular arithmetic."""
    found = published(get_task("mod_arith"), "[0:1]")
    assert found == ((27.7, 0.6, "slice"), (100.0, None, "xlstm-4"), (82.96, None, "grazzi"))
    assert published(get_task("reverse_string"), "[1:0]") == ((29.8, 1.8, "xlstm-12"),)
    assert [entry.source for entry in published(get_task("mod_arith_brackets"), "llama")] == ["grazzi-a", "grazzi-b"]
    assert published(get_task("mod_arith"), "lstm") == ((99.9, 0.1, "slice"),)
    assert published(get_task("reverse_string_slice"), "[1:0]") == published(get_task("mqar"), "lstm") == ()
    assert {source for task in TASKS.values() for m in MODELS for *_, source in published(task, m)} == set(SOURCES)
    assert set(STATEMENTS) <= set(TASKS)


@pytest.mark.long
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
