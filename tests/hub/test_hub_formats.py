"""The seat of a format: what a new one takes, and the language in which it says what holds what."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_folders import bits, expressible

from xlstm_jax.config import ConfigError
from xlstm_jax.hub import formats
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.folders import open_source, write_huggingface
from xlstm_jax.hub.kept import Kept, Record
from xlstm_jax.hub.mapping import (
    SAME,
    Entry,
    Form,
    Part,
    params_from_tensors,
    tensors_from_params,
)
from xlstm_jax.models.language_model import block_shapes, build_model

CONFIG = expressible()


def fresh(config=CONFIG):
    return build_model(config).init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]


# -- a new format -----------------------------------------------------------------------------------------------------

TOY = """
from xlstm_jax.hub.formats.base import Format, Weights, Written
from xlstm_jax.hub.mapping import TRANSPOSED, SAME, Entry, Part, on_device, params_from_tensors
from xlstm_jax.models.language_model import block_shapes
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

def entries(config):
    for path in block_shapes(config):
        form = TRANSPOSED if path.endswith("proj_down.kernel") else SAME
        yield Entry("toy/" + path.replace(".", "/"), (Part(path, form),))

def read(document, tensors, options):
    config = xLSTMLMModelConfig.from_dict(document["toy"])
    return Weights(config, params_from_tensors(entries(config), config, tensors, on_device(options.dtype)))

def write(config, record):
    return Written({"toy": config.to_dict()}, list(entries(config)), ["a toy"], {})

FORMAT = Format(lambda document: "toy" in document, read, xLSTMLMModelConfig, write)
"""


def test_a_new_format_is_one_file_and_one_line(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    monkeypatch.setitem(formats.TITLES, "toy", "A toy")
    params, said = fresh(), []
    write_huggingface(tmp_path / "out", CONFIG, params, None, Kept(record=Record(format="toy")), say=said.append)
    assert "note: a toy" in said
    source = open_source(tmp_path / "out")
    assert (source.format, source.title) == ("toy", "A toy")
    assert source.tensors["toy/xlstm_block_stack/blocks_0/ffn/proj_down/kernel"].shape[0] == CONFIG.embedding_dim
    weights = source.read()
    assert weights.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, weights.params, params)
    # Where nothing is preferred, and for a reader that does not know it, all is as before.
    write_huggingface(tmp_path / "plain", CONFIG, params, None)
    assert json.loads((tmp_path / "plain/config.json").read_text())["model_type"] == "xlstm"


def test_every_format_has_its_file_and_its_row():
    for name, title in formats.TITLES.items():
        assert title
        row = formats.get_format(name)
        assert all(map(dataclasses.is_dataclass, get_args(row.holds) or [row.holds]))


def test_a_record_from_before_it_had_a_type_is_still_read(tmp_path):
    (tmp_path / "format.json").write_text('{"stored_head": true, "format": "llama", "opening_id": null}')
    assert Kept.read(tmp_path).record == Record(format="llama", stored_head=True)
    (tmp_path / "format.json").write_text('{"format": "xlstm", "weight_mode": "fused", "opening_id": 5}')
    assert Kept.read(tmp_path).record == Record(format="xlstm", weight_mode="fused")
    (tmp_path / "format.json").write_text('{"weight_mode": 3}')
    with pytest.raises(ConfigError, match=r"format\.json.*weight_mode is 3"):
        Kept.read(tmp_path)


# -- forms ------------------------------------------------------------------------------------------------------------

X = np.arange(2 * 3 * 4 * 5, dtype=np.float32)


@pytest.mark.parametrize(
    ("form", "ours", "theirs"),
    [
        (SAME, X.reshape(6, 20), X.reshape(6, 20)),
        (Form("in out -> out in"), X.reshape(6, 20), X.reshape(6, 20).T),
        (Form("head f -> (head f)"), X.reshape(6, 20), X),
        (Form("g h o i -> h (g o) i"), X.reshape(2, 3, 4, 5), X.reshape(2, 3, 4, 5).swapaxes(0, 1).reshape(3, 8, 5)),
        (Form("d (h f) -> d h f", {"f": 5}), X.reshape(6, 20), X.reshape(6, 4, 5)),
        (Form("(half pair) -> (pair half)", {"half": 2, "pair": 3}), X[:6], np.array([0, 3, 1, 4, 2, 5], np.float32)),
        (Form("h f -> (h f)", one_plus=True), X.reshape(6, 20), X - 1),
    ],
)
def test_a_form_says_the_same_in_both_directions(form, ours, theirs):
    assert form.shape(ours.shape) == theirs.shape
    np.testing.assert_array_equal(form.to_theirs(ours), theirs)
    np.testing.assert_array_equal(form.to_ours(theirs, ours.shape), ours)


def test_a_difference_to_one_is_added_in_float32_at_least():
    small = np.array([2**-10], jnp.bfloat16)
    np.testing.assert_array_equal(Form(one_plus=True).to_ours(small, (1,)), np.float32([1 + 2**-10]))


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_parameter_without_a_tensor_and_one_too_many_are_named_when_written():
    entries = [Entry(path, (Part(path),)) for path in block_shapes(CONFIG)]
    params = fresh()
    with pytest.raises(WeightsError, match=r"lm_head\.kernel .*for which the format has no tensor"):
        tensors_from_params([entry for entry in entries if entry.name != "lm_head.kernel"], CONFIG, params)
    with pytest.raises(WeightsError, match="surplus: more"):
        tensors_from_params(entries, CONFIG, params | {"more": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"missing: token_embedding\.embedding"):
        tensors_from_params(entries, CONFIG, {k: v for k, v in params.items() if k != "token_embedding"})
    with pytest.raises(WeightsError, match=r"mis-shaped: lm_head\.kernel is \(3,\)"):
        tensors_from_params(entries, CONFIG, params | {"lm_head": {"kernel": np.zeros(3)}})
    with pytest.raises(WeightsError, match=r"lm_head\.kernel .*for which the format has no tensor"):
        params_from_tensors([], CONFIG, {})


@pytest.mark.parametrize("axis", [0, 1])
def test_fused_parameters_lie_one_after_the_other_along_their_axis(axis):
    shapes = block_shapes(CONFIG)
    up = [path for path in shapes if path.startswith("xlstm_block_stack.blocks_0.ffn.proj_up")]
    entries = [Entry(path, (Part(path),)) for path in shapes if path not in up]
    entries.append(Entry("up", tuple(Part(path) for path in up), axis))
    params = fresh()
    tensors = {n: t.values() for n, t in tensors_from_params(entries, CONFIG, params).items()}
    ffn = params["xlstm_block_stack"]["blocks_0"]["ffn"]
    parts = [ffn[path.split(".")[-2]]["kernel"] for path in up]
    np.testing.assert_array_equal(tensors["up"], np.concatenate(parts, axis))
    jax.tree.map(np.testing.assert_array_equal, params_from_tensors(entries, CONFIG, tensors), params)


@pytest.mark.parametrize("scanned", [False, True])
def test_runs_of_blocks_are_read_and_written_as_single_blocks_are(tmp_path, scanned):
    config = dataclasses.replace(CONFIG, scan_blocks=scanned)
    params = fresh(config)
    write_huggingface(tmp_path / "out", config, params, None)
    weights = open_source(tmp_path / "out").read()
    write_huggingface(tmp_path / "again", weights.config, weights.params, None)
    assert bits(tmp_path / "again") == bits(tmp_path / "out")
