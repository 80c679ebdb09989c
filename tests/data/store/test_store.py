"""Stores that are missing, cut, damaged or of another version: each says so in one sentence."""

import json
import shutil

import pytest

from xlstm_jax.data.errors import (
    DamagedStoreError,
    MissingStoreError,
    StoreError,
    StoreVersionError,
    TruncatedStoreError,
)
from xlstm_jax.data.prepare import prepare
from xlstm_jax.data.store import Split, open_store
from xlstm_jax.data.store.store import index_checksum


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"document number {number}")
    prepare(f"{folder}/*.txt", folder / "store", tokenizer="bpe", vocab_size=270, progress=False, workers=1)
    return folder / "store"


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def test_a_moved_store_is_the_same_store(store, made):
    assert open_store(store).fingerprint == open_store(str(made)).fingerprint
    open_store(store).verify()


def test_a_missing_store_tells_how_to_make_it(tmp_path):
    with pytest.raises(MissingStoreError, match=r"there is no token store at .*xlstm data prepare"):
        open_store(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"not a token store: it has no index\.json"):
        open_store(tmp_path)


@pytest.mark.parametrize("name", ["train-00000.bin", "train.offsets.npy", "validation.sizes.npy"])
def test_a_cut_or_missing_file_is_named(store, name):
    content = (store / name).read_bytes()
    (store / name).write_bytes(content[:-2])
    with pytest.raises(TruncatedStoreError, match=rf"{name} has {len(content) - 2} bytes, but index\.json says"):
        open_store(store)
    (store / name).unlink()
    with pytest.raises(TruncatedStoreError, match=f"{name} is missing"):
        open_store(store)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format_version": 1}'])
def test_a_damaged_index_is_named(store, content):
    (store / "index.json").write_bytes(content)
    with pytest.raises(DamagedStoreError, match=r"index\.json is damaged"):
        open_store(store)


def test_a_changed_number_in_the_index_is_found(store):
    text = (store / "index.json").read_text("utf-8")
    index = json.loads(text)
    index["splits"]["train"]["raw_bytes"] += 1
    (store / "index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(DamagedStoreError, match="does not match its checksum"):
        open_store(store)


def test_another_version_is_named(store):
    index = json.loads((store / "index.json").read_text("utf-8"))
    (store / "index.json").write_text(json.dumps(index | {"format_version": 99}), "utf-8")
    with pytest.raises(StoreVersionError, match="format version 99, but this program reads 1"):
        open_store(store)


def test_counts_that_do_not_fit_the_files_are_found(store):
    index = json.loads((store / "index.json").read_text("utf-8"))
    del index["checksum"]
    index["splits"]["train"]["documents"] += 1
    (store / "index.json").write_text(json.dumps(index | {"checksum": index_checksum(index)}), "utf-8")
    with pytest.raises(DamagedStoreError, match="documents in train"):
        open_store(store)


def test_a_flipped_bit_is_found_by_verify(store):
    path = store / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    opened = open_store(store)
    with pytest.raises(DamagedStoreError, match=r"train-00000\.bin is damaged: its SHA-256"):
        opened.verify()


def test_a_damaged_header_is_named(store):
    path = store / "train.offsets.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DamagedStoreError, match=r"train\.offsets\.npy is damaged"):
        open_store(store)


def test_no_flipped_bit_of_a_header_or_of_the_index_gives_more_than_a_sentence(store):
    said = []
    for name in ("train.offsets.npy", "index.json", "tokenizer/tokenizer_info.json"):
        path = store / name
        content = path.read_bytes()
        for position in range(min(len(content), 128)):
            for bit in (1, 3, 7):
                path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
                try:
                    open_store(store)
                except StoreError as error:
                    said.append(str(error))
        path.write_bytes(content)
    assert len(said) > 300
    assert not [text for text in said if "\n" in text or len(text) > 600]


def test_a_tokenizer_that_is_damaged_or_another_is_named(store):
    (store / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(DamagedStoreError, match=r"tokenizer of store .* is damaged"):
        open_store(store)
    shutil.rmtree(store / "tokenizer")
    (store / "tokenizer").mkdir()
    from xlstm_jax.data.tokenizers import ByteTokenizer

    ByteTokenizer().save(store / "tokenizer")
    with pytest.raises(DamagedStoreError, match="not the one that made its tokens"):
        open_store(store)


def test_an_unknown_split_is_named(store):
    with pytest.raises(StoreError, match=r"no split 'valid' \(did you mean 'validation'\?\)"):
        open_store(store).split("valid")
    with pytest.raises(StoreError, match="has no tokenizer"):
        Split.from_documents([[1]], eod_id=0).document_bytes(0)
