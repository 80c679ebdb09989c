"""Models of transformers and ours, on the same weights: the same logits, losses and continuations, both ways.

transformers has two forms of the xLSTM: its own cell, and that of the package xlstm where that is installed. Both agree
with ours at every length, multiples of the chunk of 64 or not: in "inference" mode they read what is left after the
last whole chunk step by step.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_like

import xlstm_jax
from xlstm_jax.cli import main
from xlstm_jax.cli.convert import experiment_of
from xlstm_jax.data.tokenizers import train_byte_level
from xlstm_jax.hub.converted import write_run
from xlstm_jax.hub.formats.base import Weights
from xlstm_jax.hub.kept import Kept
from xlstm_jax.hub.safetensors_files import open_tensors
from xlstm_jax.inference.sampling import Sampling
from xlstm_jax.kernels.closeness import relative_error
from xlstm_jax.models.language_model import param_shapes
from xlstm_jax.presets import get_preset

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
models = pytest.importorskip("huggingface_models")
tokens_of, logits_of, losses_of = models.tokens_of, models.logits_of, models.losses_of

CLOSE = 1e-5
"""Relative error of logits in the 2-norm; both sides compute in float32."""


def converted(folder, out, *options):
    assert main(["convert", str(folder), str(out), *options]) == 0
    return xlstm_jax.load(out)


def run_logits(run, tokens):
    return np.asarray(jax.jit(run.model.apply)({"params": run.params}, jnp.asarray(tokens)))


def run_greedy(run, tokens, count):
    """Continuations by the recurrent form, token by token."""
    apply = jax.jit(run.model.apply, static_argnames="return_state")
    state = (
        run.model.init_state(len(tokens), tokens.shape[1] + count)
        if not run.model.fixed_state
        else run.model.init_state(len(tokens))
    )
    logits, state = apply({"params": run.params}, tokens, state=state, return_state=True)
    made = []
    for _ in range(count):
        made.append(np.asarray(logits[:, -1].argmax(-1), np.int32))
        logits, state = apply({"params": run.params}, made[-1][:, None], state=state, return_state=True)
    return np.stack(made, axis=1)


def assert_alike(run, model, lengths=(1, 63, 64, 100)):
    for length in lengths:
        tokens = tokens_of(2, length, seed=length)
        truth, found = logits_of(model, tokens), run_logits(run, tokens)
        assert relative_error(found, truth) < CLOSE, length
        if length > 1:
            assert relative_error(losses_of(found, tokens), losses_of(truth, tokens)) < CLOSE, length


XLSTM = {
    "small": {},
    "fused": {"weight_mode": "fused", "seed": 1},
    "heads": {"num_heads": 4, "hidden_size": 256, "num_hidden_layers": 3, "seed": 2},
    "package": {"native": False, "seed": 3},
    "narrow values": {"v_dim_factor": 0.5, "qk_dim_factor": 1.0, "gate_soft_cap": 3.0, "seed": 4},
    # 3.0 x 128 + 1: transformers rounds this width down.
    "odd width": {"ffn_proj_factor": 3.001, "output_logit_soft_cap": 5.0, "norm_eps": 1e-4, "seed": 5},
    "tied": {"tie_word_embeddings": True, "seed": 6},
}


@pytest.mark.parametrize("name", XLSTM)
def test_an_xlstm_of_transformers_is_the_same_model_here_and_back(tmp_path, name):
    model = models.xlstm_model(**XLSTM[name])
    model.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    run = converted(tmp_path / "theirs", tmp_path / "run")
    assert_alike(run, model)

    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back"), "--shard-size", "300KB"]) == 0
    theirs, back = open_tensors(tmp_path / "theirs"), open_tensors(tmp_path / "back")
    assert {n: t.read().tobytes() for n, t in theirs.items()} == {n: t.read().tobytes() for n, t in back.items()}
    again, info = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = tokens_of(1, 70)
    np.testing.assert_array_equal(logits_of(again.eval(), tokens), logits_of(model, tokens))


@pytest.mark.parametrize("native", [True, False])
def test_greedy_continuations_are_those_of_transformers(tmp_path, native):
    model = models.xlstm_model(seed=7, native=native)
    model.save_pretrained(tmp_path / "theirs")
    run = converted(tmp_path / "theirs", tmp_path / "run")
    for length in (1, 5, 70):
        prompt = tokens_of(1, length, seed=length)
        truth = model.generate(
            torch.as_tensor(prompt, dtype=torch.long), max_new_tokens=40, do_sample=False, eos_token_id=None
        )
        np.testing.assert_array_equal(run_greedy(run, prompt, 40), truth[:, length:].numpy())


@pytest.mark.parametrize("mode", ["single", "fused"])
def test_a_model_made_here_is_the_same_in_transformers(tmp_path, mode):
    model = models.xlstm_model(seed=8)
    model.save_pretrained(tmp_path / "theirs")
    run = converted(tmp_path / "theirs", tmp_path / "run")
    (tmp_path / "run/huggingface/config.json").unlink()  # nothing is left of where it came from
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--weight-mode", mode]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["weight_mode"] == mode
    for native in (True, False):
        _, model_class = models.xlstm_classes(native)
        back, info = model_class.from_pretrained(
            tmp_path / "out", output_loading_info=True, **({} if native else models.KERNELS)
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_alike(run, back.eval(), (70,))


LLAMA = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2, "seed": 1},
    "one key head": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
    "biases": {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-4, "seed": 2},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 2, "seed": 3},
}


@pytest.mark.parametrize("name", LLAMA)
def test_a_llama_of_transformers_is_the_same_model_here_and_back(tmp_path, name):
    model = models.llama_model(**LLAMA[name])
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    run = converted(tmp_path / "theirs", tmp_path / "run")
    assert_alike(run, model, (1, 37, 100))
    prompt = tokens_of(1, 9)
    truth = model.generate(
        torch.as_tensor(prompt, dtype=torch.long), max_new_tokens=30, do_sample=False, eos_token_id=None
    )
    np.testing.assert_array_equal(run_greedy(run, prompt, 30), truth[:, 9:].numpy())

    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    theirs, back = open_tensors(tmp_path / "theirs"), open_tensors(tmp_path / "back")
    assert {n: t.read().tobytes() for n, t in theirs.items()} == {n: t.read().tobytes() for n, t in back.items()}
    (tmp_path / "run/huggingface/config.json").unlink()
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "fresh")]) == 0
    for folder in ("back", "fresh"):
        again, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        np.testing.assert_array_equal(logits_of(again.eval(), prompt), logits_of(model, prompt))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_stay_as_they_are_and_compute_alike(tmp_path, dtype):
    model = models.xlstm_model(seed=9, autocast_kernel_dtype=dtype).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs")
    run = converted(tmp_path / "theirs", tmp_path / "run")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.params)} == {dtype}
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    theirs, back = open_tensors(tmp_path / "theirs"), open_tensors(tmp_path / "back")
    assert {n: t.read().tobytes() for n, t in theirs.items()} == {n: t.read().tobytes() for n, t in back.items()}
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == dtype
    # The same weights in float32 on both sides: theirs widened by PyTorch, ours by --dtype.
    wide = converted(tmp_path / "theirs", tmp_path / "wide", "--dtype", "float32")
    truth = models.xlstm_model(seed=9)
    truth.load_state_dict(model.float().state_dict())
    tokens = tokens_of(1, 70)
    assert relative_error(run_logits(wide, tokens), logits_of(truth, tokens)) < CLOSE
    # In their own dtype they are off by its rounding, which a few dozen operations in a row add up.
    assert relative_error(run_logits(run, tokens), logits_of(truth, tokens)) < {"bfloat16": 0.1, "float16": 0.02}[dtype]


@pytest.mark.parametrize("preset", ["tiny", "quickstart_llama"])
def test_a_text_scored_by_transformers_with_its_own_tokenizer_has_our_numbers(tmp_path, preset):
    """As a stranger does it: tokenizer and model from the folder, nothing put in by hand."""
    bpe = train_byte_level([b"the cat sat on the mat. " * 20], 290)
    # A model may say tokens beyond its tokenizer in transformers; ours are left out here.
    model = dataclasses.replace(get_preset(preset).model, vocab_size=bpe.vocab_size, num_blocks=2, context_length=256)
    fields = {"embedding_dim": 32, "head_dim": 16} if preset == "quickstart_llama" else {"embedding_dim": 128}
    model = dataclasses.replace(model, **fields)
    params = random_like(param_shapes(model))
    write_run(tmp_path / "run", Weights(model, params), bpe, Kept(), experiment_of)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    run = xlstm_jax.load(tmp_path / "run")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    kernels = {} if preset == "quickstart_llama" else models.KERNELS
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **kernels).eval()
    assert (tokenizer.padding_side, tokenizer.bos_token_id, tokenizer.eos_token_id) == ("left", bpe.eod_id, bpe.eod_id)
    for text in ("the cat sat", "on a mat. Größe", ""):
        ids = tokenizer(text, return_tensors="np").input_ids.astype(np.int32)
        np.testing.assert_array_equal(ids[0], [bpe.eod_id, *bpe.encode(text)])
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text
        whole = np.concatenate([ids, [[tokenizer.eos_token_id]]], axis=1)
        nats = float(losses_of(logits_of(theirs, whole), whole).astype(np.float64).sum())
        assert nats == pytest.approx(run.score(text).nats, rel=1e-5)
    settings = theirs.generation_config
    assert (settings.do_sample, settings.temperature, settings.max_new_tokens) == (True, 0.8, 256)
    prompt = tokenizer("the cat", return_tensors="pt")
    made = theirs.generate(**prompt, do_sample=False, max_new_tokens=12)[0, prompt.input_ids.shape[1] :]
    ours = run.generate("the cat", max_tokens=12, temperature=0, heal=False)
    # A character that is cut off is no text here.
    assert tokenizer.decode(made, skip_special_tokens=True).rstrip("\ufffd") == ours.rstrip("\ufffd")


def test_end_tokens_of_a_folder_end_texts_in_transformers_as_they_do_here(tmp_path):
    bpe = train_byte_level([b"the cat " * 20], 290)
    model = models.llama_model(seed=4, vocab_size=bpe.vocab_size)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/tokenizer.json").write_text(bpe.text)
    free = converted(tmp_path / "theirs", tmp_path / "free")
    prompt = [bpe.eod_id, *bpe.encode("the cat")]
    made = run_greedy(free, np.array([prompt], np.int32), 20)[0].tolist()
    stop = made[8]
    assert bpe.eod_id not in made[:9]
    (tmp_path / "theirs/generation_config.json").write_text(json.dumps({"eos_token_id": [bpe.eod_id, stop]}))
    run = converted(tmp_path / "theirs", tmp_path / "run")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    truth = again.generate(torch.as_tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
    assert truth == made[: made.index(stop) + 1]
    (last,) = [d for d in run.generator.stream(["the cat"], Sampling(20, 0.0, heal=False)) if d.finish]
    assert (last.finish, last.tokens) == ("end", made.index(stop))
