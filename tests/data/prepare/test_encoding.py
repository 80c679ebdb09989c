"""What claims to be text and is not: left out of a folder with a count, refused by its name, never noise unsaid."""

import gzip
import os

import pytest

from xlstm_jax.cli import main
from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare import PrepareConfig, prepare
from xlstm_jax.data.prepare.notes import Notes
from xlstm_jax.data.prepare.sources import documents, list_files
from xlstm_jax.data.store import open_store

TEXT = "Größe für alle, naïve Ideen\nund noch eine Zeile\n" * 3
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def read(*sources, **fields):
    config, notes = PrepareConfig(**fields), Notes()
    return [d for f in list_files(sources, config) for d in documents(f, config, notes=notes)], notes.sentences()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (PNG, "is not text"),
        (b"text with\0one zero", "is not text"),
        (os.urandom(4000).replace(b"\0", b"\1"), "is not text"),
    ]
    + [(TEXT.encode(encoding), "in UTF-(16|32)") for encoding in WIDE],
    ids=["png", "zero", "noise", *WIDE],
)
def test_what_is_no_text_is_left_out_of_a_folder_and_refused_by_its_name(content, says, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_bytes(content)
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(content))
    found, (said,) = read(tmp_path)
    assert found == [b"text"]
    assert said.startswith("2 files are ")
    assert said.endswith(f"left out (the first {tmp_path}/b.txt)")
    assert read(f"{tmp_path}/*.txt*")[0] == [b"text"]
    for name in ("b.txt", "c.txt.gz"):
        with pytest.raises(SourceError, match=rf"{name} is .*{says.removeprefix('is ')}.*({'--format text|iconv'})"):
            read(tmp_path / name)
    # Who says that it is text is believed.
    assert read(tmp_path / "b.txt", format="text") == ([content], [])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1251", "shift-jis", "gbk"])
def test_text_in_another_encoding_is_taken_byte_for_byte_and_said(encoding, tmp_path):
    content = {"latin-1": TEXT, "cp1251": "Привет, мир\n"}.get(encoding, "日本語の文字\n").encode(encoding)
    (tmp_path / "a.txt").write_bytes(content)
    said = f"1 file is not in UTF-8: taken byte for byte (namely {tmp_path}/a.txt)"
    assert read(tmp_path / "a.txt") == ([content], [said])


def test_texts_of_many_kinds_are_texts(tmp_path):
    texts = [TEXT, "日本語のテキスト", "\x1b[31mred\x1b[0m\t\f\v\r\n", "a\x01b\x02c" * 20, "👩‍👩‍👧", "x", "\u0100" * 50]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, newline="")
    assert read(tmp_path) == ([text.encode() for text in texts], [])


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbf two")
    assert read(tmp_path) == ([b"one \xef\xbb\xbf two"], [])


@pytest.mark.parametrize("encoding", WIDE)
def test_json_lines_in_another_encoding_are_named_by_it(encoding, tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "größer"}\n{"text": "x"}\n'.encode(encoding))
    with pytest.raises(SourceError, match=r"a\.jsonl is text in UTF-(16|32).*must be in UTF-8; `iconv -f UTF-"):
        read(tmp_path, skip_invalid=True)


def test_notes_are_the_same_from_processes_and_after_an_interruption(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"text {number} " * 40)
        (folder / f"{number}.png").write_bytes(PNG)
    (folder / "z.jsonl").write_text("nonsense\n")
    expected = f"8 files are not text: left out (the first {folder}/0.png)"
    for workers in (1, 2):
        said: list[str] = []
        out = tmp_path / f"out{workers}"
        with pytest.raises(SourceError, match="line 1 is not JSON"):
            prepare(folder, out, workers=workers, task_bytes=700, progress=False, say=said.append)
        (folder / "z.jsonl").write_text('{"text": null}\n{"text": "x"}\n')
        with pytest.raises(SourceError, match=r"line 1: field 'text' is null.*--skip-invalid"):
            prepare(folder, out, workers=workers, task_bytes=700, progress=False, say=said.append)
        (folder / "z.jsonl").write_text('{"text": "x"}\n')
        prepare(folder, out, workers=workers, task_bytes=700, progress=False, say=said.append)
        assert said == [f"note: {expected}"]
        (folder / "z.jsonl").write_text("nonsense\n")


def test_the_command_says_what_it_left_out_also_when_quiet(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one\ntwo")
    (tmp_path / "in" / "b.png").write_bytes(PNG)
    assert main(["data", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "s"), "--quiet"]) == 0
    assert capsys.readouterr().err == f"note: 1 file is not text: left out (namely {tmp_path}/in/b.png)\n"
    assert open_store(tmp_path / "s").split("train").document_bytes(0) == b"one\ntw"
    (tmp_path / "in" / "a.txt").unlink()
    assert main(["data", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "t"), "--quiet"]) == 1
    assert "the sources hold no text: 1 file is not text" in capsys.readouterr().err
