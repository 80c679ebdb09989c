"""What the tests of training share: a prepared store."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import tiny_experiment, write_corpus

from xlstm_jax.data.prepare import prepare


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
