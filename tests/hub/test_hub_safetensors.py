"""Safetensors files: what is written is read back to the bit, and no damaged file is read at all."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.safetensors_files import NewTensor, open_tensors, write_tensors


def new(value):
    return NewTensor(value.shape, value.dtype, lambda: value)


def some_tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "b": rng.standard_normal((3, 5)).astype(np.float32),
        "a.half": rng.standard_normal(7).astype(np.float16),
        "a.brain": rng.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.asarray(3, np.int64),
    }


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("shard_bytes", [10**9, 70, 1])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, shard_bytes):
    tensors = some_tensors()
    write_tensors(tmp_path, {name: new(value) for name, value in tensors.items()}, shard_bytes)
    found = open_tensors(tmp_path)
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        assert found[name].read().tobytes() == value.tobytes()
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes == 10**9)
    for file in files:  # the package that everybody else uses reads them too
        for name, value in safetensors.numpy.load_file(file).items():
            assert value.tobytes() == tensors[name].tobytes()


def test_shards_keep_to_their_size(tmp_path):
    value = np.zeros(25, np.float32)
    write_tensors(tmp_path, {f"t{i}": new(value) for i in range(10)}, shard_bytes=300)
    sizes: dict[str, int] = {}
    for tensor in open_tensors(tmp_path).values():
        sizes[tensor.path.name] = sizes.get(tensor.path.name, 0) + tensor.nbytes
    assert sorted(sizes.values()) == [100, 300, 300, 300]


def test_files_of_the_safetensors_package_are_read(tmp_path):
    tensors = {name: value for name, value in some_tensors().items() if name != "a.brain"}
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    for place in (tmp_path, tmp_path / "weights.safetensors"):
        found = open_tensors(place)
        assert {name: tensor.read().tobytes() for name, tensor in found.items()} == {
            name: value.tobytes() for name, value in tensors.items()
        }


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": entry(0, 8)}, b"1234", "x ends 4 bytes after the end"),
        ({"x": entry(0, 8), "y": entry(4, 12)}, b"0" * 12, "the values of y overlap those of x"),
        ({"x": entry(0, 4), "y": entry(8, 12)}, b"0" * 12, "4 bytes before y belong to no tensor"),
        ({"x": entry(0, 4)}, b"0" * 12, "8 bytes at its end"),
        ({"x": entry(0, 8, [3])}, b"0" * 8, "x of shape .3,. and dtype F32 takes 12 bytes, but has 8"),
        ({"x": entry(8, 0, [])}, b"0" * 8, "x of shape .. and dtype F32 takes 4 bytes, but has -8"),
        ({"x": entry(0, 8, dtype="F31")}, b"0" * 8, "x has the dtype 'F31'"),
        ({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0" * 4, "x has no valid dtype"),
        ({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"0" * 4, "x has no valid dtype"),
        ({"x": {"shape": [1]}}, b"0" * 4, "x has no valid dtype"),
        ({"x": 3}, b"", "x has no valid dtype"),
        (b'{"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "x": 1}', b"", "duplicate: x stands twice"),
        (b'{"x": ', b"", "not JSON"),
        (b"[1]", b"", "not a JSON object"),
        (b"\xff\xfe", b"", "not JSON"),
        (b"[" * 200_000, b"", "not JSON"),
    ],
)
def test_a_damaged_header_is_refused_with_the_tensor_named(tmp_path, header, data, message):
    file = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(WeightsError, match=message):
        open_tensors(file)
    with pytest.raises(WeightsError, match=message):
        open_tensors(tmp_path)


@pytest.mark.parametrize("length", [0, 2**63, 10**9, 2**64 - 1, 60])
def test_a_wrong_header_length_is_refused(tmp_path, length):
    file = tmp_path / "model.safetensors"
    write_tensors(tmp_path, {"x": new(np.ones(4, np.float32))})
    content = file.read_bytes()
    file.write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_tensors(tmp_path)


@given(cut=st.integers(0, 10_000), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_off_anywhere_is_refused(tmp_path_factory, cut, seed):
    folder = tmp_path_factory.mktemp("cut")
    (file,) = write_tensors(folder, {name: new(value) for name, value in some_tensors(seed).items()})
    content = file.read_bytes()
    file.write_bytes(content[: cut % len(content)])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_tensors(file)


def test_a_file_that_shrinks_after_it_was_opened_is_told(tmp_path):
    (file,) = write_tensors(tmp_path, {"x": new(np.ones(1000, np.float32))})
    tensor = open_tensors(file)["x"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="'x'"):
        tensor.read()


def sharded(folder):
    write_tensors(folder, {f"t{i}": new(np.full(4, i, np.float32)) for i in range(4)}, shard_bytes=32)
    return folder / "model.safetensors.index.json", json.loads((folder / "model.safetensors.index.json").read_text())


def test_each_way_in_which_shards_and_index_disagree_is_named(tmp_path):
    index, content = sharded(tmp_path)
    first = tmp_path / "model-00001-of-00002.safetensors"

    def refused(message, **weight_map):
        index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | weight_map}))
        with pytest.raises(WeightsError, match=message):
            open_tensors(tmp_path)

    refused(r"missing: t9, which model\.safetensors\.index\.json says is in", t9=first.name)
    refused("misplaced: t2 is in model-00002-of-00002", t2=first.name)
    refused(r"nowhere\.safetensors is missing, which .* names for 't9'", t9="nowhere.safetensors")
    refused(r"'\.\./nowhere\.safetensors', which is not in the folder", t9="../nowhere.safetensors")
    refused("names the file '', which is not in the folder", t9="")
    refused("'weight_map'", t9=3)
    index.write_text(json.dumps({"weight_map": {n: f for n, f in content["weight_map"].items() if n > "t1"}}))
    assert set(open_tensors(tmp_path, notes := [])) == {"t2", "t3"}
    assert notes == ["not read: model-00001-of-00002.safetensors (model.safetensors.index.json names those that are)"]

    index.write_text(json.dumps(content))
    open_tensors(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(WeightsError, match="duplicate: t0 is in model-00001-of-00002"):
        open_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(WeightsError, match="'weight_map'"):
        open_tensors(tmp_path)
    index.write_text("{")
    with pytest.raises(WeightsError, match=r"index\.json is damaged: it is not JSON$"):
        open_tensors(tmp_path)
    index.unlink()
    with pytest.raises(WeightsError, match=r"has 2 .*files"):
        open_tensors(tmp_path)


def test_a_surplus_tensor_in_a_shard_is_named(tmp_path):
    sharded(tmp_path)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    safetensors.numpy.save_file({name: np.zeros(4, np.float32) for name in ("t0", "t1", "other")}, shard)
    with pytest.raises(WeightsError, match=r"surplus: .* holds other"):
        open_tensors(tmp_path)


def test_a_folder_without_safetensors_says_so_and_pickles_are_not_read(tmp_path):
    with pytest.raises(WeightsError, match="no file or folder"):
        open_tensors(tmp_path / "nothing")
    with pytest.raises(WeightsError, match=r"no \*\.safetensors"):
        open_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="any program"):
        open_tensors(tmp_path)


def test_values_other_than_announced_are_refused(tmp_path):
    wrong = NewTensor((3,), np.dtype(np.float32), lambda: np.zeros(4, np.float32))
    with pytest.raises(WeightsError, match="x should have been"):
        write_tensors(tmp_path, {"x": wrong})
    with pytest.raises(WeightsError, match="x has the dtype complex64"):
        write_tensors(tmp_path, {"x": new(np.zeros(4, np.complex64))})
