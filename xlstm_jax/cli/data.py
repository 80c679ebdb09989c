"""`xlstm data`: turn text into a token store, or look into one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xlstm_jax.cli.parser import Parser

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt64

    from xlstm_jax.data.store.store import Split, TokenStore

HISTOGRAM_WIDTH = 40
QUANTILES = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "max": 1.0}
PREPARE_EXAMPLES = """\
examples:
  xlstm data prepare stdlib --out stores/stdlib --tokenizer bpe --vocab-size 4096
  xlstm data prepare books/ 'more/**/*.txt.gz' --out stores/books
  xlstm data prepare wiki.jsonl.gz --text-field body --tokenizer path/to/tokenizer.json --out stores/wiki

A source is a text file, a JSON-lines file (.jsonl, .ndjson), both also gzipped, a folder, a glob pattern, or the word
`stdlib`: the sources of this Python's standard library, text that every machine has. Interrupted? Run the same command
again: what is finished is not done twice.
"""


def main(argv: Sequence[str]) -> int:
    """Run `xlstm data ARGV`; errors in what the user gave are raised as `DataError`."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="xlstm data", description=__doc__.split(": ", 1)[1])  # type: ignore[union-attr]
    commands = parser.add_subparsers(required=True, metavar="prepare|inspect")
    raw = argparse.RawDescriptionHelpFormatter
    prepare = commands.add_parser(
        "prepare",
        help="make a token store",
        description="Make a token store.",
        epilog=PREPARE_EXAMPLES,
        formatter_class=raw,
    )
    prepare.set_defaults(run=_prepare)
    add = prepare.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="file, folder, glob, or the word stdlib")
    add("--out", required=True, metavar="STORE", help="folder of the store")
    add("--tokenizer", default="bytes", metavar="T", help="bytes (default), bpe (trained here), or a tokenizer.json")
    add("--vocab-size", type=int, metavar="N", help="ids of a trained bpe, end-of-document included (default 8192)")
    add("--eod", metavar="TOKEN", help="the token of a tokenizer.json that ends documents, if it is not evident")
    add("--drop-normalizer", action="store_true", help="use a tokenizer.json without its text normalisation")
    add("--text-field", default="text", metavar="NAME", help="field of JSON lines that holds the text (default: text)")
    add("--format", default="auto", choices=["auto", "text", "jsonl"], help="how to read all files (default: by name)")
    add("--separator", metavar="TEXT", help=r"cut text files into documents here (\n and \t are understood)")
    add(
        "--include",
        action="append",
        metavar="PATTERN",
        help="take only such files from folders (repeatable)",
    )
    add("--validation-fraction", type=float, default=None, metavar="F", help="share of the documents (default 0.02)")
    add("--seed", type=int, default=0, help="of the documents' order (default 0)")
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


def _prepare(arguments: argparse.Namespace) -> int:
    from xlstm_jax.data.prepare.request import DEFAULT_VALIDATION_FRACTION, prepare

    fraction, separator = arguments.validation_fraction, arguments.separator
    store = prepare(
        arguments.sources,
        arguments.out,
        tokenizer=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
        validation_fraction=DEFAULT_VALIDATION_FRACTION if fraction is None else fraction,
        seed=arguments.seed,
        workers=arguments.workers,
        progress=not arguments.quiet,
        format=arguments.format,
        text_field=arguments.text_field,
        separator=None if separator is None else separator.replace(r"\n", "\n").replace(r"\t", "\t"),
        include=arguments.include,
        eod=arguments.eod,
        drop_normalizer=arguments.drop_normalizer,
    )
    _print_summary(store, None)
    if not store.split("validation").num_documents and fraction != 0:
        print(
            "note: the validation split is empty, because the sources hold only one document (or copies of one); "
            "--separator TEXT cuts files into several",
            file=sys.stderr,
        )
    if arguments.vocab_size is not None and store.vocab_size < arguments.vocab_size:
        print(
            f"note: the text gives a vocabulary of {store.vocab_size} only, {arguments.vocab_size} were asked for",
            file=sys.stderr,
        )
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from xlstm_jax.cli.names import find_store
    from xlstm_jax.data.store.store import open_store

    store = open_store(find_store(arguments.store))
    if arguments.verify:
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


# ---------------------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------------------


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
