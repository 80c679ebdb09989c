"""One tiny run for all tests of inference; its programs are compiled once."""

import sys
from pathlib import Path

import pytest

import xlstm_jax
from xlstm_jax.inference.run import Run

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inference_helpers import write_run

    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def run(run_path: Path) -> Run:
    return xlstm_jax.load(run_path)
