"""Compiled programs are kept where the user's caches are, within bounds, and never where they could do harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xlstm_jax.machine import programs
from xlstm_jax.machine.programs import LARGEST, SETTINGS, cache_folder, keep_programs, prune


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in SETTINGS:
        os.environ.pop(name, None)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "caches")
    monkeypatch.setattr(programs.warnings, "filterwarnings", lambda *args: None)


def test_the_folder_is_the_users_and_jax_is_told_of_it(tmp_path: Path) -> None:
    folder = keep_programs()
    assert folder is not None
    assert folder.parent == tmp_path / "caches" / "xlstm_jax"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    other = folder.with_name("programs-other")
    other.mkdir()
    (other / "old").touch()
    os.truncate(other / "old", LARGEST + 1)
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert keep_programs() == folder
    assert not list(other.iterdir())


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_user_has_set_stands(name: str, tmp_path: Path) -> None:
    os.environ[name] = "0"
    assert keep_programs() is None
    assert not (tmp_path / "caches").exists()


def test_processors_do_not_share_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache_folder()
    assert cache_folder() == first
    monkeypatch.setattr(programs, "_processor", lambda: "another")
    assert cache_folder() != first


def test_without_a_place_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = "relative"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert keep_programs() is None
    (tmp_path / "file").write_text("")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "file")
    assert keep_programs() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    folders = tmp_path / "programs-a", tmp_path / "programs-b"
    for folder in folders:
        folder.mkdir()
    for age in range(10):
        file = folders[age % 2] / f"{age}"
        file.write_bytes(bytes(10))
        os.utime(file, (1000 - age, 1000 - age))
    prune(folders, 100)
    assert len(list(tmp_path.glob("*/*"))) == 10
    prune(folders, 99)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["0", "1", "2", "3"]
