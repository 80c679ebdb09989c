"""Folders of Hugging Face that the tests here share: the recorded ones, copies of them, and a model to write."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from xlstm_jax.hub.folders import open_source
from xlstm_jax.hub.formats.base import ReadOptions
from xlstm_jax.hub.safetensors_files import NewTensor, open_tensors, write_tensors
from xlstm_jax.models.xlstm_parallel.small import small_v1

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = ["hf_xlstm_single", "hf_xlstm_fused", "hf_llama_gqa"]


def bits(folder):
    return {name: (t.shape, t.dtype, t.read().tobytes()) for name, t in open_tensors(folder).items()}


def document(name="hf_xlstm_single", **changes):
    return json.loads((GOLDEN / name / "config.json").read_text()) | changes


def read(folder, **options):
    return open_source(folder).read(ReadOptions(**options))


def copy_of(name, out, **changes):
    """A recorded folder with another config."""
    shutil.copytree(GOLDEN / name, out)
    (out / "config.json").write_text(json.dumps(document(name, **changes)))
    return out


def rewrite(folder, change):
    """The folder's tensors, changed, in one file."""
    tensors = change({name: t.read() for name, t in open_tensors(folder).items()})
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    write_tensors(folder, {n: NewTensor(v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()})


def expressible():
    return dataclasses.replace(small_v1(32, 2, 2, 64), vocab_size=64)


def with_cell(config, **fields):
    mlstm = config.mlstm_block.mlstm
    cell = dataclasses.replace(mlstm.mlstm_cell, **fields)
    block = dataclasses.replace(config.mlstm_block, mlstm=dataclasses.replace(mlstm, mlstm_cell=cell))
    return dataclasses.replace(config, mlstm_block=block)
