"""What `DataConfig` asks for is what a run learns from: files of other shapes, and several stores at once."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_helpers import tiny_experiment, with_fields, write_corpus

from xlstm_jax.cli import main
from xlstm_jax.cli.names import find_experiment
from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import MissingStoreError, PrepareError, SourceError
from xlstm_jax.data.prepare import PrepareConfig, prepare
from xlstm_jax.data.store import Batch, Loader, open_store
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import DataConfig, Experiment
from xlstm_jax.training.fork import fork_run
from xlstm_jax.training.loop import train
from xlstm_jax.training.open_run import agree_on_store, filled_in, inspect
from xlstm_jax.training.run_store import open_or_prepare

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
    words = ["train", "tiny", "--run", "r", "--sources", "x.jsonl", *tiny_options(), *SHORT]
    words += ["--validation_fraction", "0.2"]
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


# -- which store is a run's --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a text."""
    write_corpus(tmp_path / "txt", documents=12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(run: str, said: list[str] | None = None, **data: Any) -> set[bytes]:
    """What a new run learns from, or what one that has begun goes on with: all documents of its store."""
    folder = RunFolder(run)
    fields = {"sources": ("txt",), "tokenizer": "bytes", "validation_fraction": 0.2} | data
    asked = dataclasses.replace(tiny_experiment(Path("x")), data=DataConfig(**fields))
    asked = filled_in(asked, folder.read_config(Experiment)) if folder.exists else asked
    store = open_or_prepare(asked, (said if said is not None else []).append, folder)
    folder.create().write_config(agree_on_store(inspect(folder), asked, store))
    splits = [store.split(name) for name in ("train", "validation")]
    return {split.document_bytes(i) for split in splits for i in range(split.num_documents)}


def documents() -> set[bytes]:
    return {path.read_bytes() for path in Path("txt").iterdir()}


def test_a_new_run_learns_from_the_sources_as_they_are_and_one_that_has_begun_keeps_its_text(project: Path) -> None:
    before = documents()
    assert begin("runs/first") == before
    (project / "txt" / "new.txt").write_text("a file that came later")
    said: list[str] = []
    assert begin("runs/second", said) == documents() != before
    assert said[0].startswith("note: txt changed since stores/txt-bytes-")

    # Touched, and so made of the same documents: the second store serves again.
    (project / "txt" / "000.txt").touch()
    assert begin("runs/third") == documents()
    assert len(list((project / "stores").iterdir())) == 2

    said.clear()
    assert begin("runs/first", said) == before
    (note,) = said
    assert "the run goes on with stores/txt-bytes-" in note
    assert begin("runs/third", said) == documents()
    assert said == [note]
    (project / "txt" / "new.txt").unlink()
    assert begin("runs/fourth") == before
    assert len(list((project / "stores").iterdir())) == 2


def test_another_library_of_python_is_another_text(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("3.11", "3.13"):
        (project / version).mkdir()
        (project / version / "a.py").write_text(f"version = {version!r}\n")
        (project / version / "b.py").write_text("pass\n")
        monkeypatch.setattr(sysconfig, "get_path", lambda name, version=version: str(project / version))
        assert f"version = {version!r}\n".encode() in begin(f"runs/{version}", sources=("stdlib",))


def test_a_store_that_is_named_is_not_taken_for_one_of_other_sources(project: Path) -> None:
    before = begin("runs/a", store="mine")
    (project / "txt" / "000.txt").unlink()
    with pytest.raises(PrepareError, match="mine holds a store of another request, which differs in documents"):
        begin("runs/b", store="mine")
    # Without sources, the store alone says what is learnt; and a run keeps its own.
    assert begin("runs/c", store="mine", sources=("stdlib",)) == before
    assert begin("runs/a", store="mine") == before


def test_a_run_finds_its_store_from_any_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, data in (("own", {}), ("named", {"store": "mine"})):
        before = begin(f"runs/{name}", **data)
        (project / name / "else").mkdir(parents=True)
        monkeypatch.chdir(project / name / "else")
        assert begin(f"../../runs/{name}", **data) == before
        assert list(Path().iterdir()) == []
        monkeypatch.chdir(project)
    begin("runs/mixed", mixture={"mine": 1}, sources=())
    monkeypatch.chdir(project / "own")
    assert begin("../runs/mixed", mixture={"mine": 1}, sources=()) == before
    # Where it is gone, and the sources are not here, nothing takes its place.
    shutil.rmtree(project / "stores")
    with pytest.raises(SourceError, match="there is no file or folder 'txt'"):
        begin("../runs/own")


def test_a_finished_run_says_so_before_a_text_is_prepared_and_a_copy_keeps_its_text(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(Path("txt"), steps=2)
    train("runs/x", experiment)
    before = documents()
    (project / "txt" / "new.txt").write_text("a file that came later")
    run = RunFolder("runs/x")
    same = fork_run(run, Path("runs/same"), with_fields(experiment, "training", steps=3), print)
    other = fork_run(run, Path("runs/other"), with_fields(experiment, "data", sources=("./txt",)), print)
    for copy, texts in ((same, before), (other, documents())):
        asked = copy.read_config(Experiment)
        store = open_or_prepare(asked, print, copy)
        count = sum(store.split(name).num_documents for name in ("train", "validation"))
        assert count == len(texts)
    shutil.rmtree("stores")
    capsys.readouterr()
    assert main(["train", "runs/x"]) == 0
    assert "runs/x is finished: it has made its 2 steps" in capsys.readouterr().out
    assert not Path("stores").exists()


def test_a_folder_that_never_was_a_store_is_not_called_unfinished(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(MissingStoreError, match=r"is not a token store: it has no index\.json"):
        open_store(tmp_path)


def test_a_preset_takes_files_to_hold_out(project: Path) -> None:
    (project / "held.txt").write_text("held out, all of it")
    data = find_experiment("tiny").changed(["--sources", "txt", "--data.validation", "held.txt"]).data
    held_out = prepare(data.sources, data.store_path(), data.to_prepare(), progress=False, workers=1).split(
        "validation"
    )
    assert [held_out.document_bytes(i) for i in range(held_out.num_documents)] == [b"held out, all of it"]
    assert DataConfig(validation=("held.txt",)).store_path() != DataConfig().store_path()


def test_what_would_have_no_effect_on_a_store_that_is_made_is_refused(stores: tuple[Path, Path]) -> None:
    preset = find_experiment("tiny")
    for made in (mixed(stores, 1, 2), ["--data.store", str(stores[0])]):
        for field, value in (("validation", "b.txt"), ("separator", "=="), ("text_field", "body"), ("data.seed", "3")):
            with pytest.raises(ConfigError, match=rf"--data\.{field.removeprefix('data.')} says how a text becomes a"):
                preset.changed([*made, f"--{field}", value])
    both = preset.changed(["--data.store", "x", "--sources", "txt", "--validation", "b.txt"]).data
    assert (both.store, both.sources, both.validation) == ("x", ("txt",), ("b.txt",))
    # Other sources are not those of a store that was named before.
    ours = dataclasses.replace(preset, experiment=preset.changed(["--sources", "txt", "--data.store", "x"]))
    assert ours.changed(["--sources", "other"]).data.store is None
    assert ours.changed(["--sources", "txt"]).data.store == "x"


def test_a_mixture_beside_sources_is_refused_and_takes_the_place_of_a_runs(stores: tuple[Path, Path]) -> None:
    preset, mixture = find_experiment("tiny"), mixed(stores, 1, 2)
    for sources in ("txt", "stdlib"):
        with pytest.raises(ConfigError, match="--mixture names the texts to learn from, and so does --sources"):
            preset.changed([*mixture, "--sources", sources])
    with pytest.raises(ConfigError, match=r"mixture is given, and DataConfig.store is '.*'; give one of them"):
        preset.changed([*mixture, "--data.store", "x"])
    with pytest.raises(ConfigError, match=r"mixture is given, and DataConfig.sources is \('txt',\); give one of them"):
        DataConfig(mixture={"a": 1}, sources=("txt",))
    ours = dataclasses.replace(preset, experiment=preset.changed(["--sources", "txt", "--data.store", "x"]))
    assert ours.changed(mixture).data == preset.changed(mixture).data
    theirs = dataclasses.replace(preset, experiment=preset.changed(mixture))
    assert theirs.changed(["--sources", "txt"]).data == preset.changed(["--sources", "txt"]).data
    assert theirs.changed(["--data.store", "x"]).data.mixture == {}
