"""Folders and patterns over them: links are followed, each real folder once, and what is no file is counted."""

import os

import pytest

from xlstm_jax.cli import main
from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare import PrepareConfig
from xlstm_jax.data.prepare.notes import Notes
from xlstm_jax.data.prepare.sources import list_files
from xlstm_jax.data.store import open_store

PLAIN = PrepareConfig()


def found(source, **fields):
    notes = Notes()
    files = list_files([source], PrepareConfig(**fields), notes)
    return [os.path.basename(os.path.realpath(f.path)) for f in files], notes.sentences()


@pytest.fixture
def tangle(tmp_path):
    """Two files, of which one lies outside and is linked to; loops, a link to nothing, a pipe."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "l.txt").write_text("linked")
    folder = tmp_path / "f"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "x.txt").write_text("here")
    for link, target in (
        ("linked", "../real"),
        ("again", "../real/deep"),
        ("a/up", ".."),
        ("a/self", "."),
        ("a/b/top", "../.."),
        ("same.txt", "a/x.txt"),
        ("nothing.txt", "gone"),
        ("round.txt", "round.txt"),
    ):
        (folder / link).symlink_to(target)
    os.mkfifo(folder / "pipe.txt")
    return folder


def test_a_folder_and_a_pattern_over_it_give_the_same_files_through_links_and_loops(tangle):
    for source in (tangle, f"{tangle}/**/*.txt", f"{tangle}/**", f"{tangle}/**/**/*.txt"):
        names, said = found(source)
        assert sorted(names) == ["l.txt", "x.txt"]
        links = "3 entries of folders are no file (a pipe, a device, a link to nothing): left out"
        assert said == [f"{links} (the first {tangle}/pipe.txt)"]
    assert found(f"{tangle}/a/**/l.txt")[0] == ["l.txt"]
    assert found(f"{tangle}/linked")[0] == ["l.txt"]


def test_what_was_left_out_is_told_by_the_command(tangle, tmp_path, capsys):
    assert main(["data", "prepare", str(tangle), "--out", str(tmp_path / "s"), "--quiet"]) == 0
    assert "note: 3 entries of folders are no file" in capsys.readouterr().err
    store = open_store(tmp_path / "s")
    assert sum(store.split(name).num_documents for name in ("train", "validation")) == 2


def test_patterns_are_those_of_glob(tmp_path, monkeypatch):
    for name in ("a.txt", "b[1].txt", ".h.txt", "sub/c.txt", "sub/.d.txt", "sub/in/e.md", "__pycache__/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    for pattern, names in (
        ("*.txt", ["a.txt", "b[1].txt"]),
        ("?.txt", ["a.txt"]),
        (".*.txt", [".h.txt"]),
        ("b[[]*.txt", ["b[1].txt"]),
        ("*/*.txt", ["c.txt", "f.txt"]),
        ("**/*.txt", ["a.txt", "b[1].txt", "c.txt"]),
        ("sub/**/*", ["c.txt", "e.md"]),
        ("./s*/../s*/[!d]*.txt", ["c.txt"]),
    ):
        assert sorted(found(pattern)[0]) == names, pattern
        assert sorted(found(f"{tmp_path}/{pattern}")[0]) == names, pattern


def test_a_link_that_leads_nowhere_is_named(tangle):
    with pytest.raises(SourceError, match=r"nothing\.txt is a link to gone, which leads to no file"):
        found(tangle / "nothing.txt")
    with pytest.raises(SourceError, match=r"the folder .*b holds no files that match \*\.none"):
        found(tangle / "a" / "b", include=["*.none"])


def test_a_folder_that_may_not_be_read_is_named_by_both_forms(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.txt").write_text("a")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for source in (tmp_path, f"{tmp_path}/**/*.txt"):
        with pytest.raises(SourceError, match=r"cannot read the folder .*shut: Permission denied"):
            found(source)


def test_stores_and_runs_below_a_folder_are_no_text(tmp_path, monkeypatch):
    for name in ("a.txt", "sub/b.txt", "runs/x/config.json", "runs/x/metrics.jsonl", "runs/x/checkpoints/1/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    words = ["data", "prepare", ".", "--out", "stores/x", "--quiet"]
    assert main(words) == 0
    first = open_store("stores/x").fingerprint
    # Also when the store is there itself, finished or not.
    (tmp_path / "half" / "work").mkdir(parents=True)
    (tmp_path / "half" / "work" / "plan.json").write_text("{}")
    assert main(words) == 0
    assert main([*words[:4], "stores/y", "--quiet"]) == 0
    assert open_store("stores/y").fingerprint == first
    assert sorted(found("**/*")[0]) == ["a.txt", "b.txt"]
