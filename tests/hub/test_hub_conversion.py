"""What `xlstm convert` makes of folders of Hugging Face, and back: runs, tokenizers, and how much memory it takes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_folders import GOLDEN, bits, expressible, with_cell

import xlstm_jax
from xlstm_jax.cli import main
from xlstm_jax.cli.convert import experiment_of
from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import NoEndOfDocumentError, NormalizerError
from xlstm_jax.data.tokenizers import ByteTokenizer, load_tokenizer, train_byte_level
from xlstm_jax.hub.converted import write_run
from xlstm_jax.hub.folders import parse_size, write_huggingface
from xlstm_jax.hub.formats import TITLES, detect
from xlstm_jax.hub.formats.base import Weights
from xlstm_jax.hub.kept import Kept
from xlstm_jax.hub.safetensors_files import open_tensors
from xlstm_jax.hub.tokenizers import read_tokenizer
from xlstm_jax.kernels.closeness import relative_error
from xlstm_jax.models.language_model import build_model
from xlstm_jax.presets.quickstart import tiny
from xlstm_jax.runs.folder import RunFolder

# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe():
    return train_byte_level([b"the cat sat on the mat. " * 20], 290)


@pytest.fixture
def folder_with_text(tmp_path, bpe):
    """A model with 320 tokens, and a tokenizer as on the Hub."""
    config = dataclasses.replace(expressible(), vocab_size=320)
    params = build_model(config).init(jax.random.key(3), jnp.zeros((1, 1), jnp.int32))["params"]
    write_huggingface(tmp_path / "hub", config, params, bpe)
    return tmp_path / "hub"


def test_a_converted_run_generates_scores_and_keeps_its_tokenizer(tmp_path, capsys, folder_with_text, bpe):
    names = {"config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in folder_with_text.iterdir()} == names
    assert json.loads((folder_with_text / "config.json").read_text())["eos_token_id"] == bpe.eod_id
    assert main(["convert", str(folder_with_text), str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "disk: " in said
    run = xlstm_jax.load(tmp_path / "run")
    assert run.tokenizer.fingerprint == bpe.fingerprint
    assert run.score("the cat").nats > 0
    assert main(["generate", str(tmp_path / "run"), "--prompt", "the cat", "--max-tokens", "4", "--no-echo"]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    for name in names - {"model.safetensors"}:
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((folder_with_text / name).read_text())
    assert bits(tmp_path / "back") == bits(folder_with_text)


def test_a_converted_run_is_trained_as_a_fork_alone(tmp_path, capsys, monkeypatch, folder_with_text):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 200 + "\n\n" + "the mat sat on the cat. " * 50)
    assert main(["convert", "hub", "mine", "--context-length", "16", "--dtype", "bfloat16"]) == 0
    assert main(["train", "runs/mine"]) == 1
    assert "--fork NAME" in capsys.readouterr().err
    options = ["--sources", str(text), "--steps", "2", "--warmup_steps", "1", "--batch_size", "2"]
    assert main(["train", "runs/mine", "--fork", "tuned", *options]) == 0
    before, after = xlstm_jax.load("runs/mine"), xlstm_jax.load("runs/tuned")
    assert (before.step, after.step) == (0, 2)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after.params)} == {"float32"}
    one, other = (run.params["token_embedding"]["embedding"].astype(jnp.float32) for run in (before, after))
    assert 0 < relative_error(other, one) < 0.1  # it went on from these weights
    assert main(["convert", "tuned", "out"]) == 0
    assert json.loads(Path("out/config.json").read_text())["weight_mode"] == "single"
    assert main(["train", "runs/mine", "--fork", "tuned", *options]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_run_without_a_tokenizer_computes_but_takes_no_text(tmp_path, capsys):
    assert main(["convert", str(GOLDEN / "hf_xlstm_single"), str(tmp_path / "run")]) == 0
    assert "no tokenizer" in capsys.readouterr().err
    run = xlstm_jax.load(tmp_path / "run")
    assert run.model.apply({"params": run.params}, jnp.zeros((1, 3), jnp.int32)).shape == (1, 3, 64)
    assert main(["generate", str(tmp_path / "run"), "--prompt", "x"]) == 1
    assert "--tokenizer" in capsys.readouterr().err
    assert main(["convert", str(GOLDEN / "hf_xlstm_single"), str(tmp_path / "other"), "--tokenizer", "bytes"]) == 1
    assert "257 tokens, but the model knows 64 only" in capsys.readouterr().err


def test_plain_bytes_become_a_tokenizer_that_everybody_reads(tmp_path):
    config = dataclasses.replace(expressible(), vocab_size=257)
    params = build_model(config).init(jax.random.key(3), jnp.zeros((1, 1), jnp.int32))["params"]
    write_huggingface(tmp_path / "out", config, params, ByteTokenizer())
    tokenizer = load_tokenizer(tmp_path / "out")
    for text in (b"\x00\xff abc\n", "Größe <|endoftext|> 日本".encode()):
        np.testing.assert_array_equal(tokenizer.encode_array(text), ByteTokenizer().encode_array(text))
    assert tokenizer.eod_id == 256


def test_a_tokenizer_that_normalises_or_has_no_evident_end_is_still_read(tmp_path, bpe):
    data = json.loads(bpe.text)
    data["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer, notes = read_tokenizer(tmp_path, {})
    assert "normalises" in notes[0]
    assert tokenizer.vocab_size == bpe.vocab_size
    data["added_tokens"][0]["content"] = "<|the end|>"
    data["model"]["vocab"]["<|the end|>"] = data["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer, _ = read_tokenizer(tmp_path, {"eos_token_id": [bpe.eod_id]})
    assert tokenizer.eod_text == "<|the end|>"


@pytest.mark.parametrize("name", ["drop_normalizer", "end-of-document"])
def test_what_is_wrong_with_a_tokenizer_is_told_by_the_type_of_the_error_not_by_its_words(tmp_path, bpe, name):
    """The path stands in the sentence."""
    (tmp_path / name).mkdir()
    file = tmp_path / name / "tokenizer.json"
    file.write_text(bpe.text.replace("<|endoftext|>", "<|the end|>"))
    tokenizer, notes = read_tokenizer(file.parent, {"eos_token_id": bpe.eod_id})
    assert (tokenizer.eod_text, notes) == ("<|the end|>", [])
    with pytest.raises(NoEndOfDocumentError):
        read_tokenizer(file.parent, {})
    file.write_text(json.dumps(json.loads(bpe.text) | {"normalizer": {"type": "NFC"}}))
    with pytest.raises(NormalizerError):
        load_tokenizer(file)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_told_and_nothing_is_written(tmp_path, capsys, folder_with_text, name):
    (folder_with_text / name).write_text("{")
    assert main(["convert", str(folder_with_text), str(tmp_path / "run")]) == 1
    assert f"{name} is damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_tokenizer_with_tokens_of_no_known_form_is_left_out_with_a_note(tmp_path, capsys, folder_with_text):
    data = json.loads((folder_with_text / "tokenizer.json").read_text()) | {"added_tokens": [3]}
    (folder_with_text / "tokenizer.json").write_text(json.dumps(data))
    assert main(["convert", str(folder_with_text), str(tmp_path / "run")]) == 0
    assert "has no tokenizer" in capsys.readouterr().err


def test_another_tokenizer_takes_the_place_of_all_files_of_the_first(tmp_path, folder_with_text):
    (folder_with_text / "merges.txt").write_text("of the first")
    config = json.loads((folder_with_text / "tokenizer_config.json").read_text())
    (folder_with_text / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<of the first>"}))
    assert main(["convert", str(folder_with_text), str(tmp_path / "run"), "--tokenizer", "bytes"]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert not (tmp_path / "back/merges.txt").exists()
    assert json.loads((tmp_path / "back/tokenizer_config.json").read_text())["bos_token"] == "<|endoftext|>"
    assert load_tokenizer(tmp_path / "back").eod_id == 256


def test_a_text_is_opened_with_the_token_that_the_model_expects(tmp_path, folder_with_text):
    def opening(**changes):
        settings = json.loads((folder_with_text / "config.json").read_text()) | changes.pop("config", {})
        (folder_with_text / "config.json").write_text(json.dumps(settings))
        data = json.loads((folder_with_text / "tokenizer.json").read_text()) | changes
        (folder_with_text / "tokenizer.json").write_text(json.dumps(data))
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        assert main(["convert", str(folder_with_text), str(out)]) == 0
        return xlstm_jax.load(out)

    plain = opening()
    assert plain.generator.engine.bos_id == plain.tokenizer.eod_id
    quiet = opening(config={"bos_token_id": 5, "force_bos_token_insert": False})
    assert quiet.generator.engine.bos_id == plain.tokenizer.eod_id
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "!", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"!": {"id": "!", "ids": [5], "tokens": ["!"]}},
    }
    told = opening(post_processor=template)
    assert told.generator.engine.bos_id == 5
    assert told.score("the cat").nats != plain.score("the cat").nats


def test_the_newest_checkpoint_of_a_trained_run_is_written(tmp_path):
    config = dataclasses.replace(expressible(), vocab_size=257)
    params = build_model(config).init(jax.random.key(3), jnp.zeros((1, 1), jnp.int32))["params"]
    write_run(tmp_path / "run", Weights(config, params), ByteTokenizer(), Kept(), experiment_of)
    newer = jax.tree.map(lambda leaf: leaf + 1, params)
    with RunFolder(tmp_path / "run").checkpoints() as checkpoints:
        checkpoints.save(5, {"params": newer, "step": jnp.int32(5)})
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "new")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "old"), "--step", "0"]) == 0
    scale = "backbone.out_norm.weight"
    assert open_tensors(tmp_path / "new")[scale].read()[0] == 2.0
    assert open_tensors(tmp_path / "old")[scale].read()[0] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out"], "neither a file or folder nowhere nor a run runs/nowhere"),
        (["SINGLE", "taken"], "taken is there already"),
        (["SINGLE", "out", "--to", "huggingface"], "is no run"),
        (["SINGLE", "out", "--weight-mode", "fused"], "--weight-mode has no meaning here"),
        (["SINGLE", "out", "--format", "gguf"], "the format is 'gguf', but must be one of xlstm, llama, xlstm-package"),
        (["SINGLE", "out", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["SINGLE", "out", "--format", "llama"], "model_type 'xlstm', which is the format xlstm, not llama"),
    ],
)
def test_a_wrong_call_is_told_in_one_sentence(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/taken").mkdir()
    words = [str(GOLDEN / "hf_xlstm_single") if word == "SINGLE" else word for word in words]
    assert main(["convert", *words]) != 0
    assert message in capsys.readouterr().err
    assert not Path("runs/out").exists()


def test_the_help_lists_the_formats_without_jax():
    program = (
        "import sys\nfrom xlstm_jax.cli import main\ntry:\n    main(['convert', '--help'])\n"
        "finally:\n    assert not {'jax', 'flax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, title in TITLES.items():
        assert re.search(rf"{name} +{re.escape(title)}", done.stdout)


def test_a_run_beyond_the_format_is_refused_before_its_weights_are_read(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run").create()
    folder.checkpoint_dir.mkdir()
    experiment = tiny()
    folder.write_config(dataclasses.replace(experiment, model=with_cell(experiment.model, norm_type_v1="rmsnorm")))
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out")]) != 0
    assert "norm_type_v1 is 'rmsnorm'" in capsys.readouterr().err


def test_sizes_are_read_as_people_write_them():
    assert [parse_size(text) for text in ("5GB", "200 mb", "1e3", "7B")] == [5 * 10**9, 2 * 10**8, 1000, 7]
    for text in ("", "GB", "-1GB", "five"):
        with pytest.raises(ConfigError, match="size"):
            parse_size(text)


def test_a_config_of_no_known_format_is_told_what_is_known():
    with pytest.raises(ConfigError, match=r"no model_type.*xlstm-package: xLSTMLMModel"):
        detect({"hidden_size": 3})
    assert detect({"mlstm_block": {}}) == "xlstm-package"


# -- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys, threading, time
from pathlib import Path
import jax
import xlstm_jax.cli.train, xlstm_jax.inference.run, xlstm_jax.hub.converted
from xlstm_jax.cli import main
from xlstm_jax.cli.convert import experiment_of

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

# What any conversion needs, whatever its size, is loaded before.
small, out, source, target, *options = sys.argv[1:]
assert main(["convert", small, out]) == 0
assert main(["convert", out, out + "-back"]) == 0
before, peak, done = resident(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident())

watcher = threading.Thread(target=watch)
watcher.start()
code = main(["convert", source, target, *options])
done.set()
watcher.join()
print("PEAK", peak - before)
sys.exit(code)
"""


def peak_of(tmp_path, name, *words):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEASURE, str(GOLDEN / "hf_xlstm_single"), str(tmp_path / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(re.search(r"PEAK (\d+)", done.stdout)[1])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_the_peak_of_memory_is_one_shard_above_the_weights(tmp_path):
    config = dataclasses.replace(
        expressible(), embedding_dim=768, num_blocks=10, vocab_size=1024, dtype="float32", lm_head_dtype="float32"
    )
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(0)  # noise, which no file format can make smaller
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    shard = 25_000_000
    write_huggingface(tmp_path / "hub", config, params, None, shard_bytes=shard)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    del params
    assert weights > 10 * shard
    there = peak_of(tmp_path, "a", tmp_path / "hub", tmp_path / "run")
    back = peak_of(tmp_path, "b", tmp_path / "run", tmp_path / "back", "--shard-size", "25MB")
    # Threads, buffers of the disk and of the checkpoint's checksums take a little, too.
    allowed = weights + shard + 60_000_000
    assert there < allowed, (there / 1e6, weights / 1e6)
    assert back < allowed, (back / 1e6, weights / 1e6)
