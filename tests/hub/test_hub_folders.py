"""Folders as strangers publish them: wrappers' names, stray files, other dtypes, damaged values, several end tokens."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from huggingface_folders import GOLDEN, bits, copy_of, expressible, read, rewrite

import xlstm_jax
from xlstm_jax.cli import main
from xlstm_jax.data.tokenizers import ByteTokenizer, train_byte_level
from xlstm_jax.hub.errors import WeightsError, refuse
from xlstm_jax.hub.folders import open_source, write_huggingface
from xlstm_jax.hub.formats.base import ReadOptions
from xlstm_jax.hub.kept import Kept
from xlstm_jax.hub.safetensors_files import open_tensors
from xlstm_jax.models.language_model import build_model
from xlstm_jax.runs.folder import RunFolder, TokenizerInfo

SINGLE, LLAMA, PACKAGE = "hf_xlstm_single", "hf_llama_gqa", "xlstm_package_mixed"
NORM = {SINGLE: "backbone.out_norm.weight", LLAMA: "model.norm.weight", PACKAGE: "token_embedding.weight"}


def copied(name, out):
    shutil.copytree(GOLDEN / name, out)
    return out


def assert_same(weights, truth):
    assert weights.config == truth.config
    jax.tree.map(np.testing.assert_array_equal, weights.params, truth.params)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_forward_module.", "base_model.model.", "model."])
@pytest.mark.parametrize("name", [SINGLE, LLAMA, PACKAGE])
def test_what_a_wrapper_puts_before_all_names_is_taken_off_with_a_note(tmp_path, name, prefix):
    folder = copied(name, tmp_path / "f")
    rewrite(folder, lambda tensors: {prefix + key: value for key, value in tensors.items()})
    source = open_source(folder)
    (note,) = source.notes
    assert f"begin with {prefix!r}" in note
    assert_same(source.read(), read(GOLDEN / name))


def test_wrappers_in_wrappers_and_tied_heads_without_embedding_are_known(tmp_path):
    folder = copy_of(LLAMA, tmp_path / "f", tie_word_embeddings=True)
    drop = "lm_head.weight"
    rewrite(folder, lambda tensors: {key: value for key, value in tensors.items() if key != drop})
    truth = read(folder)
    assert not open_source(folder).notes  # though "model." is before all that is left
    rewrite(folder, lambda tensors: {f"module._orig_mod.{key}": value for key, value in tensors.items()})
    assert_same(read(folder), truth)


def test_a_prefix_of_some_names_alone_is_none(tmp_path):
    folder = copied(SINGLE, tmp_path / "f")
    rewrite(folder, lambda tensors: tensors | {f"ema.{key}": value for key, value in tensors.items()})
    with pytest.raises(WeightsError, match=r"surplus: ema\.backbone"):
        read(folder)


def test_a_tied_model_saved_without_its_head_is_whole(tmp_path):
    folder = copy_of(LLAMA, tmp_path / "f", tie_word_embeddings=True)
    names = [name for name in open_tensors(folder) if name != "lm_head.weight"]
    rewrite(folder, lambda tensors: {name: tensors[name] for name in names})
    truth = read(folder)
    rewrite(folder, lambda tensors: {name.removeprefix("model."): tensors[name] for name in names})
    source = open_source(folder)
    assert "lack 'model.'" in source.notes[0]
    assert_same(source.read(), truth)
    (folder / "config.json").write_text((GOLDEN / LLAMA / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"\(1 problem\):\n  missing: lm_head\.weight"):
        read(folder)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [True, False])
def test_files_beside_the_weights_are_left_alone_with_a_note(tmp_path, capsys, sharded):
    folder = copied(SINGLE, tmp_path / "f")
    truth = read(folder)
    if not sharded:
        rewrite(folder, lambda tensors: tensors)
    for stray in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "optimizer.pt"):
        (folder / stray).write_bytes(b"anything")
    (folder / "original").mkdir()
    (folder / "original/model.safetensors").write_bytes(b"anything")
    source = open_source(folder)
    (note,) = source.notes
    assert re.match(r"not read: adapter_model\.safetensors, consolidated\.safetensors, pytorch_model\.bin \(", note)
    assert ("model.safetensors.index.json names" in note) == sharded
    assert_same(source.read(), truth)
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 0
    assert f"note: {note}\n" in capsys.readouterr().err


def test_an_adapter_is_told_to_be_one(tmp_path, capsys):
    folder = copied(SINGLE, tmp_path / "f")
    rewrite(folder, lambda tensors: tensors)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    for damage in (lambda: None, lambda: (folder / "config.json").rename(folder / "adapter_config.json")):
        damage()
        assert main(["convert", str(folder), str(tmp_path / "run")]) == 1
        assert "holds an adapter" in capsys.readouterr().err


# -- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [np.float64, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("name", [SINGLE, LLAMA, PACKAGE])
def test_floating_point_numbers_of_any_width_are_cast_when_that_is_asked_for(tmp_path, stored, name):
    folder = copied(name, tmp_path / "f")
    rewrite(folder, lambda tensors: {key: value.astype(stored) for key, value in tensors.items()})
    count = len(open_tensors(folder))
    with pytest.raises(WeightsError, match=rf"wrong dtype: {count} tensors are {np.dtype(stored)} \(first ") as error:
        read(folder)
    assert "(1 problem)" in str(error.value)
    assert "--dtype casts" in str(error.value)
    norm = open_tensors(folder)[NORM[name]].read()
    for dtype in ("float32", "bfloat16", "float16"):
        weights = read(folder, dtype=dtype)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(weights.params)} == {dtype}
        assert weights.config.dtype == dtype
        one = {
            SINGLE: lambda p: p["xlstm_block_stack"]["post_blocks_norm"]["scale"],
            LLAMA: lambda p: p["block_stack"]["post_blocks_norm"]["scale"],
            PACKAGE: lambda p: p["token_embedding"]["embedding"],
        }[name](weights.params)
        np.testing.assert_array_equal(np.asarray(one), norm.astype(jnp.dtype(dtype)))


@pytest.mark.parametrize("stored", [np.int8, np.uint8, np.bool_])
def test_quantised_weights_are_not_cast(tmp_path, stored):
    folder = copied(SINGLE, tmp_path / "f")
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"].astype(stored)})
    for dtype in (None, "float32"):
        with pytest.raises(WeightsError, match=r"lm_head\.weight is \w+, but .*; quantised weights are not read"):
            read(folder, dtype=dtype)


def test_the_same_problem_of_many_blocks_is_one_line():
    lines = [f"missing: blocks.{i}.norm.weight (3,), which holds blocks_{i}.norm.scale" for i in range(32)]
    with pytest.raises(WeightsError) as error:
        refuse("nothing was loaded", [*lines, "surplus: x"])
    assert str(error.value).splitlines()[1:] == [f"  {lines[0]} (and so in 31 more blocks)", "  surplus: x"]


# -- values -----------------------------------------------------------------------------------------------------------


def with_values(folder, name, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[:2] = value
        return tensors

    rewrite(folder, change)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [SINGLE, LLAMA, PACKAGE, "hf_xlstm_fused"])
def test_values_that_are_not_finite_are_refused_by_tensor_or_taken_with_a_note(tmp_path, name, value):
    folder, norm = copied(name, tmp_path / "f"), NORM.get(name, NORM[SINGLE])
    with_values(folder, norm, value)
    told = f"{norm} holds 2 values of NaN or infinity"
    with pytest.raises(WeightsError, match=re.escape(told)):
        read(folder)
    assert told in read(folder, allow_nonfinite=True).notes


def test_a_cast_out_of_the_range_of_its_dtype_is_refused(tmp_path):
    folder = copied(SINGLE, tmp_path / "f")
    with_values(folder, NORM[SINGLE], 1e6)
    read(folder)
    with pytest.raises(WeightsError, match=r"out_norm\.weight holds 2 values of NaN or infinity"):
        read(folder, dtype="float16")


def test_the_command_refuses_nan_both_ways_unless_told_otherwise(tmp_path, capsys):
    folder = copied(SINGLE, tmp_path / "f")
    with_values(folder, NORM[SINGLE], np.nan)
    run, back = str(tmp_path / "run"), str(tmp_path / "back")
    told = "backbone.out_norm.weight holds 2 values of NaN or infinity"
    for source, out in ((str(folder), run), (run, back)):
        assert main(["convert", source, out]) == 1
        assert told in capsys.readouterr().err
        assert not (tmp_path / out).exists()
        assert main(["convert", source, out, "--allow-nonfinite"]) == 0
        assert f"note: {told}" in capsys.readouterr().err
    assert bits(back) == bits(folder)


# -- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "note"),
    [
        (SINGLE, {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config ('bitsandbytes')"),
        (LLAMA, {"quantization_config": {"load_in_8bit": True}}, "quantization_config (None)"),
        (LLAMA, {"auto_map": {"AutoModel": "x.py"}}, "auto_map"),
        (SINGLE, {"torch_dtype": "float32", "dtype": "bfloat16"}, "dtype is 'bfloat16', but the tensors are float32"),
        (LLAMA, {"torch_dtype": "float16", "dtype": None}, "torch_dtype is 'float16', but the tensors are float32"),
        ("hf_xlstm_fused", {"norm_reduction_force_float32": False}, "norm_reduction_force_float32 False"),
    ],
)
def test_what_config_says_and_is_not_followed_is_noted(tmp_path, name, changes, note):
    (found,) = read(copy_of(name, tmp_path / "f", **changes)).notes
    assert note in found


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"torch_dtype": "auto", "dtype": None}, {}),
        ({"torch_dtype": "float32", "dtype": "torch.float32"}, {}),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"norm_reduction_force_float32": False, "quantization_config": None}, {}),
    ],
)
def test_what_makes_no_difference_is_not_noted(tmp_path, changes, options):
    folder = copy_of(SINGLE, tmp_path / "f", **changes)
    assert read(folder, **options).notes == []
    weights = open_source(folder).read(ReadOptions())
    write_huggingface(tmp_path / "back", weights.config, weights.params, None, Kept(record=weights.record))
    assert read(tmp_path / "back").notes == []


# -- end tokens -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model with a tokenizer whose special tokens are 0, the EOD, 400 and 401."""
    config = dataclasses.replace(expressible(), vocab_size=420, num_blocks=1)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"],
    )
    out = tmp_path_factory.mktemp("published") / "hub"
    bpe = train_byte_level([b"the cat sat on the mat. " * 20], 280)
    data = json.loads(bpe.text)
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] += [{"id": 400, "content": "<|eot_id|>"} | plain, {"id": 401, "content": "<|eom_id|>"} | plain]
    write_huggingface(out, config, params, bpe)
    (out / "tokenizer.json").write_text(json.dumps(data))
    assert bpe.eod_id == 0
    return out


