"""How fast batches come: the loader against the plainest reading of random windows from the same file.

    python benchmarks/loader.py [--store STORE] [--out FILE.json]

Before anything is timed, one epoch is read and every target counted: a loader that misses or repeats one prints no
speed. Three readers run on one core in the same process, in turns, over the same shapes:

* `plain`: `seq_len + 1` tokens from random places of the memory-mapped file, stacked and cut into inputs and targets,
  as small training scripts do: no epochs, no borders, no mask;
* `loader`: the loader on the training split;
* `mixture`: the loader on a mixture of two splits, 3 : 1.

The figure is tokens a second (median of the rounds; the fastest and the slowest beside it). Without `--store` random
tokens are read, by default 2**26 of them, 128 MiB.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.data.store import Loader, Mixture, Split, TokenArray, open_store
from xlstm_jax.machine.environment import present_environment

EOD = 0
SHAPES = ((8, 256), (32, 512), (64, 2048), (256, 1024))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="a token store to read instead of random tokens")
    parser.add_argument("--tokens", type=int, default=1 << 26, help="random tokens to make")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each reader in each round")
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        split = (
            open_store(arguments.store).split("train") if arguments.store else random_split(folder, arguments.tokens)
        )
        if not reads_every_target_once():
            print("the loader does not read every target once: no speed is printed", file=sys.stderr)
            return 1
        results = [measure(split, *shape, arguments.rounds, arguments.seconds) for shape in SHAPES]
    command = shlex.join(["python", *sys.argv])
    record = {"command": command, "environment": present_environment(), "tokens": split.num_tokens, "results": results}
    print(f"{'batch':>6}{'seq':>6}  {'reader':8}{'M tokens/s':>12}{'slowest':>10}{'fastest':>10}{'x plain':>9}")
    for result in results:
        for name, figure in result["readers"].items():
            rates = (figure[key] / 1e6 for key in ("median", "slowest", "fastest"))
            print(
                f"{result['batch']:>6}{result['seq']:>6}  {name:8}"
                + "".join(f"{rate:>{width}.1f}" for rate, width in zip(rates, (12, 10, 10), strict=True))
                + f"{figure['ratio_to_plain']:>9.2f}"
            )
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


def random_split(folder: str, tokens: int) -> Split:
    """Random tokens in a file, with a document end about every thousand."""
    content = np.random.default_rng(0).integers(1, 1 << 15, tokens, np.uint16)
    content[::1000] = EOD
    content[-1] = EOD
    path = Path(folder) / "tokens.bin"
    content.tofile(path)
    offsets = np.flatnonzero(content == EOD).astype(np.uint64)
    mapped = np.memmap(path, np.uint16, "r")
    return Split("random", TokenArray([mapped]), offsets, np.diff(offsets) - np.uint64(1), eod_id=EOD)


def reads_every_target_once() -> bool:
    """The check before the timing: an epoch of numbered tokens, read at a length that does not divide them."""
    numbers = np.arange(1, 5000)
    split = Split.from_documents(np.split(numbers, [10, 700, 701, 4000]), eod_id=EOD)
    loader = Loader(split, seq_len=37, batch_size=13)
    batches = [loader(step) for step in range(-(-loader.rows_per_epoch // 13))]
    targets, masks = (
        np.concatenate([getattr(batch, name) for batch in batches])[: loader.rows_per_epoch]
        for name in ("targets", "loss_mask")
    )
    return np.array_equal(np.sort(targets[masks]), np.sort(np.asarray(split.tokens)[1:]))


def measure(split: Split, batch: int, seq: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Tokens a second of the three readers at one shape."""
    mixture = Mixture([split, split], [3, 1])
    readers: dict[str, Callable[[int], Any]] = {
        "plain": plain_reader(split, batch, seq),
        "loader": Loader(split, seq_len=seq, batch_size=batch),
        "mixture": Loader(mixture, seq_len=seq, batch_size=batch),
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    step = 0
    for round_number in range(rounds + 1):
        for name, read in readers.items():
            done, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                read(step)
                step, done = step + 1, done + 1
            if round_number:  # the first warms the file cache
                rates[name].append(done * batch * seq / elapsed)
    plain = statistics.median(rates["plain"])
    figures = {
        name: {
            "median": statistics.median(values),
            "slowest": min(values),
            "fastest": max(values),
            "ratio_to_plain": statistics.median(values) / plain,
        }
        for name, values in rates.items()
    }
    return {"batch": batch, "seq": seq, "unit": "tokens/s", "readers": figures}


def plain_reader(split: Split, batch: int, seq: int) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    tokens, rng = split.tokens.read(0, split.num_tokens), np.random.default_rng(0)

    def read(_: int) -> tuple[np.ndarray, np.ndarray]:
        starts = rng.integers(0, len(tokens) - seq, batch)
        inputs = np.stack([tokens[s : s + seq].astype(np.int32) for s in starts])
        targets = np.stack([tokens[s + 1 : s + seq + 1].astype(np.int32) for s in starts])
        return inputs, targets

    return read


if __name__ == "__main__":
    sys.exit(main())
