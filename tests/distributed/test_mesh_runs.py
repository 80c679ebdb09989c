"""A run on meshes, from the command line: the same losses as on one device, and onwards on another mesh."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from xlstm_jax.cli import main

EPS = float(np.finfo(np.float32).eps)
"""Of a loss that is summed in another order, after four steps."""
SMALL = ["--embedding_dim", "32", "--num_blocks", "1", "--context_length", "32", "--warmup_steps", "1"]
RUN = ["--batch_size", "8", "--steps", "4", "--checkpoint_every", "2", "--eval_every", "0", "--eval_tokens", "100"]


def losses(name: str) -> list[float]:
    lines = [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    return [line["loss"] for line in lines]


@pytest.mark.long
@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh_and_on_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = " ".join(f"{number} times {number} is {number * number}." for number in range(900))
    Path("text.txt").write_text(text)
    train = ["train", "tiny", *SMALL, *RUN, "--sources", "text.txt"]
    assert main([*train, "--run", "one", "--mesh", "dp=1"]) == 0
    assert main([*train, "--run", "parted", "--mesh", "sp=2,tp=2", "--fsdp_min_weight_size", "0"]) == 0
    assert "8 x 32 tokens a step on dp 2 x sp 2 x tp 2" in capsys.readouterr().out
    np.testing.assert_allclose(losses("parted"), losses("one"), rtol=64 * EPS)

    shutil.rmtree("runs/parted/checkpoints/00000004")
    assert main(["train", "parted", "--mesh", "fsdp=8"]) == 0
    said = capsys.readouterr().out
    assert "the mesh was dp 2 x sp 2 x tp 2 when this run was last trained and is fsdp 8 now" in said
    np.testing.assert_allclose(losses("parted"), losses("one"), rtol=64 * EPS)

    prompt = ["--prompt", "7 times", "--max-tokens", "8", "--temperature", "0"]
    assert main(["generate", "parted", *prompt]) == 0
    alone = capsys.readouterr().out
    assert main(["generate", "parted", "--mesh", "fsdp=2,tp=2", *prompt]) == 0
    assert capsys.readouterr().out == alone

    assert main(["train", "parted", "--mesh", "sp=3"]) != 0
    assert "a mesh of sp 3 needs a number of devices that 3 divides, but there are 8 devices" in capsys.readouterr().err
    assert main(["train", "tiny", "--run", "no", "--mesh", "tp=4"]) != 0
    assert "the 2 heads of the mLSTM blocks cannot be parted over tp 4" in capsys.readouterr().err
    assert not Path("runs/no/config.json").exists()
