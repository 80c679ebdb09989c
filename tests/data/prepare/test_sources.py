"""Sources: what is found, how it is cut into documents, and what is said about what cannot be read."""

import gzip
import itertools
import json
import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare import PrepareConfig
from xlstm_jax.data.prepare.sources import documents, list_files

PLAIN = PrepareConfig()


def names(files):
    return [os.path.basename(f.path) for f in files]


def read(*sources, **fields):
    config = PrepareConfig(**fields)
    return [d for f in list_files(sources, config) for d in documents(f, config)]


def test_files_folders_and_globs(tmp_path, monkeypatch):
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.md", ".hidden", "sub/.git/x", "sub/__pycache__/y.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert names(list_files([tmp_path], PLAIN)) == ["a.txt", "b.txt", "c.md"]
    assert names(list_files([f"{tmp_path}/**/*.txt"], PLAIN)) == ["a.txt", "b.txt"]
    assert names(list_files([tmp_path], PrepareConfig(include=("*.md",)))) == ["c.md"]
    assert names(list_files([tmp_path / "sub" / ".git" / "x"], PLAIN)) == ["x"]
    monkeypatch.chdir(tmp_path)
    assert names(list_files(["sub", tmp_path / "sub" / "b.txt", "./sub/../sub"], PLAIN)) == ["b.txt", "c.md"]


def test_a_name_that_looks_like_a_glob_is_a_file_first(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert names(list_files([tmp_path / "a[1].txt"], PLAIN)) == ["a[1].txt"]


def test_the_standard_library_is_its_sources_without_tests_and_packages():
    files = [Path(f.path) for f in list_files(["stdlib"], PLAIN)]
    root = Path(sysconfig.get_path("stdlib"))
    parts = [set(f.relative_to(root).parts) for f in files]
    assert len(files) > 300
    assert root / "argparse.py" in files
    assert all(f.suffix == ".py" for f in files)
    assert not any({"site-packages", "test", "tests", "idle_test", "__pycache__"} & p for p in parts)
    assert not any(f.name.startswith("_sysconfigdata") for f in files)


def test_text_is_one_document_and_bytes_stay_as_they_are(tmp_path):
    content = b"one\r\n\xff\x7f\xef\xbb\xbftwo" + b"." * 50
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content + b"!"))
    (tmp_path / "empty.txt").write_bytes(b"")
    assert read(tmp_path) == [content, content + b"!"]


def test_a_separator_cuts_text_files(tmp_path):
    (tmp_path / "a.txt").write_text("<|end|>one\n<|end|>\ntwo<|end|><|end|>three")
    assert read(tmp_path, separator="<|end|>") == [b"one\n", b"\ntwo", b"three"]


TEXTS = ["first", "zweite ü\nline", "", "\ud800 half", "last"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.json.gz", "a.json"])
def test_a_json_line_is_a_document(tmp_path, name):
    content = b"\xef\xbb\xbf" if name == "a.jsonl" else b""
    content += "\n\n".join(json.dumps({"id": 1, "body": t}) for t in TEXTS).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = read(tmp_path / name, text_field="body")
    assert found == [t.encode("utf-8", "surrogatepass") for t in TEXTS if t]


def test_json_that_is_not_lines_is_text_and_a_format_can_be_forced(tmp_path):
    (tmp_path / "a.json").write_text('{\n "name": "x"\n}\n')
    (tmp_path / "lines.txt").write_text('{"text": "x"}\n')
    assert read(tmp_path / "a.json") == [b'{\n "name": "x"\n}\n']
    assert read(tmp_path / "lines.txt", format="jsonl") == [b"x"]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=20), st.integers(1, 60))
def test_stretches_of_a_json_lines_file_hold_each_line_once(tmp_path_factory, texts, step):
    path = tmp_path_factory.mktemp("stretches") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8")
    (file,) = list_files([path], PLAIN)
    cuts = [*range(0, file.size, step), file.size]
    found = [d for a, b in itertools.pairwise(cuts) for d in documents(file, PLAIN, a, b)]
    assert found == [t.encode() for t in texts if t]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "x"}\n{"text"', r"a\.jsonl, line 2 is not JSON"),
        ('{"text": "x"}\n\n{"txet": "x"}', r"line 3 has no field 'text' \(did you mean 'txet'\?\).*--text-field"),
        ("[1]", "line 1 holds a list"),
        ("[" * 100_000, "line 1 is not JSON: maximum recursion depth exceeded"),
        ('{"text": 3}', "line 1: field 'text' is int '3', but must be a string"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, says):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(SourceError, match=says):
        read(tmp_path / "a.jsonl")


def test_a_bad_line_of_a_later_stretch_has_its_number_in_the_file(tmp_path):
    lines = ['{"text": "x"}\n'] * 50 + ["nonsense\n"]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    (file,) = list_files([tmp_path / "a.jsonl"], PLAIN)
    with pytest.raises(SourceError, match="line 51 is not JSON"):
        list(documents(file, PLAIN, 600, None))


def test_broken_gzip_is_named(tmp_path):
    packed = gzip.compress(os.urandom(5000))
    for name, content in (
        ("cut.gz", packed[:3000]),
        ("no.gz", b"text"),
        ("bad.gz", packed[:100] + b"xx" + packed[102:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=f"{name} is not a whole gzip file"):
            read(tmp_path / name)


def test_wrong_sources_are_named(tmp_path):
    (tmp_path / "books.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_text("x")
    for source, says in (
        ("book.txt", r"no file or folder '.*book\.txt' \(did you mean 'books\.txt'\?\).*stdlib"),
        ("*.md", "no file matches"),
        ("empty", "holds no files"),
        ("x.parquet", "is a Parquet file; unpack it or write it as text or JSON lines"),
    ):
        with pytest.raises(SourceError, match=says):
            list_files([str(tmp_path / source)], PLAIN)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is neither a file nor a folder; write what it gives to a file first"):
        list_files([str(tmp_path / "pipe")], PLAIN)
    with pytest.raises(SourceError, match="no source given"):
        list_files([], PLAIN)
    with pytest.raises(
        ConfigError, match=r"PrepareConfig.format is 'csv', but must be one of 'auto', 'json', 'jsonl', 'text'"
    ):
        PrepareConfig(format="csv")
    with pytest.raises(ConfigError, match=r"PrepareConfig.separator is empty"):
        PrepareConfig(separator="")


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "loop.txt"
    path.symlink_to(path)
    with pytest.raises(SourceError, match=r"loop\.txt"):
        read(path)
    (tmp_path / "gone.txt").write_text("x")
    files = list_files([tmp_path / "gone.txt"], PLAIN)
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(SourceError, match=r"cannot read .*gone\.txt: No such file"):
        list(documents(files[0], PLAIN))
