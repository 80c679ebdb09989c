"""What can stop a training run; every message is one sentence for the person at the terminal."""

from __future__ import annotations


class TrainingError(Exception):
    """Base of the errors that end training."""


class NotFiniteError(TrainingError, ArithmeticError):
    """Loss or gradient is NaN or infinite."""


class WrongStoreError(TrainingError, ValueError):
    """The token store is not the one, or not of the tokenizer, that the run was trained on."""
