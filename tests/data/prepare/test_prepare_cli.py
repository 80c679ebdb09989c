"""`xlstm data` as it is called: what it prints, how it ends."""

import json
import subprocess
import sys

import pytest

from xlstm_jax.cli import main
from xlstm_jax.data.store import open_store


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"text number {number}, " * (number + 1))
    return folder


def test_prepare_then_inspect(texts, tmp_path, capsys):
    out = str(tmp_path / "store")
    assert main(["data", "prepare", str(texts), "--out", out, "--quiet", "--validation-fraction", "0.2"]) == 0
    assert "validation" in capsys.readouterr().out
    assert main(["data", "inspect", out, "--documents", "2", "--verify"]) == 0
    shown = capsys.readouterr().out
    store = open_store(out)
    train = store.split("train")
    assert f"{train.num_tokens:,}" in shown
    assert train.document_bytes(0).decode() in shown
    assert train.document_bytes(1).decode() in shown
    assert "█" in shown
    assert "SHA-256" in shown


def test_inspect_for_machines(texts, tmp_path, capsys):
    out = str(tmp_path / "store")
    main(["data", "prepare", str(texts), "--out", out, "--quiet", "--tokenizer", "bpe", "--vocab-size", "270"])
    capsys.readouterr()
    assert main(["data", "inspect", out, "--json", "--split", "validation", "--documents", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    store = open_store(out)
    split = store.split("validation")
    assert shown["fingerprint"] == store.fingerprint
    assert shown["tokenizer"]["vocab_size"] == 270
    assert list(shown["splits"]) == ["validation"]
    assert shown["splits"]["validation"]["raw_bytes"] == split.raw_bytes
    assert shown["documents"] == [split.document_bytes(0).decode()]


def test_of_one_file_the_end_is_held_out_and_separators_cut_it(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("one\n--\ntwo\n--\nthree")
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "s"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["data", "inspect", str(tmp_path / "s"), "--json", "--split", "validation", "--documents", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == ["e"]
    out = tmp_path / "t"
    assert main(["data", "prepare", str(path), "--out", str(out), "--quiet", "--separator", r"\n--\n"]) == 0
    store = open_store(out)
    found = {s.document_bytes(i) for s in map(store.split, ("train", "validation")) for i in range(s.num_documents)}
    assert found == {b"one", b"two", b"three"}


def test_errors_are_one_sentence_and_a_code(texts, tmp_path):
    def run(*arguments):
        command = [
            sys.executable,
            "-c",
            "import sys; from xlstm_jax.cli import main; sys.exit(main())",
            "data",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    for arguments, code, says in (
        (["inspect", str(tmp_path / "nothing")], 1, "there is no token store"),
        (["prepare", str(tmp_path / "nothing"), "--out", str(tmp_path / "s")], 1, "there is no file or folder"),
        (
            ["prepare", str(texts), "--out", str(tmp_path / "s"), "--validation-fraction", "2"],
            2,
            "must be a number >= 0 and < 1",
        ),
        (["prepare", str(texts)], 2, "--out"),
    ):
        ended = run(*arguments)
        assert ended.returncode == code
        assert says in ended.stderr
        assert "Traceback" not in ended.stderr
