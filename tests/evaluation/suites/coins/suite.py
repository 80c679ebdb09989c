"""The least that an evaluation needs: how often a seeded coin shows its head."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.suite import Record, Records, Suite, option
from xlstm_jax.machine.progress import Progress
from xlstm_jax.report.picture import new_picture, save_picture


@dataclass
class CoinOptions:
    tosses: int = option("N", "tosses of each coin", read=int)
    coins: int = option("N", "coins to toss (default 2)", read=int, default=2)

    def __post_init__(self) -> None:
        if self.tosses < 1:
            raise ConfigError(f"--tosses is {self.tosses}, but must be a whole number >= 1")


def run(options: CoinOptions, progress: Progress, before: Record) -> Records:
    heads: list[int] = []
    for coin in range(options.coins):
        with progress.bar(f"coin {coin}", options.tosses) as bar:
            toss = random.Random(coin).choice
            heads.append(sum(toss((0, 1)) for _ in range(options.tosses)))
            bar.to(options.tosses, f"{heads[-1]} heads")
        yield {"tosses": options.tosses, "heads": list(heads)}


def table(record: Record) -> tuple[Table, str]:
    found = Table("coin", "heads")
    for coin, heads in enumerate(record["heads"]):
        found.add_row(str(coin), str(heads))
    return found, f"heads: of {record['tosses']} tosses."


def picture(record: Record, path: Path) -> None:
    figure, axes = new_picture()
    axes.plot(record["heads"], label="heads")
    save_picture(figure, axes, path)


SUITE = Suite("coins", "toss coins", CoinOptions, run, table, picture, folder="coins-{tosses}")
