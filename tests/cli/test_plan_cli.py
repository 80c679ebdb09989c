"""`xlstm plan`: presets, runs, overrides, and JSON for machines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from training_helpers import write_corpus

from xlstm_jax.cli import main
from xlstm_jax.cli.train import _experiment_and_run, parse
from xlstm_jax.presets import get_preset, preset_names
from xlstm_jax.runs.folder import RunFolder


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["plan", *words, "--no-compile", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_json_holds_what_the_help_promises(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "mlstm_v1_7b")
    assert found["name"] == "mlstm_v1_7b"
    assert found["params"] == 6_865_424_896
    assert found["state_bytes"] == 32 * 8 * (256 * 512 + 256 + 1) * 4
    assert found["training"]["temporaries"] is None
    assert main(["plan", "--help"]) == 0
    shown = capsys.readouterr().out
    promised = shown[shown.index("--json ") :]
    for key in found:
        assert key == "name" or key in promised
    for key in ("weights", "optimizer", "total", "fits"):
        assert key in found["training"]
        assert key in promised


def test_a_plan_for_many_devices_names_its_chip(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "mlstm_v1_7b", "--devices", "8", "--mesh", "fsdp=8", "--chip", "Trillium")
    assert found["training"]["mesh"] == "fsdp 8"
    assert found["training"]["device_rows"] == 2
    assert found["device"] == {"name": "v6e", "total": 32 * 2**30, "free": None}
    assert found["training"]["exchanges"] == []
    for words, said in {
        ("--devices", "0"): "--devices is '0', but must be a whole number from 1 to 4096",
        ("--chip", "H10"): "--chip is 'H10' (did you mean 'H100'?)",
        ("--mesh", "tp=3"): "a mesh of tp 3 needs a number of devices that 3 divides, but there are 8 devices",
        ("--mesh", "tp=16,dp=1"): "a mesh of tp 16 needs 16 devices, but there are 8 devices",
    }.items():
        assert main(["plan", "mlstm_v1_7b", *words]) != 0
        assert said in capsys.readouterr().err


def test_fields_change_the_plan_as_they_change_training(capsys: pytest.CaptureFixture[str]) -> None:
    before = planned(capsys, "llama_165m", "--mesh", "dp=1")
    after = planned(
        capsys, "llama_165m", "--mesh", "dp=1", "--num_blocks", "6", "--batch_size=8", "--set", "training.accumulate=2"
    )
    assert after["params_by_part"]["attention layers"] == before["params_by_part"]["attention layers"] // 2
    assert after["tokens_per_step"] == 8 * 2048
    assert after["training"]["device_rows"] == 4


def test_the_memory_of_an_optimizer_is_that_of_what_it_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    def moments(name: str, preset: str = "tiny") -> float:
        """How many times the parameters the state is."""
        of = planned(capsys, preset, "--optimizer.name", name)["training"]
        return of["optimizer"] / of["weights"]

    for name, times in {"adamw": 2, "sgd": 1, "lion": 1, "ademamix": 3}.items():
        assert moments(name) == pytest.approx(times, abs=1e-3)
    assert 1 < moments("muon") < 2
    assert moments("adafactor", "mlstm_v1_165m") < 0.01
    assert main(["plan", "tiny", "--optimizer.name", "adam"]) != 0
    assert "must be one of 'adamw', 'adafactor', 'ademamix', 'lion', 'muon', 'sgd'" in capsys.readouterr().err


def test_a_run_is_planned_as_it_was_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = get_preset("tiny")
    model = dataclasses.replace(experiment.model, vocab_size=320, num_blocks=3)
    RunFolder("runs/mine").create().write_config(dataclasses.replace(experiment, model=model))
    found = planned(capsys, "runs/mine")
    assert found["name"] == "runs/mine"
    assert found["params"] > planned(capsys, "tiny")["params"]
    by_name = planned(capsys, "mine")
    assert (by_name["name"], by_name["params"]) == (found["name"], found["params"])


def test_what_is_not_there_is_named_with_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (["mlstm_v1_8b"], "'mlstm_v1_8b' is neither a preset (did you mean 'mlstm_v1_7b'?) nor a run"),
        (["runs/nothing"], "there is no run runs/nothing"),
        (["--num_blocks", "3"], "takes a preset, a run or a file first, but got '--num_blocks'"),
        (["num_blocks=3"], "takes a preset, a run or a file first, but got 'num_blocks=3'"),
        (["tiny", "--nun_blocks", "3"], "no field 'nun_blocks' (did you mean 'num_blocks'?)"),
        (["tiny", "--set"], "--set needs a value"),
    ):
        assert main(["plan", *words]) in (1, 2)
        assert sentence in capsys.readouterr().err


def test_without_arguments_the_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    shown = capsys.readouterr().out
    for name in preset_names():
        assert f"\n  {name} " in shown
    assert main(["plan", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == preset_names()


def test_the_tables_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "xlstm_125m[7:1]", "--no-compile"]) == 0
    shown = capsys.readouterr().out
    for part in ("xlstm_125m_7_1: 163,690,928 parameters", "sLSTM layers", "optimizer state", "not compiled", "serve"):
        assert part in shown


def test_training_knows_other_spellings_and_takes_a_named_stores_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "text")
    assert main(["data", "prepare", "text", "--out", "store", "--tokenizer", "bytes"]) == 0
    capsys.readouterr()
    experiment, run = _experiment_and_run(parse(["mLSTM_165M", "--data.store", "store"]), "mLSTM_165M")
    assert run == Path("runs/mlstm_165m")
    assert (experiment.data.tokenizer, experiment.data.sources) == ("bytes", ())
    assert experiment.model.vocab_size == 50304
    assert planned(capsys, "tiny", "--data.store", "store")["params_by_part"]["embedding"] == 320 * 32
