"""Preparing a store: what is in it, what decides it, and how it goes on."""

import errno
import gzip
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xlstm_jax.data.errors import PrepareError, SourceError, TokenizerError
from xlstm_jax.data.prepare import pipeline, prepare
from xlstm_jax.data.prepare.order import split_threshold
from xlstm_jax.data.store import open_store
from xlstm_jax.files import DiskFullError, WriteError

QUIET = {"progress": False, "workers": 1}


def corpus(folder: Path, count=60, seed=0) -> list[bytes]:
    """Files of words; some hold bytes that are not UTF-8, two are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    words = ["for", "in", "return", "größe", "self", "\n    ", "日本", "0x1f"]
    made = []
    for number in range(count):
        content = " ".join(rng.choices(words, k=rng.randrange(1, 60))).encode()
        content = content + b"\xff\xc3" if number % 10 == 3 else content
        made.append(made[0] if number == count - 1 else content)
        (folder / f"{number}.txt").write_bytes(made[-1])
    return made


def all_documents(store):
    return [s.document_bytes(i) for s in map(store.split, ("train", "validation")) for i in range(s.num_documents)]


def contents(path: Path):
    return {f.name: f.read_bytes() for f in path.iterdir() if f.suffix in (".bin", ".npy")}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_document_comes_back_byte_for_byte(tmp_path, tokenizer):
    made = corpus(tmp_path / "in")
    vocab_size = 300 if tokenizer == "bpe" else None
    store = prepare(tmp_path / "in", tmp_path / "out", tokenizer=tokenizer, vocab_size=vocab_size, **QUIET)
    assert Counter(all_documents(store)) == Counter(made)
    for split in (store.split("train"), store.split("validation")):
        tokens = np.asarray(split.tokens)
        assert (tokens == split.eod_id).sum() == split.num_documents + 1
        assert np.array_equal(np.flatnonzero(tokens == split.eod_id), split.offsets)
        assert split.num_tokens == len(tokens)
        assert split.raw_bytes == sum(len(split.document_bytes(i)) for i in range(split.num_documents))
        for i in range(split.num_documents):
            assert split.document(i)[[0, -1]].tolist() == [split.eod_id] * 2
    assert store.vocab_size == store.tokenizer.vocab_size
    assert not (tmp_path / "out" / "work").exists()
    store.verify()


def test_the_store_depends_on_documents_and_settings_alone(tmp_path):
    made = corpus(tmp_path / "in")
    settings = {"tokenizer": "bpe", "vocab_size": 300, "shard_tokens": 500, "progress": False}
    first = prepare(tmp_path / "in", tmp_path / "one", workers=1, **settings)
    # Other names, other order, JSON lines and gzip, other pieces, several processes.
    texts = [d for d in made if b"\xff" not in d]
    lines = "".join(json.dumps({"text": d.decode()}) + "\n" for d in texts[:20])
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "y.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": d.decode()}) + "\n" for d in texts[20:]).encode())
    )
    (tmp_path / "z").mkdir()
    for number, content in enumerate(d for d in made if b"\xff" in d):
        (tmp_path / "z" / f"{number}.raw").write_bytes(content)
    sources = [tmp_path / "z", tmp_path / "y.jsonl.gz", tmp_path / "x.jsonl"]
    second = prepare(sources, tmp_path / "two", workers=2, task_bytes=700, **settings)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("train-*.bin"))) > 3
    assert first.fingerprint == second.fingerprint
    # And a finished store is opened for equal documents from elsewhere.
    assert prepare(sources, tmp_path / "one", workers=1, **settings).fingerprint == first.fingerprint


def test_a_seed_changes_the_order_but_not_the_split(tmp_path):
    corpus(tmp_path / "in")
    one, other = (
        prepare(tmp_path / "in", tmp_path / f"out{seed}", seed=seed, validation_fraction=0.3, **QUIET)
        for seed in (0, 1)
    )
    assert one.fingerprint != other.fingerprint
    for name in ("train", "validation"):
        read = [[s.split(name).document_bytes(i) for i in range(s.split(name).num_documents)] for s in (one, other)]
        assert read[0] != read[1]
        assert sorted(read[0]) == sorted(read[1])


def test_equal_documents_are_on_the_same_side(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / "in" / f"{number}.txt").write_text(f"text {number % 20}")
    store = prepare(tmp_path / "in", tmp_path / "out", validation_fraction=0.3, **QUIET)
    train, validation = (
        {split.document_bytes(i) for i in range(split.num_documents)}
        for split in (store.split("train"), store.split("validation"))
    )
    assert len(train) + len(validation) == 20
    assert not train & validation


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 0.999999])
def test_neither_split_is_empty_with_two_different_documents(tmp_path, fraction):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    store = prepare(f"{tmp_path}/*.txt", tmp_path / "out", validation_fraction=fraction, **QUIET)
    assert [store.split(name).num_documents for name in ("train", "validation")] == [1, 1]


def test_one_document_goes_to_training_if_nothing_shall_be_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    store = prepare(tmp_path / "a.txt", tmp_path / "out", validation_fraction=0, **QUIET)
    assert np.asarray(store.split("train").tokens).tolist() == [256, 97, 98, 99, 256]
    empty = store.split("validation")
    assert (empty.num_documents, empty.num_tokens, empty.raw_bytes) == (0, 0, 0)


def test_the_threshold_takes_about_the_fraction():
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64, endpoint=False)
    assert (hashes < split_threshold(hashes, 0.1)).mean() == pytest.approx(0.1, abs=0.01)
    assert split_threshold(hashes, 0) == 0


def test_a_vocabulary_over_65536_is_stored_wide(tmp_path):
    from tokenizers import Tokenizer

    from xlstm_jax.data.tokenizers import train_byte_level

    trained = train_byte_level([b"some text"], 260)
    trained.save(tmp_path / "t")
    library = Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    library.add_tokens([f"word{n}!" for n in range(70_000)])
    library.save(str(tmp_path / "big.json"))
    (tmp_path / "a.txt").write_text("word69999! some")
    settings = {"tokenizer": tmp_path / "big.json", "validation_fraction": 0}
    store = prepare(tmp_path / "a.txt", tmp_path / "out", **settings, **QUIET)
    assert store.split("train").tokens.dtype == np.uint32
    assert store.split("train").document(0).max() > 65_536
    assert all_documents(store) == [b"word69999! some"]


def test_the_tokenizer_is_trained_on_the_training_split(tmp_path):
    from xlstm_jax.data.tokenizers import train_byte_level

    corpus(tmp_path / "in")
    settings = {"tokenizer": "bpe", "vocab_size": 300, "validation_fraction": 0.4}
    store = prepare(tmp_path / "in", tmp_path / "out", **settings, **QUIET)
    train = store.split("train")
    alone = train_byte_level((train.document_bytes(i) for i in range(train.num_documents)), 300)
    assert alone.fingerprint == store.tokenizer.fingerprint
    part = prepare(tmp_path / "in", tmp_path / "part", training_bytes=2000, **settings, **QUIET)
    assert part.tokenizer.fingerprint != store.tokenizer.fingerprint


def test_a_finished_store_is_opened_and_another_request_refused(tmp_path):
    corpus(tmp_path / "in")
    store = prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    os.utime(tmp_path / "in" / "0.txt")
    assert prepare(tmp_path / "in", tmp_path / "out", **QUIET).fingerprint == store.fingerprint
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()} == before
    with pytest.raises(PrepareError, match=r"another request.*seed \(asked for 1, there 0\)"):
        prepare(tmp_path / "in", tmp_path / "out", seed=1, **QUIET)
    with pytest.raises(PrepareError, match=r"tokenizer \(asked for 'bpe', there 'bytes'\)"):
        prepare(tmp_path / "in", tmp_path / "out", tokenizer="bpe", **QUIET)
    (tmp_path / "in" / "new.txt").write_text("new")
    with pytest.raises(PrepareError, match="differs in documents"):
        prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    assert open_store(tmp_path / "out").fingerprint == store.fingerprint


def test_wrong_requests_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.doc").write_text("x")
    source, out = tmp_path / "a.txt", tmp_path / "out"
    for sources, where, change, error, says in (
        (
            source,
            out,
            {"validation_fraction": 1.0},
            PrepareError,
            "validation_fraction is 1.0, but must be a number >= 0 and < 1",
        ),
        (source, out, {"workers": 0}, PrepareError, "workers is 0"),
        (source, out, {"seed": 0.5}, PrepareError, "seed is 0.5"),
        (source, out, {"shard_tokens": 0}, PrepareError, "shard_tokens is 0"),
        (source, out, {"tokenizer": "bpe", "vocab_size": 256}, PrepareError, "vocab_size is 256"),
        (source, out, {"vocab_size": 300}, PrepareError, "the tokenizer 'bytes' has 257 ids"),
        (source, out, {"tokenizer": "bpee"}, TokenizerError, "give 'bytes', 'bpe' or the path"),
        (tmp_path / "empty.txt", out, {}, SourceError, "hold no text: 1 files, all empty"),
        (source, tmp_path / "full", {}, PrepareError, r"not empty \(it holds 'mine.doc'\)"),
        (source, source, {}, PrepareError, "is a file, but must be the folder"),
    ):
        with pytest.raises(error, match=says):
            prepare(sources, where, **(QUIET | change))


def test_a_second_process_is_told_to_wait(tmp_path):
    import fcntl

    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PrepareError, match="another process is preparing"):
            prepare(tmp_path / "a.txt", tmp_path / "out", **QUIET)


def test_an_error_in_a_worker_process_is_the_callers(tmp_path):
    corpus(tmp_path / "in")
    (tmp_path / "in" / "bad.jsonl").write_text("nonsense\n" * 100)
    # Which of the bad lines is met first depends on which worker is.
    with pytest.raises(SourceError, match=r"bad\.jsonl, line \d+ is not JSON"):
        prepare(tmp_path / "in", tmp_path / "out", workers=2, task_bytes=500, progress=False)


def test_a_full_disk_is_one_sentence_and_the_next_try_goes_on(tmp_path, monkeypatch):
    corpus(tmp_path / "in")
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFullError, match=r"no space left on the disk while writing .*; free some"):
        prepare(tmp_path / "in", tmp_path / "out", task_bytes=1000, **QUIET)
    assert not list((tmp_path / "out" / "work").glob(".*.tmp"))
    monkeypatch.setattr(os, "fsync", real)
    store = prepare(tmp_path / "in", tmp_path / "out", task_bytes=1000, **QUIET)
    assert store.fingerprint == prepare(tmp_path / "in", tmp_path / "new", **QUIET).fingerprint


def test_space_is_asked_for_beforehand(tmp_path, monkeypatch):
    corpus(tmp_path / "in")
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"out/work needs .* kB, but the disk of .* has 10 bytes free; free some"):
        prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    assert not list((tmp_path / "out" / "work").glob("tokens-*"))


def test_a_file_that_changes_meanwhile_is_named(tmp_path, monkeypatch):
    from xlstm_jax.data.prepare.stages import Worker

    corpus(tmp_path / "in")
    real = Worker.encode

    def encode(self, task, tail):
        (tmp_path / "in" / "5.txt").write_text("something else")
        real(self, task, tail)

    monkeypatch.setattr(Worker, "encode", encode)
    with pytest.raises(SourceError, match=r"5\.txt changed while it was being read; run the same command again"):
        prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    monkeypatch.setattr(Worker, "encode", real)
    store = prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    assert store.fingerprint == prepare(tmp_path / "in", tmp_path / "new", **QUIET).fingerprint


def test_a_file_that_was_mended_is_read_anew(tmp_path):
    corpus(tmp_path / "in")
    bad = tmp_path / "in" / "bad.jsonl"
    bad.write_text('{"text": "one"}\nnonsense\n')
    with pytest.raises(SourceError, match=r"bad\.jsonl, line 2 is not JSON"):
        prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    bad.write_text('{"text": "one"}\n{"text": "two"}\n')
    store = prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    assert store.fingerprint == prepare(tmp_path / "in", tmp_path / "new", **QUIET).fingerprint


def test_a_preparation_that_was_refused_does_not_stand_in_the_way_of_another_but_one_at_work_does(
    tmp_path, monkeypatch
):
    corpus(tmp_path / "in")
    bad = tmp_path / "in" / "bad.jsonl"
    bad.write_text('{"text": null}\n')
    with pytest.raises(SourceError, match="--skip-invalid"):
        prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    said: list[str] = []
    store = prepare(tmp_path / "in", tmp_path / "out", skip_invalid=True, say=said.append, **QUIET)
    assert "1 record has no text" in said[1]
    with pytest.raises(SourceError):
        prepare(tmp_path / "in", tmp_path / "without", **QUIET)
    bad.unlink()
    assert prepare(tmp_path / "in", tmp_path / "without", **QUIET).fingerprint == store.fingerprint

    # What has been encoded may be hours of work.
    monkeypatch.setattr(pipeline, "_merge", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path / "in", tmp_path / "half", **QUIET)
    with pytest.raises(PrepareError, match="unfinished preparation of another request, which differs in sources"):
        prepare(tmp_path / "in" / "0.txt", tmp_path / "half", **QUIET)


def test_a_tokenizer_that_loses_bytes_of_these_very_texts_is_named(tmp_path, monkeypatch):
    from xlstm_jax.data.tokenizers import ByteTokenizer

    # Nothing that a new tokenizer is tried on has this word in it.
    real = ByteTokenizer.encode_array
    monkeypatch.setattr(ByteTokenizer, "encode_array", lambda self, text: real(self, text.replace(b"xyzzy", b"")))
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.txt").write_text("a text with xyzzy in it, somewhere")
    prepare(tmp_path / "a.txt", tmp_path / "a", **QUIET)
    says = r"document of .*b\.txt back as it was: at byte 12, '.*text with xyzzy in .*' returned as '.*with  in it"
    with pytest.raises(TokenizerError, match=says):
        prepare(tmp_path / "b.txt", tmp_path / "b", **QUIET)


@pytest.mark.parametrize("workers", [1, 2])
def test_file_names_need_not_be_utf8(workers, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        name = os.fsdecode(b"caf\xe9-%d.txt" % number)
        (folder / name).write_text(f"text {number} " * 50)
    store = prepare(folder, tmp_path / "out", workers=workers, task_bytes=300, progress=False)
    assert store.split("train").num_documents + store.split("validation").num_documents == 3


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    import resource

    corpus(tmp_path / "in")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"out/.* cannot be written: File too large"):
            prepare(tmp_path / "in", tmp_path / "out", **QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
