"""Runs of the checkpoint format's first writers, as they wrote them: read bit for bit, whatever has moved since.

`tests/golden/runs_format_1.tar.xz` holds two folders: `trained`, whose made-up state has a scanned stack `blocks`,
named tuples, lists, an empty array and several dtypes, and `converted`, of one parameter and a special token that opens
texts.
"""

import json
import tarfile
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.models.layouts import older_name
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.errors import DamagedRunError, StateMismatchError
from xlstm_jax.runs.folder import RunFolder, TokenizerInfo, with_config

ARCHIVE = Path(__file__).parents[1] / "golden" / "runs_format_1.tar.xz"
W = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
Adam = namedtuple("Adam", ["count", "mu"])


@pytest.fixture
def before(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def state(name="blocks"):
    params = {
        name: {"layer": {"kernel": jnp.asarray(W, jnp.bfloat16), "bias": jnp.zeros((0, 3))}},
        "norm": {"scale": jnp.ones(3)},
    }
    moments = {name: {"layer": {"kernel": jnp.asarray(W * 2)}}}
    optimizer = (Adam(jnp.int32(12), moments), (), [np.arange(3, dtype=np.int64)])
    return {"step": jnp.int32(12), "params": params, "opt_state": optimizer}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda a: a.dtype, one) == jax.tree.map(lambda a: a.dtype, other)
    return True


def test_a_checkpoint_from_before_comes_back_bit_for_bit(before):
    run = RunFolder.open(before / "trained")
    step, found, extra = run.checkpoints(read_only=True).restore(state())
    assert (step, extra["tokens_seen"]) == (12, 96)
    assert same(found, state())
    run.check_config(step, extra)
    assert same(run.read_params()[1], state()["params"])
    assert not run.converted
    assert run.read_tokenizer_info() == TokenizerInfo()


def test_a_run_from_before_goes_on(before):
    run = RunFolder.open(before / "trained")
    with run.lock(), run.checkpoints() as checkpoints:
        checkpoints.save(13, state(), {"tokens_seen": 104})
    assert same(run.checkpoints(read_only=True).restore(state(), 13)[1], state())
    assert same(run.fork(before / "copy", {"model": {}}, 12).checkpoints(read_only=True).restore(state())[1], state())


def test_a_converted_run_from_before_is_known_and_keeps_its_opening_token(before):
    run = RunFolder.open(before / "converted")
    assert run.converted
    assert run.read_tokenizer_info() == TokenizerInfo(bos_id=5)
    assert run.fork(before / "copy", {"model": {}}).read_tokenizer_info() == TokenizerInfo(bos_id=5)


def test_whether_a_run_is_converted_is_recorded(tmp_path):
    params = {"params": {"w": jnp.ones(2)}}
    for name, extra in (("converted", {"converted": True}), ("trained", {"converted": False}), ("empty", None)):
        run = RunFolder(tmp_path / name).create()
        if extra is not None:
            with run.checkpoints() as checkpoints:
                checkpoints.save(0, params, with_config({}, **extra))
        assert run.converted == (name == "converted")


def test_special_tokens_come_back_and_a_damaged_record_is_named(tmp_path):
    run = RunFolder(tmp_path)
    run.write_tokenizer_info(TokenizerInfo(1, (2, 3)))
    assert run.read_tokenizer_info() == TokenizerInfo(1, (2, 3))
    run.tokenizer_info_path.write_text(json.dumps({"bos_id": "one"}))
    with pytest.raises(DamagedRunError, match=r"tokenizer_info\.json cannot be used: .*bos_id"):
        run.read_tokenizer_info()


@pytest.mark.parametrize("name", ["blocks_0_1", "blocks_0"])
def test_arrays_that_were_renamed_are_found_by_the_names_that_they_had(before, name):
    checkpoints = RunFolder(before / "trained").checkpoints(read_only=True)
    assert same(checkpoints.restore(state(name))[1], state(name))
    assert same(checkpoints.restore(state())[1], state())
    narrow = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), state(name)["params"])
    assert same(checkpoints.restore_part("params", narrow, any_float=True)[1], state(name)["params"])
    with pytest.raises(StateMismatchError, match=r"params/else/layer/bias is not in the checkpoint"):
        checkpoints.restore(state("else"))


def test_an_older_array_may_have_a_leading_axis_of_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"blocks": {"w": jnp.asarray(W)[None], "v": jnp.ones((2, 3))}}})
    read = Checkpoints(tmp_path, read_only=True, older_name=older_name)
    device = jax.devices()[0]
    placed = jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    found = read.restore({"params": {"blocks_0": {"w": placed, "v": jnp.ones((2, 3))}}})[1]["params"]
    assert same(found, {"blocks_0": {"w": jnp.asarray(W), "v": jnp.ones((2, 3))}})
    with pytest.raises(StateMismatchError, match=r"params/blocks_0/w is float32\[1, 2, 3\] in the checkpoint"):
        read.restore({"params": {"blocks_0": {"w": jnp.ones((3, 3)), "v": jnp.ones((2, 3))}}})
    with pytest.raises(StateMismatchError, match=r"params/blocks/w is float32\[1, 2, 3\] in the checkpoint"):
        read.restore({"params": {"blocks": {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}}})
