"""Whatever has become of a small file of a run: no traceback, a sentence that names it, and nothing else is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from training_helpers import tiny_experiment

from xlstm_jax.cli import main
from xlstm_jax.hub.kept import Kept, Record
from xlstm_jax.runs.folder import RunFolder, TokenizerInfo
from xlstm_jax.training.loop import train

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_bytes(b"[" * 200_000 + b"\n"),
    "list": lambda path: path.write_bytes(b"[1, 2]\n"),
    "folder": lambda path: path.mkdir(),
}
GENERATE, CONVERT, TRAIN = (
    ["generate", "./run", "--prompt", "a", "--max-tokens", "1"],
    ["convert", "./run", "out"],
    ["train", "./run"],
)
READ = {
    "config.json": (GENERATE, CONVERT, TRAIN),
    "tokenizer/tokenizer_info.json": (GENERATE, CONVERT, TRAIN),
    "tokenizer_info.json": (GENERATE, CONVERT),
    "huggingface/config.json": (CONVERT,),
    "huggingface/format.json": (CONVERT,),
    "checkpoints/00000002/manifest.json": (CONVERT,),
}
"""What reads each of them, and cannot do without."""
ASIDE = {"report.json": (CONVERT,), "metrics.jsonl": (TRAIN,), "environment.json": (TRAIN,), "lock": (TRAIN,)}
"""What there need be nothing good in: it is written anew, or told of."""


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(path, tiny_experiment(store=store, steps=2, sample_prompts=()))
    RunFolder(path).write_tokenizer_info(TokenizerInfo())
    Kept({"config.json": b"{}"}, Record()).write(path / "huggingface")
    return path


def damaged(run: Path, name: str, damage: str) -> None:
    path = Path(shutil.copytree(run, "run"), name)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    DAMAGES[damage](path)


def contents() -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize(
    ("name", "damage", "verbs"),
    [
        *((name, damage, verbs) for name, verbs in READ.items() for damage in DAMAGES),
        ("checkpoints", "empty", (GENERATE, TRAIN)),
        ("tokenizer", "empty", (GENERATE, CONVERT, TRAIN)),
    ],
)
def test_a_file_that_is_needed_is_named_and_the_others_stay(
    name: str,
    damage: str,
    verbs: Sequence[list[str]],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged(run, name, damage)
    before = contents()
    for words in verbs:
        assert main(words) in (1, 2)
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("xlstm: ")
        assert Path(name).parts[0] in said
        assert contents() == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ASIDE)
def test_a_file_that_is_not_needed_is_no_reason_to_end_but_where_it_cannot_be_written(
    name: str,
    damage: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged(run, name, damage)
    leftovers = Path("run/.config.json.0.tmp"), Path("run/.tokenizer.0.tmp")
    leftovers[0].touch()
    leftovers[1].mkdir()
    for words in ASIDE[name]:
        failed = damage == "folder" and name != "report.json"
        assert main(words) == failed
        assert not failed or f"run/{name}" in capsys.readouterr().err
        assert any(path.exists() for path in leftovers) == (words != TRAIN or (name == "lock" and failed))
    assert RunFolder("run").checkpoints(read_only=True).steps() == [2]
