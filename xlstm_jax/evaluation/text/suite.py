"""`xlstm eval RUN`: what a text costs under a run, beside gzip, xz and a unigram model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.suite import Record, Records, Suite, option
from xlstm_jax.evaluation.text.source import Source
from xlstm_jax.evaluation.text.tables import new_table, shown, titles
from xlstm_jax.machine.progress import Progress, clock

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xlstm_jax.evaluation.text.texts import Text

EXAMPLES = """\
examples:
  xlstm eval quickstart
  xlstm eval quickstart --text book.txt other.txt
  xlstm eval quickstart runs/other --text - < book.txt
  xlstm eval quickstart --store stores/mine --clear-every 256 --json

RUN is a run's folder, or NAME for runs/NAME. Without --text and --store the text is what the run held out. Each file
is a document, read byte for byte from an empty memory to its end; the end is scored like a token. Killed and started
again, documents that are done are not read twice.

keys of --json: text (name, fingerprint, documents, bytes, characters, words, lines), clear_every, baselines (gzip, xz:
bits per byte), and runs: a list with run, step, parameters, nats, tokens, bytes, characters, words, lines, documents,
end_nats, loss, perplexity, nats_per_byte, bits_per_byte, nats_per_character, bits_per_character, word_perplexity,
unigram, by_position, by_document. Of a single run the numbers stand beside text too.
"""

FEW_DOCUMENTS = 20
"""So many are shown each by itself."""


@dataclass
class TextOptions(Source):
    """What is scored on what."""

    clear_every: int | None = option(
        "K", "empty the memory before every K tokens (default: carry it)", read=int, default=None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clear_every is not None and self.clear_every < 1:
            raise ConfigError(f"--clear-every is {self.clear_every}, but must be a whole number >= 1")


def run(options: TextOptions, progress: Progress, before: Record) -> Records:
    """Score every run on the text; see `Suite.run`."""
    with clock("reading the text", terminal_only=True):
        text = options.read()
    return _records(options, text, progress, before)


def _records(options: TextOptions, text: Text, progress: Progress, before: Record) -> Records:
    from xlstm_jax.evaluation.text.scores import score_run
    from xlstm_jax.evaluation.text.texts import total
    from xlstm_jax.inference.run import load

    facts = {"name": text.name, "fingerprint": text.fingerprint, "documents": len(text.documents)}
    facts |= total(text.counts)._asdict()
    found = before.get("text")
    known = (
        isinstance(found, dict)
        and found.get("fingerprint") == text.fingerprint
        and before.get("clear_every") == options.clear_every
    )
    earlier = {entry["run"]: entry for entry in before.get("runs", ())} if known else {}
    record = {
        "text": facts,
        "clear_every": options.clear_every,
        "baselines": before["baselines"] if known else _baselines(text),
    }
    done: list[Mapping[str, Any]] = []
    for path in options.runs:
        with clock(f"loading {path}", terminal_only=True):
            model = load(path, options.step, say=lambda sentence: progress.say(f"note: {sentence}"), mesh=options.mesh)
        for entry in score_run(model, text, earlier.get(path, {}), progress, options.clear_every):
            # What later runs had before is kept, in case that this is killed.
            waiting = [earlier[later] for later in options.runs[len(done) + 1 :] if later in earlier]
            yield _whole(record, [*done, entry, *waiting])
        done.append(entry)
    yield _whole(record, done)


def _whole(record: Record, runs: list[Mapping[str, Any]]) -> Record:
    alone = runs[0] if len(runs) == 1 else {}
    return {**record, **{name: value for name, value in alone.items() if not name.startswith("by_")}, "runs": runs}


def _baselines(text: Text) -> dict[str, float | None]:
    from xlstm_jax.scoring.baselines import compressed_bits_per_byte, gzip_size, xz_size

    with clock("packing the text with gzip and xz", terminal_only=True):
        sizes = {"gzip": gzip_size, "xz": xz_size}
        found = {
            name: compressed_bits_per_byte(map(text.read, range(len(text.documents))), size)
            for name, size in sizes.items()
        }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _scale(runs: list[Mapping[str, Any]]) -> tuple[str, list[float]]:
    """The unit of losses by position, and what makes it of each run's nats per token: tokens of one tokenizer can be
    compared, those of several only by the bytes that they stand for."""
    if len({entry["tokenizer"] for entry in runs}) == 1:
        return "nats per token", [1.0 for _ in runs]
    return "bits per byte", [entry["tokens"] / max(entry["bytes"], 1) / math.log(2) for entry in runs]


def draw(record: Record, path: Path) -> None:
    """Loss over the position in a document, a curve for each run."""
    from xlstm_jax.report.position_plot import plot_positions

    runs = record["runs"]
    unit, scales = _scale(runs)
    curves = {
        title: [
            (math.sqrt(max(place["from"], 1) * place["to"]), scale * place["nats"] / place["tokens"])
            for place in entry["by_position"]
        ]
        for title, entry, scale in zip(titles(runs), runs, scales, strict=True)
        if entry["by_position"]
    }
    trained = {entry["context_length"] for entry in runs if entry["context_length"] > 0}
    lines = {f"length of training ({length:,})": length for length in sorted(trained)}
    place = "in the document" if record["clear_every"] is None else "since the memory was emptied"
    plot_positions(curves, path, title=record["text"]["name"], place=place, unit=unit, lines=lines)


def tabulate(record: Record) -> tuple[RenderableType, str]:
    """The runs and the baselines; below, by position and by document."""
    from rich.console import Group

    tables = [_summary(record), _by_position(record)]
    if 1 < record["text"]["documents"] <= FEW_DOCUMENTS:
        tables.append(_by_document(record))
    text, state = record["text"], "carried through each document"
    if record["clear_every"] is not None:
        state = f"emptied before every {record['clear_every']} tokens"
    documents = f"{text['documents']:,} document{'' if text['documents'] == 1 else 's'}"
    return Group(*tables), (
        f"{text['name']}: {documents}, {text['bytes']:,} bytes, {text['characters']:,} characters, {text['words']:,} "
        f"words between white space. Every number counts the end of each document as a token; the memory is {state}. "
        "gzip and xz pack each document by itself; unigram: byte frequencies of the text that the run learnt from."
    )


def _summary(record: Record) -> Any:
    table = new_table("", "step", "nats/token", "perplexity", "bits/byte", "bits/char", "word ppl")
    text, runs = record["text"], record["runs"]
    for title, entry in zip(titles(runs), runs, strict=True):
        per_byte = entry["bits_per_byte"]
        table.add_row(
            title,
            str(entry["step"]),
            shown(entry["loss"], 4),
            shown(entry["perplexity"], 2),
            "-" if per_byte is None else f"[b]{per_byte:.4f}[/b]",
            shown(entry["bits_per_character"], 4),
            shown(entry["word_perplexity"], 2),
        )
    baselines = {"gzip -9": record["baselines"]["gzip"], "xz -9": record["baselines"]["xz"]}
    unigrams = [(title, entry["unigram"]) for title, entry in zip(titles(runs), runs, strict=True)]
    known = [(title, value) for title, value in unigrams if value is not None]
    one = len({value for _, value in known}) == 1
    baselines |= {"unigram bytes" if one else f"unigram, {title}": value for title, value in known}
    for name, value in baselines.items():
        per_character = None if value is None else value * text["bytes"] / text["characters"]
        table.add_row(name, "", "", "", shown(value, 4), shown(per_character, 4), "")
    return table


def _by_position(record: Record) -> Any:
    runs = record["runs"]
    unit, scales = _scale(runs)
    since = "" if record["clear_every"] is None else " since emptied"
    table = new_table(f"{unit} by position{since}", "tokens", *titles(runs))
    longest = max((entry["by_position"] for entry in runs), key=len)
    for number, place in enumerate(longest):
        cells = []
        for entry, scale in zip(runs, scales, strict=True):
            own = entry["by_position"][number : number + 1]
            cells.append(shown(scale * own[0]["nats"] / own[0]["tokens"], 4) if own else "-")
        table.add_row(f"{place['from']:,} to {place['to'] - 1:,}", f"{place['tokens']:,}", *cells)
    return table


def _by_document(record: Record) -> Any:
    runs = record["runs"]
    table = new_table("bits per byte by document", "bytes", *titles(runs))
    entries = [{entry["number"]: entry for entry in run["by_document"]} for run in runs]
    for number in sorted(set().union(*entries)):
        own = [documents.get(number) for documents in entries]
        known = next(entry for entry in own if entry is not None)
        cells = [shown(entry and entry["bits_per_byte"], 4) for entry in own]
        table.add_row(known["name"], f"{known['bytes']:,}", *cells)
    return table


SUITE = Suite(
    name="text",
    summary="score runs on files, a token store or what they held out: bits per byte and perplexity",
    config=TextOptions,
    run=run,
    table=tabulate,
    picture=draw,
    picture_name="position.png",
    folder="text-{name}",
    examples=EXAMPLES,
)
