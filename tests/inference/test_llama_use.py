"""The Llama where it is used: configs and options, training and generating from the command line, scores."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xlstm_jax
from xlstm_jax.cli import main
from xlstm_jax.cli.options import apply_options
from xlstm_jax.config import ConfigError, from_json, to_json
from xlstm_jax.data.store import Split, windows
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.inference.engine import Engine
from xlstm_jax.inference.sampling import Sampling, draws
from xlstm_jax.models.language_model import build_model, with_exact_resets
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.llama.llama_lm_model import LlamaLMModel
from xlstm_jax.presets import get_preset
from xlstm_jax.scoring.chunks import SMALLEST_ROOM
from xlstm_jax.scoring.documents import DocumentScorer, score_document
from xlstm_jax.scoring.heldout import HeldOut
from xlstm_jax.scoring.score import Scorer
from xlstm_jax.training.config import Experiment

EOD, CONTEXT = ByteTokenizer.eod_id, 12
PROMPTS = [b"import numpy", b"", b"a", b"x" * 70]


@pytest.fixture(scope="module")
def model() -> LlamaLMModel:
    return LlamaLMModel(
        LlamaConfig(
            embedding_dim=16,
            num_blocks=2,
            vocab_size=257,
            context_length=CONTEXT,
            head_dim=8,
            num_kv_heads=1,
            ffn_dim=16,
        )
    )


@pytest.fixture(scope="module")
def params(model: LlamaLMModel):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda leaf: 0.6 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    params["lm_head"]["kernel"][:, EOD] = 0  # so that the likeliest token is never EOD
    return jax.tree.map(jnp.asarray, params)


# ---------------------------------------------------------------------------------------------------------------------
# Configs
# ---------------------------------------------------------------------------------------------------------------------


def test_an_experiment_keeps_its_kind_of_model_in_json() -> None:
    for name in ("quickstart", "quickstart_llama"):
        experiment = get_preset(name)
        assert from_json(Experiment, json.loads(json.dumps(to_json(experiment)))) == experiment
    assert isinstance(get_preset("quickstart_llama").model, LlamaConfig)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("quickstart_llama", "num_kv_head", 1, "experiment.model has no field 'num_kv_head' .*'num_kv_heads'"),
        ("quickstart_llama", "theta", "big", "experiment.model.theta is 'big', but must be a number"),
        ("quickstart_llama", "head_dim", 48, "LlamaConfig.head_dim is 48, but must divide"),
        ("quickstart", "num_block", 1, "experiment.model has no field 'num_block' .*'num_blocks'"),
        ("quickstart", "slstm_at", [9], "xLSTMLMModelConfig.slstm_at holds 9"),
    ],
)
def test_a_mistake_in_a_model_is_reported_for_the_kind_that_was_meant(name, field, value, message) -> None:
    data = to_json(get_preset(name))
    data["model"][field] = value
    with pytest.raises(ConfigError, match=message):
        from_json(Experiment, data, "experiment")


def test_every_field_of_a_llama_has_an_option() -> None:
    options = ["--num_kv_heads", "2", "--attention_scale", "num_heads", "--model.theta", "5e5", "--embedding_dim=128"]
    changed = apply_options(get_preset("quickstart_llama"), [*options, "model.ffn_dim=96"]).model
    assert isinstance(changed, LlamaConfig)
    assert (changed.num_kv_heads, changed.attention_scale, changed.theta) == (2, "num_heads", 5e5)
    assert (changed.embedding_dim, changed.ffn_width) == (128, 96)


def test_the_quickstarts_differ_in_their_model_alone_and_hardly_in_its_size() -> None:
    llama, plain = get_preset("quickstart_llama"), get_preset("quickstart")
    assert (llama.data, llama.optimizer, llama.training) == (plain.data, plain.optimizer, plain.training)
    for experiment in (llama, plain):
        experiment.model.vocab_size = 4096
    assert build_model(llama.model).param_count == pytest.approx(build_model(plain.model).param_count, rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Generating
# ---------------------------------------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_the_whole_prefix_computed_anew(model: LlamaLMModel, params) -> None:
    prompts = [np.frombuffer(prompt, np.uint8).astype(np.int32) for prompt in PROMPTS]
    engine = Engine(model, EOD, 257)
    carry = engine.prefill(params, prompts, new_tokens=10)
    made = engine.decode(params, carry, draws(Sampling(temperature=0), range(4)), np.zeros(4, bool), 10)[1]
    texts = [np.concatenate([[EOD], prompt, made[:, row]]) for row, prompt in enumerate(prompts)]
    tokens = np.full((4, max(map(len, texts))), EOD, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    logits = np.asarray(jax.jit(model.apply)({"params": params}, tokens))
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(np.argmax(logits[row, len(text) - 11 : len(text) - 1], axis=-1), text[-10:])


def test_generation_makes_room_for_prompt_and_tokens_and_never_runs_out_of_it(model: LlamaLMModel, params) -> None:
    engine = Engine(model, EOD, 257)
    draw, done = draws(Sampling(temperature=0), [0]), np.zeros(1, bool)
    carry = engine.prefill(params, [np.arange(SMALLEST_ROOM - 11, dtype=np.int32)], new_tokens=10)
    assert carry.state[0].capacity == SMALLEST_ROOM
    carry, _ = engine.decode(params, carry, draw, done, 10)
    assert np.isfinite(carry.logits).all()
    with pytest.raises(ValueError, match="steps is 1, but the state has room for 0"):
        engine.decode(params, carry, draw, done, 1)
    carry = engine.prefill(params, [np.arange(SMALLEST_ROOM - 11, dtype=np.int32)], new_tokens=11)
    assert carry.state[0].capacity == 2 * SMALLEST_ROOM


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_windows_score_every_position_once_with_half_a_window_before_it(size: int) -> None:
    for length in (1, 4, 5, 8, 9, 31):
        found = list(windows(length, size))
        scored = [p for window in found for p in range(window.scored, window.end)]
        assert scored == list(range(length))
        assert all(window.end - window.start <= size for window in found)
        assert all(window.scored - window.start >= size // 2 for window in found[1:])


def test_held_out_documents_are_scored_in_windows_of_the_context_whatever_the_batch(model, params) -> None:
    documents = [b"hello world, hello world, hello", b"a", b"", b"xyz" * 9]
    split = Split.from_documents([list(d) for d in documents], eod_id=EOD)
    split.tokenizer = ByteTokenizer()
    apply = jax.jit(model.apply)
    scorer, alone = Scorer(model), []
    for document in documents:
        tokens, nats = np.array([EOD, *document, EOD], np.int32), 0.0
        for start, scored, end in windows(len(tokens) - 1, CONTEXT):
            row = np.zeros((1, CONTEXT), np.int32)
            row[0, : end - start] = tokens[start:end]
            scores = jax.nn.log_softmax(apply({"params": params}, row))[0]
            nats -= float(sum(scores[p - start, tokens[p + 1]] for p in range(scored, end)))
        alone.append(nats)
        score = score_document(scorer, params, tokens, len(document))
        assert score.nats == pytest.approx(nats, rel=1e-5)
        assert score.tokens == len(document) + 1
    # Emptied in between, each stretch is read like a document, without its opening.
    cleared = [*windows(20, CONTEXT), *(tuple(20 + place for place in w) for w in windows(12, CONTEXT))]
    assert list(windows(32, CONTEXT, 20)) == cleared
    (score,) = DocumentScorer(scorer, split, clear_every=20)(params, [0])
    tokens, nats = np.array([EOD, *documents[0], EOD], np.int32), 0.0
    for start, scored, end in cleared:
        row = np.zeros((1, CONTEXT), np.int32)
        row[0, : end - start] = tokens[start:end]
        scores = jax.nn.log_softmax(apply({"params": params}, row))[0]
        nats -= float(sum(scores[p - start, tokens[p + 1]] for p in range(scored, end)))
    assert score.nats == pytest.approx(nats, rel=1e-5)
    for batch_size, seq_len in ((1, 8), (3, 64)):
        score = HeldOut(scorer, split, batch_size=batch_size, seq_len=seq_len)(params)
        assert score.nats == pytest.approx(sum(alone), rel=1e-5)
        assert (score.tokens, score.raw_bytes) == (sum(len(d) + 1 for d in documents), sum(map(len, documents)))


def test_scoring_keeps_documents_apart(model: LlamaLMModel) -> None:
    loose = LlamaConfig.from_dict(model.config.to_dict() | {"mask_across_document_boundaries": False})
    assert with_exact_resets(loose) == model.config
    assert not loose.mask_across_document_boundaries


# ---------------------------------------------------------------------------------------------------------------------
# From the command line
# ---------------------------------------------------------------------------------------------------------------------


def test_a_llama_trains_and_generates_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"document {i} says: " + "some words " * (i + 2))
    options = "--sources *.txt --tokenizer bytes --validation_fraction 0.3 --embedding_dim 16 --head_dim 8"
    options += " --num_blocks 1 --context_length 16 --batch_size 2 --warmup_steps 1 --sample_prompts some"
    options += " --accumulate 2 --dropout 0.1"
    assert main(["train", "quickstart_llama", *options.split(), "--steps", "3"]) == 0
    assert "bits per byte" in capfd.readouterr().out
    capfd.readouterr()
    assert main(["generate", "quickstart_llama", "--prompt", "some", "--max-tokens", "30"]) == 0
    assert capfd.readouterr().out
    run = xlstm_jax.load("runs/quickstart_llama")
    assert run.step == 3
    assert isinstance(run.model, LlamaLMModel)
    assert run.score("some words").nats > 0
    lines = [json.loads(line) for line in Path("runs/quickstart_llama/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)

    capfd.readouterr()
    assert main(["convert", "quickstart_llama", "runs/hf"]) == 2
    assert "runs/hf would lie among the runs" in capfd.readouterr().err
    assert main(["convert", "quickstart_llama", "hf"]) == 0
    for verb in ("generate", "train"):
        assert main([verb, "./hf"]) == 1
        assert "hf holds published weights and is no run: `xlstm convert hf NAME`" in capfd.readouterr().err
    card = Path("hf/README.md").read_text()
    report = json.loads(Path("runs/quickstart_llama/report.json").read_text())
    for part in ("library_name: transformers", f"| model | {report['bits_per_byte']:.3f} |", "| steps | 3 |"):
        assert part in card
    assert main(["generate", "hf"]) == 1
    assert "is no run" in capfd.readouterr().err
    assert main(["convert", "hf", "hf"]) == 0
    assert main(["generate", "hf", "--prompt", "some", "--max-tokens", "3"]) == 0  # runs/hf, not ./hf
    capfd.readouterr()
    assert main(["convert", "hf", "back"]) == 0
    assert "takes 1,000 steps of 8 rows of 16 tokens" in capfd.readouterr().out
    back = xlstm_jax.load("runs/back")
    assert back.config.context_length == run.config.context_length
    assert back.score("some words") == run.score("some words")
