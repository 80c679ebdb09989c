"""What the tests of training share: compiled programs and a prepared store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from training_helpers import tiny_experiment, write_corpus

from xlstm_jax.data.prepare import prepare


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Many tests train the same tiny model: its programs are compiled once and read from a folder afterwards."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small text files."""
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their token store, of the request that `tiny_experiment(corpus)` makes."""
    data = tiny_experiment(corpus).data
    path = tmp_path_factory.mktemp("stores") / "text"
    prepare([str(corpus)], path, tokenizer="bytes", validation_fraction=data.validation_fraction, progress=False)
    return path
