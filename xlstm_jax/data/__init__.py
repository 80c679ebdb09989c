"""Text -> tokenizer -> token store (`data.prepare`) -> batches (`data.store`).

The public names of the three rooms and the errors are offered here; nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlstm_jax.data.errors import *  # noqa: F403
    from xlstm_jax.data.prepare.config import PrepareConfig as PrepareConfig
    from xlstm_jax.data.store import *  # noqa: F403
    from xlstm_jax.data.tokenizers import *  # noqa: F403


_ROOMS = ("errors", "tokenizers", "store", "prepare")


def __getattr__(name: str) -> Any:
    for room in _ROOMS if name not in _ROOMS else ():
        module = importlib.import_module(f"xlstm_jax.data.{room}")
        if name in getattr(module, "__all__", vars(module)):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
