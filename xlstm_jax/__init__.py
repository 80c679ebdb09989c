"""Train, evaluate, serve and exchange xLSTM language models in JAX.

    >>> import xlstm_jax
    >>> run = xlstm_jax.load("runs/quickstart")
    >>> run.generate("def ")

Importing this package loads nothing heavy: JAX comes with the first thing that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlstm_jax.inference.run import Run

__all__ = ["__version__", "load"]


def load(path: str | Path, step: int | None = None) -> Run:
    """The trained model of a run folder, ready to generate; also while the run trains.

    Args:
        path: the run's folder.
        step: of the checkpoint to read; the newest good one if None.

    Raises:
        RunError: if there is no such run, or no checkpoint in it that can be used.
    """
    from xlstm_jax.inference.run import load

    return load(path, step)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("xlstm-jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
