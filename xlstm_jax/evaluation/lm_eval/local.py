"""Tasks that need no download: of texts of one's own, and one that is drawn. Configs of the harness, data included."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlstm_jax.config import ConfigError

OF_A_TEXT = ("text_perplexity", "last_word")
"""Names of tasks that need a text."""
NAMES = (*OF_A_TEXT, "phone_book")

PASSAGE_WORDS, FEWEST_WORDS, WORD_LETTERS = 80, 40, 4
ENTRIES, CALLS, EXAMPLES = 20, 100, 2
"""Of a phone book: its entries, how many books there are, and how many numbers are looked up before the one asked."""
FIRST_NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Klara", "Leo")
LAST_NAMES = ("Adler", "Baker", "Cooper", "Dietz", "Ebert", "Fisher", "Graf", "Hunter", "Irving", "Jung", "Keller")


def local_task(name: str, files: Sequence[str]) -> dict[str, Any]:
    """The config of a task, for the harness.

    Args:
        name: one of `NAMES`.
        files: the texts that those of `OF_A_TEXT` are made from.

    Raises:
        ConfigError: for a task without the text that it needs, or a file that is no text.
    """
    if name in OF_A_TEXT and not files:
        raise ConfigError(f"the task {name} is made from texts of yours; --text FILE names them")
    texts = {file: _text(file) for file in files} if name in OF_A_TEXT else {}
    config, rows = {"text_perplexity": _perplexity, "last_word": _last_word, "phone_book": _phone_book}[name](texts)
    if not rows:
        raise ConfigError(
            f"the task {name} finds nothing to ask in {', '.join(files)}: it takes {PASSAGE_WORDS} words that end with "
            f"one of {WORD_LETTERS} letters or more that came before"
        )
    return {"task": name, "test_split": "test", "custom_dataset": _dataset(rows), "metadata": {"version": 1}} | config


def _dataset(rows: list[dict[str, str]]) -> Callable[..., Any]:
    def build(**_: Any) -> Any:
        import datasets

        return {"test": datasets.Dataset.from_list(rows)}

    return build


def _text(file: str) -> str:
    try:
        return Path(file).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"the text {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no text in UTF-8, which the harness needs ({error})") from error


def _metrics(*names: str) -> list[dict[str, str]]:
    return [{"metric": name} for name in names]


def _perplexity(texts: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Each file a document."""
    config = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": _metrics("bits_per_byte", "byte_perplexity", "word_perplexity"),
    }
    return config, [{"file": file, "page": text} for file, text in texts.items() if text]


def _last_word(texts: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The last word of passages, if it came before in them, as in LAMBADA."""
    config = {
        "output_type": "loglikelihood",
        "doc_to_text": "{{passage}}",
        "doc_to_target": "{{word}}",
        "metric_list": _metrics("acc", "perplexity"),
    }
    return config, [row for text in texts.values() for row in _passages(text)]


def _passages(text: str) -> Iterator[dict[str, str]]:
    words = list(re.finditer(r"\S+", text))
    for first in range(0, len(words) - PASSAGE_WORDS + 1, PASSAGE_WORDS):
        passage = words[first : first + PASSAGE_WORDS]
        for place in range(PASSAGE_WORDS - 1, FEWEST_WORDS - 1, -1):
            before, word = passage[place - 1].end(), passage[place]
            found = re.match(r"[^\W\d_]+", word[0])
            earlier = re.findall(r"[^\W\d_]+", text[passage[0].start() : before])
            if text[before : word.start()] != " " or found is None or len(found[0]) < WORD_LETTERS:
                continue
            if found[0] in earlier:
                yield {"passage": text[passage[0].start() : before], "word": found[0]}
                break


def _phone_book(_: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Numbers to be looked up in a list that stands before, after two that are looked up already."""
    config = {
        "output_type": "generate_until",
        "doc_to_text": "{{book}}",
        "doc_to_target": "{{number}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
        "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": _metrics("exact_match"),
    }
    return config, [_book(random.Random(seed)) for seed in range(CALLS)]


def _book(draw: random.Random) -> dict[str, str]:
    names = draw.sample([f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES], ENTRIES)
    entries = [(name, f"{draw.randrange(200, 1000)}-{draw.randrange(10000):04}") for name in names]
    *shown, (asked, number) = draw.sample(entries, EXAMPLES + 1)
    lines = [f"{name}: {number}" for name, number in entries]
    examples = [f"{name}: {number}" for name, number in shown]
    return {"book": "\n".join([*lines, "", *examples, f"{asked}:"]), "number": number}
