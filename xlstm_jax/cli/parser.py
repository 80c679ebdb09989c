"""The parser of command lines whose complaint is one sentence."""

from __future__ import annotations

import argparse
from typing import NoReturn

from xlstm_jax.config import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` for a wrong call, where `argparse` prints its usage and leaves."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (`{self.prog} --help` tells more)")
