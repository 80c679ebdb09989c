"""What `DataConfig` asks for is what a run learns from: files of other shapes, and several stores at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from training_helpers import tiny_experiment, write_corpus

from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.data.prepare import PrepareConfig, prepare
from xlstm_jax.data.store import Batch, Loader, open_store
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import DataConfig, Experiment

SHORT = ["--training.steps", "2", "--warmup_steps", "1", "--training.eval_tokens", "200", "--training.eval_every", "1"]


def test_names_of_stores_made_before_there_were_more_settings_are_found() -> None:
    assert str(DataConfig().store_path()) == "stores/stdlib-bpe4096-9b69de00"
    assert str(DataConfig(tokenizer="bytes", validation_fraction=0.01).store_path()) == "stores/stdlib-bytes-97dce43e"
    other = DataConfig(vocab_size=2048, sources=("a/b.txt", "c"), seed=3, mask_crossing=True)
    assert str(other.store_path()) == "stores/b.txt-c-bpe2048-c1fc046a"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "text"},
        {"text_field": "body"},
        {"separator": "--"},
        {"include": ["*.md"]},
        {"eod": "</s>"},
        {"drop_normalizer": True},
        {"training_bytes": 1000},
        {"shard_tokens": 1000},
    ],
)
def test_every_setting_of_a_store_is_one_of_a_run_and_changes_the_name_of_its_store(change: dict) -> None:
    changed = DataConfig(**change)
    assert changed.store_path() != DataConfig().store_path()
    assert changed.to_prepare() == PrepareConfig(tokenizer="bpe", vocab_size=4096, **change)
    assert DataConfig(tokenizer="bytes").to_prepare() == PrepareConfig()


def test_a_config_from_before_there_were_more_settings_is_read() -> None:
    before = {
        "sources": ["stdlib"], "store": None, "tokenizer": "bytes", "vocab_size": 4096, "validation_fraction": 0.01,
        "seed": 0, "mask_crossing": False, "fingerprint": "abc",
    }  # fmt: skip
    read = Experiment.from_dict(tiny_experiment(Path("x")).to_dict() | {"data": before}).data
    assert read == DataConfig(tokenizer="bytes", validation_fraction=0.01, fingerprint="abc")


def test_a_run_reads_the_field_of_json_lines_that_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [path.read_text() for path in sorted(write_corpus(tmp_path / "in").iterdir())]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": 0, "body": text}) + "\n" for text in texts))
    monkeypatch.chdir(tmp_path)
    words = ["train", "tiny", "--run", "r", "--sources", "x.jsonl", *SHORT, "--validation_fraction", "0.2"]
    assert main(words) == 1  # the field "text" is there, and no text
    assert main([*words, "--text_field", "body"]) == 0
    data = RunFolder("runs/r").read_config(Experiment).data
    store = open_store(data.store_path())
    splits = [store.split(name) for name in ("train", "validation")]
    found = [split.document_bytes(i).decode() for split in splits for i in range(split.num_documents)]
    assert sorted(found) == sorted(texts)
    # Going on needs no word of it; another field is another text.
    assert main(["train", "runs/r", "--training.steps", "3"]) == 0
    assert main(["train", "runs/r", "--training.steps", "4", "--text_field", "text"]) == 2


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two texts that share no letter."""
    folder = tmp_path_factory.mktemp("stores")
    for name, letters in (("a", "abcd"), ("b", "wxyz")):
        (folder / f"{name}.txt").write_text("|".join(letters[n % 4] * (20 + n % 7) for n in range(60)))
        config = PrepareConfig(separator="|", validation_fraction=0.2)
        prepare(folder / f"{name}.txt", folder / name, config, progress=False, workers=1)
    return folder / "a", folder / "b"


def mixed(stores: tuple[Path, ...], *weights: float) -> list[str]:
    return ["--mixture", json.dumps(dict(zip(map(str, stores), weights, strict=True)))]


@pytest.fixture(scope="module")
def mixed_run(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mixed"
    assert main(["train", "quickstart", "--run", str(run), *tiny_options(), *SHORT, *mixed(stores, 3, 1)]) == 0
    return run


def tiny_options() -> list[str]:
    """A preset whose tokenizer is another one than the stores', at the size of `tiny`."""
    sizes = {"context_length": 64, "embedding_dim": 32, "num_blocks": 1, "num_heads": 2, "training.batch_size": 4}
    return [word for name, value in sizes.items() for word in (f"--{name}", str(value))]


def test_a_run_learns_from_several_stores_by_weight_and_is_scored_on_all(
    stores: tuple[Path, Path], mixed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []
    real = Loader.__call__

    def kept(self: Loader, step: int, rows: slice | None = None) -> Batch:
        batches.append(real(self, step, rows))
        return batches[-1]

    monkeypatch.setattr(Loader, "__call__", kept)
    assert main(["train", str(mixed_run), "--training.steps", "12"]) == 0
    inputs = np.concatenate([batch.inputs for batch in batches])
    of_second = ((inputs >= ord("w")) & (inputs <= ord("z"))).any(1)
    assert 0.2 < of_second.mean() < 0.3
    held_out = [open_store(path).split("validation") for path in stores]
    report = json.loads((mixed_run / "report.json").read_text())
    assert report["validation_tokens"] == sum(s.num_tokens - 1 for s in held_out)
    data = RunFolder(mixed_run).read_config(Experiment).data
    assert (data.sources, data.store) == ((), None)
    assert data.mixture == {str(stores[0]): 3, str(stores[1]): 1}


def test_a_run_of_a_mixture_goes_on_with_the_same_texts_and_weights_alone(
    stores: tuple[Path, Path], mixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    going_on = ["train", str(mixed_run), "--training.steps", "14"]
    for other in (mixed(stores[::-1], 3, 1), mixed(stores, 1, 1), mixed(stores[:1], 1)):
        assert main([*going_on, *other]) == 1
        assert "other texts, or with other weights" in capsys.readouterr().err
    assert main([*going_on, "--mixture"]) == 2
    stores[0].rename(tmp_path / "moved")
    try:
        assert main(going_on) == 1
        assert f"there is no token store at {stores[0]}" in capsys.readouterr().err
        assert main([*going_on, *mixed((tmp_path / "moved", stores[1]), 6, 2)]) == 0
    finally:
        (tmp_path / "moved").rename(stores[0])


def test_a_mixture_that_cannot_be_is_named(stores: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"gives a the weight 0.0, but it must be a number > 0"):
        DataConfig(mixture={"a": 0})
    with pytest.raises(ConfigError, match=r"mixture is given, and DataConfig.store is 'c'; give one of them"):
        DataConfig(mixture={"a": 1}, store="c")
    assert dataclasses.replace(DataConfig(), mixture={"a": 1}).store_path() == Path("a")