def ends_of(tmp_path, published, generation=None, settings=None, options=(), **config):
    folder = tmp_path / "hub"
    shutil.copytree(published, folder)
    for name, changes in (("config", config), ("generation_config", generation), ("tokenizer_config", settings)):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | (changes or {})))
    assert main(["convert", str(folder), str(tmp_path / "run"), *options]) == 0
    return RunFolder(tmp_path / "run").read_tokenizer_info().stop_ids


@pytest.mark.parametrize(
    ("declared", "ends"),
    [
        ({"generation": {"eos_token_id": [0, 65]}}, (65,)),
        ({"generation": {"eos_token_id": 400}}, (400,)),
        ({"eos_token_id": [0, 400], "generation": {"eos_token_id": 401}}, (400, 401)),
        ({"eos_token_id": None, "generation": {"eos_token_id": None}}, ()),
        ({"settings": {"eos_token": "<|eot_id|>"}, "options": ["--eod", "<|endoftext|>"]}, (400,)),
        ({"settings": {"eos_token": {"content": "<|eot_id|>"}}}, (0,)),
        ({"generation": {"eos_token_id": [400, 65]}, "options": ["--tokenizer", "bytes"]}, (400,)),
        ({"options": ["--eod", "<|eom_id|>"]}, (0,)),
    ],
)
def test_every_declared_end_token_is_kept_and_goes_out_again(tmp_path, published, declared, ends):
    assert ends_of(tmp_path, published, **declared) == ends
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert main(["convert", str(tmp_path / "back"), str(tmp_path / "again"), *declared.get("options", ())]) == 0
    one, other = (RunFolder(tmp_path / name) for name in ("run", "again"))
    assert other.read_tokenizer_info() == one.read_tokenizer_info()
    assert xlstm_jax.load(other.path).tokenizer.eod_id == xlstm_jax.load(one.path).tokenizer.eod_id


def test_an_end_token_that_cannot_be_one_is_noted_or_refused(tmp_path, published, capsys):
    assert 420 not in ends_of(tmp_path, published, generation={"eos_token_id": [420, -1]})
    told = capsys.readouterr().err
    for number in (420, -1):
        assert f"end token {number}, which is left out: the model has the tokens 0 to 419" in told
    (tmp_path / "hub/generation_config.json").write_text('{"eos_token_id": "</s>"}')
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "other")]) == 2
    assert "generation_config.json: eos_token_id is '</s>', but must be a token's id" in capsys.readouterr().err


def test_a_run_with_end_tokens_of_its_own_tells_them_to_transformers(tmp_path):
    config = dataclasses.replace(expressible(), vocab_size=320, num_blocks=1)
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    info = TokenizerInfo(bos_id=3, stop_ids=(300, 301))
    write_huggingface(tmp_path / "out", config, params, ByteTokenizer(), info=info)
    for name in ("config", "generation_config"):
        document = json.loads((tmp_path / f"out/{name}.json").read_text())
        assert (document["eos_token_id"], document["bos_token_id"]) == ([256, 300, 301], 3)
