"""`xlstm data`: turn text into a token store, or look into one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xlstm_jax.cli.parser import Parser
from xlstm_jax.machine.progress import clock

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt64

    from xlstm_jax.data.store import Split, TokenStore

HISTOGRAM_WIDTH = 40
QUANTILES = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "max": 1.0}
PREPARE_EXAMPLES = """\
examples:
  xlstm data prepare stdlib --out stores/stdlib --tokenizer bpe --vocab-size 4096
  xlstm data prepare books/ 'more/**/*.txt.gz' --out stores/books
  xlstm data prepare train.txt --validation valid.txt --out stores/mine
  xlstm data prepare tinyshakespeare.txt --validation-tail 0.1 --tokenizer bytes --out stores/shakespeare
  xlstm data prepare wiki.jsonl.gz --text-field body --tokenizer path/to/tokenizer.json --out stores/wiki

A source is a file, a folder, a glob pattern, or the word `stdlib`: the sources of this Python's standard library, text
that every machine has. Interrupted? Run the same command again: what is finished is not done twice.
"""


def main(argv: Sequence[str]) -> int:
    """Run `xlstm data ARGV`; errors in what the user gave are raised as `DataError`."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="xlstm data", description="Turn text into a token store, or look into one.")
    commands = parser.add_subparsers(required=True, metavar="prepare|inspect")
    prepare = commands.add_parser(
        "prepare",
        help="make a token store",
        description="Make a token store.",
        epilog=f"{_formats()}\n\n{PREPARE_EXAMPLES}",
    )
    prepare.set_defaults(run=_prepare)
    add = prepare.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="file, folder, glob, or the word stdlib")
    add("--out", required=True, metavar="STORE", help="folder of the store")
    _add_fields(prepare)
    add("--workers", type=int, metavar="N", help="processes (default: one a core)")
    add("--quiet", action="store_true", help="no progress bar")

    inspect = commands.add_parser("inspect", help="look into a token store", description="Look into a token store.")
    inspect.set_defaults(run=_inspect)
    add = inspect.add_argument
    add("store", metavar="STORE", help="folder of the store")
    add("--split", choices=["train", "validation"], help="only this split (default: both; documents of train)")
    add("--documents", type=int, default=0, metavar="N", help="print the first N documents, decoded")
    add("--verify", action="store_true", help="read all files and compare their SHA-256 with the index")
    add("--json", action="store_true", help="print JSON")
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `PrepareConfig`, with its text; only those that are given are set."""
    from xlstm_jax.cli.field_help import field_texts
    from xlstm_jax.config import type_hints
    from xlstm_jax.data.prepare.config import AUTO, PrepareConfig
    from xlstm_jax.data.prepare.formats import formats

    hints, texts = type_hints(PrepareConfig), field_texts(PrepareConfig)
    for field in dataclasses.fields(PrepareConfig):
        hint = hints[field.name]
        kind = next((option for option in typing.get_args(hint) if option is not Ellipsis), hint)
        options: dict[str, Any] = {"type": kind, "metavar": field.name.rpartition("_")[2].upper()}
        if kind is bool:
            options = {"action": "store_true"}
        elif field.name == "validation":
            options = {"action": "extend", "nargs": "+", "metavar": "SOURCE"}
        elif typing.get_origin(kind) is tuple:
            options = {"action": "append", "metavar": "PATTERN"}
        elif field.name == "format":
            options["choices"], options["metavar"] = [AUTO, *formats()], None
        default = "" if field.default in (None, False, ()) else f" (default {field.default})"
        text = f"{texts[field.name].replace('`', '')}{default}".replace("%", "%%")
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **options)


def _formats() -> str:
    """The formats of text, a line each."""
    from xlstm_jax.data.prepare.formats import formats

    lines = ["formats, all of them also gzipped:"]
    for one in formats().values():
        endings = f" ({', '.join((*one.endings, *one.shared_endings))})" if one.endings else ""
        options = "".join(f"; --{option.replace('_', '-')}" for option in one.options)
        lines.append(f"  {one.name:8} {one.summary}{endings}{options}")
    return "\n".join(lines)


def _prepare(arguments: argparse.Namespace) -> int:
    from xlstm_jax.data.prepare import PrepareConfig, prepare

    fields = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(PrepareConfig) if f.name in arguments}
    store = prepare(arguments.sources, arguments.out, workers=arguments.workers, progress=not arguments.quiet, **fields)
    _print_summary(store, None)
    if not store.split("validation").num_documents and fields.get("validation_fraction") != 0:
        print(
            "note: the validation split is empty, because the only document is too short to be cut",
            file=sys.stderr,
        )
    asked = fields.get("vocab_size", 0)
    if store.vocab_size < asked:
        print(f"note: the text gives a vocabulary of {store.vocab_size} only, {asked} were asked for", file=sys.stderr)
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from xlstm_jax.cli.names import find_store
    from xlstm_jax.data.store import open_store

    store = open_store(find_store(arguments.store))
    if arguments.verify:
        with clock(f"verifying {store}", terminal_only=True):
            store.verify()
    shown = store.split(arguments.split or "train")
    count = min(max(0, arguments.documents), shown.num_documents)
    if arguments.json:
        print(json.dumps(_as_json(store, arguments.split, shown, count), indent=1, ensure_ascii=False))
        return 0
    _print_summary(store, arguments.split)
    if arguments.verify:
        print("every file is as it was written (SHA-256)")
    for number in range(count):
        print(f"\n--- document {number} of {shown.num_documents}, {int(shown.sizes[number])} bytes ---")
        sys.stdout.flush()
        sys.stdout.buffer.write(shown.document_bytes(number))
        sys.stdout.flush()
    return 0


# -- what is shown -----------------------------------------------------------------------------------------------------


def _names(split: str | None) -> list[str]:
    return [split] if split else ["train", "validation"]


def _facts(split: Split) -> dict[str, Any]:
    """Counts of a split and the quantiles of its documents' lengths in tokens, EODs not counted."""
    import numpy as np

    text_tokens = split.num_tokens - split.num_documents - 1 if split.num_documents else 0
    facts: dict[str, Any] = {
        "documents": split.num_documents,
        "tokens": split.num_tokens,
        "raw_bytes": split.raw_bytes,
        "bytes_per_token": split.raw_bytes / text_tokens if text_tokens else None,
    }
    if split.num_documents:
        values = np.quantile(_lengths(split), list(QUANTILES.values()), method="nearest")
        facts["document_tokens"] = dict(zip(QUANTILES, values.astype(int).tolist(), strict=True))
    return facts


