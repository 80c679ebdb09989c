"""What leaves, and that it comes back: every preset in the formats that the docs name, tokenizers, model cards."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from huggingface_folders import GOLDEN, bits, expressible, read
from small_models import random_like

from xlstm_jax.cli import main
from xlstm_jax.cli.convert import experiment_of
from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import ByteTokenizer, load_tokenizer, train_byte_level
from xlstm_jax.hub.converted import write_run
from xlstm_jax.hub.folders import GENERATION, open_source, write_huggingface, written_as
from xlstm_jax.hub.formats.base import Weights
from xlstm_jax.hub.formats.native import entries
from xlstm_jax.hub.formats.xlstm_package_config import config_from_xlstm_package, xlstm_package_from_config
from xlstm_jax.hub.kept import Kept
from xlstm_jax.hub.mapping import tensors_from_params
from xlstm_jax.inference.sampling import Sampling
from xlstm_jax.models.language_model import param_shapes
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.presets import get_preset, preset_names

DOCS = Path(__file__).parents[2] / "docs/convert.md"
ROWS = re.findall(r"^\| (`[^|]*`) \| `([a-z-]+)` \|$", DOCS.read_text(), re.MULTILINE)


def model_of(preset):
    return dataclasses.replace(get_preset(preset).model, vocab_size=320)


def small(preset):
    """A preset's model with few and narrow blocks of each of its kinds."""
    model = model_of(preset)
    if isinstance(model, LlamaConfig):
        return dataclasses.replace(model, embedding_dim=16, num_blocks=2, head_dim=8)
    mixed = {"slstm_at": [1]} if model.slstm_block is not None else {}
    return dataclasses.replace(model, embedding_dim=32, num_blocks=2, **mixed)


def params_of(config):
    """Random, with scales of norms that the package's difference to one holds to the bit."""
    params = random_like(param_shapes(config))
    return jax.tree_util.tree_map_with_path(lambda path, x: x.clip(0.5) if path[-1].key == "scale" else x, params)


def as_run(path, config, tokenizer=None):
    params = params_of(config)
    write_run(path, Weights(config, params), tokenizer or ByteTokenizer(), Kept(), experiment_of)
    return params


# -- presets ----------------------------------------------------------------------------------------------------------


def documented(preset):
    (format,) = (
        format for words, format in ROWS if any(fnmatch.fnmatch(preset, w) for w in re.findall("`(.*?)`", words))
    )
    return format


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_written_in_the_format_that_the_docs_say(preset):
    format, config = documented(preset), model_of(preset)
    assert written_as(config, format=format)[0] == format
    if format in ("xlstm", "llama"):
        assert written_as(config)[0] == format
        return
    others = {"native": "`--format native`", "xlstm-package": "`--format xlstm-package` or `--format native`"}
    with pytest.raises(ConfigError, match=rf"It can be written with {others[format]}$"):
        written_as(config)


@pytest.mark.parametrize(
    ("preset", "format"),
    [
        *(("quickstart_mixed", "native"), ("quickstart_llama", "native")),
        *(("xlstm_125m_1_0", "xlstm-package"), ("xlstm_125m_7_1", "xlstm-package"), ("quickstart_llama", "llama")),
    ],
)
def test_a_run_of_a_preset_leaves_and_comes_back_to_the_bit(tmp_path, preset, format):
    config = small(preset)
    params = as_run(tmp_path / "run", config)
    out = tmp_path / "out"
    assert main(["convert", str(tmp_path / "run"), str(out), "--format", format]) == 0
    assert open_source(out).format == format
    found = read(out)
    ours, theirs = (_tensors(weights) for weights in (Weights(config, params), found))
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name].values(), value.values())
    if format == "native":
        assert found.config == config
    if format == "xlstm-package":
        assert xlstm_package_from_config(found.config) == xlstm_package_from_config(config)
    assert main(["convert", str(out), str(tmp_path / "back")]) == 0
    assert main(["convert", str(tmp_path / "back"), str(tmp_path / "again")]) == 0
    assert bits(tmp_path / "again") == bits(out)
    assert (tmp_path / "again/config.json").read_bytes() == (out / "config.json").read_bytes()


def _tensors(weights):
    return tensors_from_params(entries(weights.config), weights.config, weights.params)


