"""Folders of Hugging Face to runs and back, against what transformers computed (recorded, see tests/torch)."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from huggingface_folders import GOLDEN, RECORDED, bits, copy_of, document, expressible, read, rewrite, with_cell
from wide_models import assert_float32_is_float64_but_for_rounding

import xlstm_jax
from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.folders import open_source, write_huggingface, written_as
from xlstm_jax.hub.formats import llama, xlstm
from xlstm_jax.hub.formats.base import ReadOptions
from xlstm_jax.hub.kept import Kept
from xlstm_jax.hub.safetensors_files import open_tensors
from xlstm_jax.kernels.closeness import relative_error
from xlstm_jax.models.language_model import block_shapes, build_model
from xlstm_jax.models.llama.config import LlamaConfig

CLOSE = 1e-5


# -- what transformers computed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDED)
def test_logits_losses_and_continuations_are_those_of_transformers(name):
    weights = read(GOLDEN / name, dtype="float32")
    expected = np.load(GOLDEN / name / "expected.npz")
    model, tokens = build_model(weights.config), expected["tokens"]

    def results(model, params):
        logits = model.apply({"params": params}, tokens)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
        return logits, -chosen[..., 0]

    # What was recorded is rounded to float32: it is compared in float64, and our float32 with that.
    logits, losses = assert_float32_is_float64_but_for_rounding(model.config, weights.params, results)
    assert relative_error(logits, expected["logits"]) < CLOSE
    assert relative_error(losses, expected["losses"]) < CLOSE
    apply = jax.jit(lambda tokens: model.apply({"params": weights.params}, tokens))
    row = np.concatenate([tokens[:, :7], expected["greedy"]], axis=1)
    padded = np.pad(row, ((0, 0), (0, tokens.shape[1] - row.shape[1])))
    np.testing.assert_array_equal(np.asarray(apply(padded))[:, 6:26].argmax(-1), expected["greedy"])


@pytest.mark.parametrize("name", RECORDED)
def test_a_round_trip_gives_every_bit_and_the_config_back(tmp_path, name):
    assert main(["convert", str(GOLDEN / name), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back"), "--shard-size", "30KB"]) == 0
    assert bits(tmp_path / "back") == bits(GOLDEN / name)
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert {key: back.get(key) for key in document(name)} == document(name)
    assert (tmp_path / "back/generation_config.json").is_file()
    again = read(tmp_path / "back")
    run = xlstm_jax.load(tmp_path / "run")
    assert again.config == run.config
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)


def test_fused_and_single_weights_are_the_same_model(tmp_path):
    weights = read(GOLDEN / "hf_xlstm_fused")
    for mode in ("single", "fused"):
        kept = Kept(record=weights.record)
        write_huggingface(tmp_path / mode, weights.config, weights.params, None, kept, weight_mode=mode)
        again = read(tmp_path / mode)
        assert again.config == weights.config
        assert {leaf.dtype.name for leaf in jax.tree.leaves(again.params)} == {"bfloat16"}
        jax.tree.map(np.testing.assert_array_equal, again.params, weights.params)
    assert set(bits(tmp_path / "single")) == set(bits(GOLDEN / "hf_xlstm_single"))
    assert bits(tmp_path / "fused") == bits(GOLDEN / "hf_xlstm_fused")


def test_scanned_blocks_are_written_like_unrolled_ones(tmp_path):
    for name in ("hf_xlstm_single", "hf_llama_gqa"):
        weights = read(GOLDEN / name)
        scanned = dataclasses.replace(weights.config, scan_blocks=True)
        from xlstm_jax.models.layouts import to_runs
        from xlstm_jax.models.stack import spans

        write_huggingface(tmp_path / name, scanned, to_runs(weights.params, spans(scanned)), None)
        assert bits(tmp_path / name) == bits(GOLDEN / name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_cast_on_request_alone(tmp_path, dtype):
    source = GOLDEN / "hf_xlstm_single"
    weights = read(source, dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(weights.params)} == {dtype}
    assert weights.config.dtype == weights.config.lm_head_dtype == dtype
    kept = read(source)
    write_huggingface(tmp_path / "out", kept.config, kept.params, None, dtype=dtype)
    kind = jnp.dtype(dtype)
    for name, tensor in open_tensors(tmp_path / "out").items():
        assert tensor.read().tobytes() == open_tensors(source)[name].read().astype(kind).tobytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype


def test_mixed_dtypes_stay_mixed(tmp_path):
    folder = copy_of("hf_xlstm_single", tmp_path / "mixed")
    rewrite(folder, lambda tensors: {n: v if "norm" in n else v.astype(ml_dtypes.bfloat16) for n, v in tensors.items()})
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert bits(tmp_path / "back") == bits(folder)
    assert xlstm_jax.load(tmp_path / "run").config.dtype == "float32"


# -- configs ----------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "add_embedding_dropout": False,
    "add_forward_backend_padding": False,
    "add_post_blocks_norm": True,
    "add_post_norm": False,
    "add_qk_norm": False,
    "cell_norm_eps": 1e-6,
    "head_dim": 512,
    "igate_bias_init_range": -10.0,
    "mlstm_round_up_to_multiple_of": 64,
    "force_bos_token_insert": True,
    "chunkwise_kernel": "chunkwise--triton_xl_chunk",
    "embedding_dim": 4096,
    "num_blocks": 32,
    "num_heads": 8,
    "vocab_size": 50304,
    "torch_dtype": "float32",
    "model_type": "xlstm",
}


def test_the_published_config_gives_the_model_with_its_number_of_parameters():
    config = xlstm.config_from_huggingface(PUBLISHED, "bfloat16")
    assert build_model(config).param_count == 6_865_424_896
    back = PUBLISHED | xlstm.huggingface_from_config(config)
    assert xlstm.config_from_huggingface(back, "bfloat16") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bias": True}, "use_bias is True"),
        ({"add_out_norm": False}, "add_out_norm is False"),
        ({"add_post_blocks_norm": False}, "add_post_blocks_norm is False"),
        ({"add_qk_norm": True}, "add_qk_norm is True"),
        ({"add_post_norm": True}, "add_post_norm is True"),
        ({"cell_norm_eps": 1e-5}, "cell_norm_eps is 1e-05, but norm_eps is 1e-06"),
        ({"head_dim": 3}, "head_dim is 3"),
        ({"hidden_size": 64}, "hidden_size is 64 and embedding_dim is 32"),
        ({"num_blocks": 5}, "num_hidden_layers is 2 and num_blocks is 5"),
        ({"num_heads": "2"}, "num_heads is '2', but must be a whole number"),
        ({"num_heads": True}, "num_heads is True"),
        ({"norm_eps": -1}, "norm_eps is -1"),
        ({"weight_mode": "double"}, "weight_mode is 'double'"),
        ({"chunkwise_kernel": "chunkwise--triton_xl_chunk_siging"}, "no sigmoid input gate"),
        ({"model_type": "mamba"}, "model_type 'mamba', which is no format known here"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    ],
)
def test_an_xlstm_config_that_would_be_another_function_is_refused(tmp_path, changes, message):
    folder = copy_of("hf_xlstm_single", tmp_path / "source", **changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type is 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_parameters.rope_type is 'llama3'"),
        ({"rope_parameters": {"rope_type": "default", "factor": 8.0}}, "rope_parameters.factor is 8.0"),
        ({"rope_theta": 3.0}, "rope_theta is 3.0 and rope_parameters.rope_theta is 500.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"num_key_value_heads": 3}, "num_kv_heads is 3"),
    ],
)
def test_a_llama_config_that_would_be_another_function_is_refused(tmp_path, changes, message):
    folder = copy_of("hf_llama_gqa", tmp_path / "source", **changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(folder)


@pytest.mark.parametrize("dim", [32, 96, 128, 768, 4096])
@pytest.mark.parametrize("factor", [1.3, 2.667, 8 / 3, 3.001])
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_the_feed_forward_layer_has_the_formats_width_both_ways(dim, factor, multiple):
    data = document(hidden_size=dim, embedding_dim=dim, ffn_proj_factor=factor, ffn_round_up_to_multiple_of=multiple)
    config = xlstm.config_from_huggingface(data)
    width = int((dim * factor + multiple - 1) // multiple * multiple)
    assert block_shapes(config)["xlstm_block_stack.blocks_0.ffn.proj_up.kernel"] == (dim, width)
    back = xlstm.huggingface_from_config(config)
    assert xlstm.ffn_width(dim, back["ffn_proj_factor"], back["ffn_round_up_to_multiple_of"]) == width


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: with_cell(c, norm_type_v1="rmsnorm"), "mlstm_cell.norm_type_v1 is 'rmsnorm'"),
        (lambda c: with_cell(c, add_qk_norm=True), "mlstm_cell.add_qk_norm"),
        (lambda c: with_cell(c, gate_soft_cap=None), "mlstm_cell.gate_soft_cap is None"),
        (lambda c: with_cell(c, norm_eps=1e-5), "mlstm_cell.norm_eps is 1e-05"),
        (lambda c: dataclasses.replace(c, logits_soft_cap=None), "model.logits_soft_cap is None"),
        (lambda c: dataclasses.replace(c, norm_type="layernorm"), "model.norm_type is 'layernorm'"),
        (lambda c: dataclasses.replace(c, bias=True), "model.bias is True"),
        (lambda c: dataclasses.replace(c, add_post_blocks_norm=False), "model.add_post_blocks_norm"),
        (
            lambda c: dataclasses.replace(c, mlstm_block=dataclasses.replace(c.mlstm_block, feedforward=None)),
            "mlstm_block.feedforward is None",
        ),
        (
            lambda c: dataclasses.replace(
                c,
                mlstm_block=dataclasses.replace(
                    c.mlstm_block, mlstm=dataclasses.replace(c.mlstm_block.mlstm, layer_type="mlstm")
                ),
            ),
            "mlstm.layer_type is 'mlstm'",
        ),
    ],
)
def test_a_model_that_the_format_cannot_express_is_refused_with_its_field(change, field):
    written_as(expressible())
    with pytest.raises(ConfigError, match=re.escape(field)):
        written_as(change(expressible()))


def test_a_mix_and_a_llama_beyond_the_format_are_refused():
    from xlstm_jax.presets.quickstart_mixed import quickstart_mixed

    with pytest.raises(ConfigError, match=r"model\.slstm_at is \[1\]"):
        written_as(dataclasses.replace(quickstart_mixed().model, vocab_size=64))
    with pytest.raises(ConfigError, match=r"qk_norm is True.*logits_soft_cap.*attention_scale"):
        written_as(LlamaConfig(qk_norm=True, logits_soft_cap=3.0, attention_scale="num_heads", vocab_size=9))
    with pytest.raises(WeightsError, match="weight mode"):
        written_as(LlamaConfig(vocab_size=9), weight_mode="fused")


def test_one_base_of_the_frequencies_is_read_wherever_it_stands():
    for changes in ({"rope_theta": 9.0}, {"rope_parameters": {"rope_theta": 9.0}}, {"rope_scaling": {"rope_theta": 9}}):
        data = {k: v for k, v in document("hf_llama_gqa").items() if not k.startswith("rope")} | changes
        assert llama.config_from_huggingface(data).theta == 9.0


# -- weights that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("backbone.blocks.1.norm_ffn.weight"), "missing: backbone.blocks.1.norm_ffn.weight (32,)"),
        (lambda t: t.update(more=np.zeros(3, np.float32)), "surplus: more"),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()}),
            "mis-shaped: lm_head.weight is (32, 64), but the config asks for (64, 32)",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.int8)}),
            "wrong dtype: lm_head.weight is int8",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.float64)}),
            "wrong dtype: lm_head.weight is float64",
        ),
    ],
)
def test_each_tensor_that_does_not_fit_is_named_and_nothing_is_written(tmp_path, capsys, change, message):
    folder = copy_of("hf_xlstm_single", tmp_path / "source")
    rewrite(folder, lambda tensors: (change(tensors), tensors)[1])
    with pytest.raises(WeightsError, match=re.escape(message)):
        read(folder)
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_all_misfits_are_told_at_once(tmp_path):
    folder = copy_of("hf_xlstm_single", tmp_path / "source", vocab_size=65, num_hidden_layers=1, num_blocks=1)
    with pytest.raises(WeightsError) as error:
        read(folder)
    for part in ("mis-shaped: backbone.embeddings", "mis-shaped: lm_head", "surplus: backbone.blocks.1.ffn.proj_down"):
        assert part in str(error.value)


def test_a_damaged_shard_and_a_missing_config_leave_nothing_behind(tmp_path, capsys):
    folder = copy_of("hf_xlstm_single", tmp_path / "source")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 1
    assert shard.name in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 1
    assert "config.json is missing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_shard_cut_off_while_it_is_read_leaves_nothing_behind(tmp_path):
    folder = copy_of("hf_xlstm_single", tmp_path / "source")
    source = open_source(folder)
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="cut off"):
        source.read(ReadOptions())


def tie(equal=True, keep=("lm_head.weight", "backbone.embeddings.weight")):
    def change(tensors):
        if equal:
            tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"]
        dropped = {"lm_head.weight", "backbone.embeddings.weight"} - set(keep)
        return {name: value for name, value in tensors.items() if name not in dropped}

    return change


def test_a_tied_head_may_be_left_out_stored_twice_or_differ(tmp_path):
    folders = {}
    for name, change in {
        "both": tie(),
        "embedding": tie(keep=["backbone.embeddings.weight"]),
        "head": tie(keep=["lm_head.weight"]),
        "differ": tie(equal=False),
    }.items():
        folders[name] = copy_of("hf_xlstm_single", tmp_path / name, tie_word_embeddings=True)
        rewrite(folders[name], change)
    one, *others = (read(folders[name]) for name in ("both", "embedding", "head"))
    assert one.config.tie_weights
    assert "lm_head" not in one.params
    for other in others:
        assert other.config == one.config
        jax.tree.map(np.testing.assert_array_equal, other.params, one.params)
    # transformers does not tie the head of this model, so it must be there.
    write_huggingface(tmp_path / "out", one.config, one.params, None)
    assert bits(tmp_path / "out") == bits(folders["both"])
    # With two matrices that differ, the config is wrong; transformers uses both.
    differ = read(folders["differ"])
    assert not differ.config.tie_weights
    assert "differs" in differ.notes[0]
    np.testing.assert_array_equal(
        differ.params["lm_head"]["kernel"], read(GOLDEN / "hf_xlstm_single").params["lm_head"]["kernel"]
    )


def test_a_tied_llama_leaves_its_head_out_unless_it_was_stored(tmp_path):
    def tied(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}

    def untied(tensors):
        return {name: value for name, value in tensors.items() if name != "lm_head.weight"}

    for stored in (True, False):
        folder = copy_of("hf_llama_gqa", tmp_path / f"source{stored}", tie_word_embeddings=True)
        rewrite(folder, tied if stored else untied)
        weights = read(folder)
        assert weights.config.tie_weights
        write_huggingface(tmp_path / f"out{stored}", weights.config, weights.params, None, Kept(record=weights.record))
        assert bits(tmp_path / f"out{stored}") == bits(folder)


def test_rotary_frequencies_in_old_files_are_checked_and_left_out(tmp_path):
    folder = copy_of("hf_llama_gqa", tmp_path / "source")
    good = 500.0 ** -(np.arange(0, 8, 2) / 8)

    def with_frequencies(values):
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        rewrite(folder, lambda tensors: tensors | {name: values.astype(np.float32)})

    with_frequencies(good)
    jax.tree.map(np.testing.assert_array_equal, read(folder).params, read(GOLDEN / "hf_llama_gqa").params)
    with_frequencies(good**2)
    with pytest.raises(WeightsError, match="inv_freq holds other frequencies"):
        read(folder)