def _lengths(split: Split) -> UInt64[np.ndarray, " documents"]:
    import numpy as np

    return np.diff(split.offsets) - np.uint64(1)


def _as_json(store: TokenStore, split: str | None, shown: Split, count: int) -> dict[str, Any]:
    documents = [shown.document_bytes(number).decode("utf-8", "replace") for number in range(count)]
    return {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "tokenizer": {
            "kind": store.tokenizer.kind,
            "vocab_size": store.vocab_size,
            "eod_id": store.tokenizer.eod_id,
            "fingerprint": store.tokenizer.fingerprint,
        },
        "splits": {name: _facts(store.split(name)) for name in _names(split)},
        **({"documents": documents} if count else {}),
    }


def _print_summary(store: TokenStore, only: str | None) -> None:
    tokenizer, names = store.tokenizer, _names(only)
    print(f"store        {store.path}")
    print(f"fingerprint  {store.fingerprint[:16]}")
    print(f"tokenizer    {tokenizer.kind}, {tokenizer.vocab_size} ids, EOD {tokenizer.eod_text} = {tokenizer.eod_id}")
    facts = [_facts(store.split(name)) for name in names]
    rows = {
        "": names,
        "documents": [f"{f['documents']:,}" for f in facts],
        "tokens": [f"{f['tokens']:,}" for f in facts],
        "bytes": [f"{f['raw_bytes']:,}" for f in facts],
        "bytes a token": [f"{f['bytes_per_token']:.3f}" if f["bytes_per_token"] else "-" for f in facts],
    }
    for mark in QUANTILES:
        lengths = (f.get("document_tokens", {}).get(mark) for f in facts)
        rows[f"tokens a document, {mark}"] = ["-" if length is None else f"{length:,}" for length in lengths]
    print()
    for title, cells in rows.items():
        print(f"{title:26}" + "".join(f"{cell:>16}" for cell in cells))
    for name in names:
        if store.split(name).num_documents > 1:
            print(f"\ndocuments by tokens, {name}")
            print("\n".join(_histogram(store.split(name))))


def _histogram(split: Split) -> list[str]:
    """Lines of a histogram of document lengths; each bar counts the lengths up to twice those of the bar before."""
    import numpy as np

    lengths = np.maximum(_lengths(split).astype(np.int64), 1)
    powers = np.frexp(lengths.astype(np.float64))[1] - 1
    counts = np.bincount(powers)
    first, peak = int(powers.min()), int(counts.max())
    return [
        f"{1 << power:>13,} - {(2 << power) - 1:>13,} {counts[power]:>10,} "
        + "█" * max(int(counts[power] > 0), round(HISTOGRAM_WIDTH * counts[power] / peak))
        for power in range(first, len(counts))
    ]