# -- the package xlstm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed", "mixed_cuda", "slstm_without_conv"])
def test_a_folder_of_the_package_comes_back_as_it_was(tmp_path, name):
    folder = GOLDEN / f"xlstm_package_{name}"
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    one, other = bits(folder), bits(tmp_path / "back")
    assert one.keys() == other.keys()
    for tensor in one:
        # Norms are kept as the difference to one, in which a scale below a half loses its last bits.
        if "norm" not in tensor:
            assert one[tensor] == other[tensor]
    data = json.loads((folder / "config.json").read_text())
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert config_from_xlstm_package(back) == config_from_xlstm_package(data)
    written = xlstm_package_from_config(config_from_xlstm_package(data), data["slstm_block"]["slstm"]["backend"])
    for key, value in written["slstm_block"]["slstm"].items():
        assert data["slstm_block"]["slstm"][key] == value
    assert back["slstm_block"]["slstm"]["backend"] == data["slstm_block"]["slstm"]["backend"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: dataclasses.replace(c, norm_type="rmsnorm"), "model.norm_type is 'rmsnorm'"),
        (lambda c: dataclasses.replace(c, norm_eps=1e-6), "model.norm_eps is 1e-06, but the package has 1e-05"),
        (lambda c: dataclasses.replace(c, logits_soft_cap=30.0), "model.logits_soft_cap is 30.0"),
        (lambda c: with_layer(c, vmap_qk=True), "mlstm_block.mlstm.vmap_qk is True"),
        (lambda c: with_layer(c, gate_input="x_mlstm"), "gate_input is 'x_mlstm'"),
        (lambda c: with_layer(c, layer_type="mlstm_v1"), "layer_type is 'mlstm_v1'"),
        (lambda c: with_feedforward(c, act_fn="gelu"), "slstm_block.feedforward.act_fn is 'gelu'"),
        (lambda c: with_feedforward(c, ff_type="ffn"), "slstm_block.feedforward.ff_type is 'ffn'"),
    ],
)
def test_what_the_package_cannot_express_is_refused_with_its_field(change, field):
    config = small("xlstm_125m_7_1")
    xlstm_package_from_config(config)
    with pytest.raises(ConfigError, match=re.escape(field)):
        xlstm_package_from_config(change(config))


def with_layer(config, **fields):
    layer = dataclasses.replace(config.mlstm_block.mlstm, **fields)
    return dataclasses.replace(config, mlstm_block=dataclasses.replace(config.mlstm_block, mlstm=layer))


def with_feedforward(config, **fields):
    feedforward = dataclasses.replace(config.slstm_block.feedforward, **fields)
    return dataclasses.replace(config, slstm_block=dataclasses.replace(config.slstm_block, feedforward=feedforward))


# -- what lies beside the weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_an_exported_tokenizer_opens_texts_and_is_the_same_one_here(tmp_path, tokenizer):
    own = ByteTokenizer() if tokenizer == "bytes" else train_byte_level([b"the cat sat on the mat. " * 20], 290)
    config = dataclasses.replace(expressible(), vocab_size=320)
    write_huggingface(tmp_path / "out", config, params_of(config), own)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    for text in ("the cat", "", "Größe"):
        assert library.encode(text).ids == [own.eod_id, *own.encode(text)]
    back = load_tokenizer(tmp_path / "out")
    assert back.encode("the cat") == own.encode("the cat")
    if tokenizer == "bpe":
        assert back.fingerprint == own.fingerprint
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert (settings["padding_side"], settings["bos_token"]) == ("left", "<|endoftext|>")
    assert settings["model_max_length"] > 10**20
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "out/tokenizer.json").read_bytes()


def test_settings_of_generation_are_those_of_ours():
    ours = Sampling()
    assert {
        "do_sample": True,
        "temperature": ours.temperature,
        "top_k": 0,
        "max_new_tokens": ours.max_tokens,
    } == GENERATION
    assert ours.top_k is None


def test_a_config_has_no_fields_of_other_models_and_keeps_the_context_length(tmp_path):
    for preset, field in (("quickstart_llama", "max_position_embeddings"), ("tiny", "context_length")):
        config = dataclasses.replace(small(preset), context_length=48)
        write_huggingface(tmp_path / preset, config, params_of(config), ByteTokenizer())
        document = json.loads((tmp_path / preset / "config.json").read_text())
        assert document[field] == 48
        assert ("autocast_kernel_dtype" in document) == (preset == "tiny")
        assert "inference_state_dtype" not in document
        assert read(tmp_path / preset).config.context_length == 48
        assert read(tmp_path / preset, context_length=7).config.context_length == 7
    assert read(GOLDEN / "hf_xlstm_single").config.context_length == 8192


@pytest.mark.parametrize("format", ["xlstm", "xlstm-package", "native"])
def test_a_model_card_says_what_it_is_and_how_it_is_loaded(tmp_path, format):
    preset = {"xlstm": "tiny", "xlstm-package": "xlstm_125m_7_1", "native": "quickstart_mixed"}[format]
    as_run(tmp_path / "run", small(preset))
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "my-model"), "--format", format]) == 0
    card = (tmp_path / "my-model/README.md").read_text()
    assert card.startswith("---\n# license: name one before you publish\nlibrary_name: ")
    for part in ("# my-model\n", "xlstm convert my-model my-run", "| vocabulary | 320 |", "converted with xlstm-jax."):
        assert part in card
    assert ("AutoModelForCausalLM" in card) == (format == "xlstm")
    assert ("has no mask for padding" in card) == (format == "xlstm")
    assert ("load_state_dict" in card) == (format == "xlstm-package")
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(code, "card", "exec")


def test_a_format_that_does_not_hold_a_model_names_those_that_do(tmp_path, capsys):
    as_run(tmp_path / "run", small("quickstart_mixed"))
    for options, name in (([], "xlstm of Hugging Face"), (["--format", "xlstm-package"], "package xlstm")):
        assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), *options]) == 2
        told = capsys.readouterr().err
        assert name in told
        assert "It can be written with `--format native`" in told
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "llama"]) == 2
    assert "the format llama does not hold a xLSTMLMModelConfig" in capsys.readouterr().err
