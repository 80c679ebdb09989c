"""`xlstm eval memory`: a record, a picture and a page of one run, whatever its memory is."""

from __future__ import annotations

import functools
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_helpers import model_config, write_run

from xlstm_jax.cli import main
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.evaluation.memory import picture, reading, suite
from xlstm_jax.evaluation.memory.reading import from_text, levels, places, spelled, to_text
from xlstm_jax.inference.run import load
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.scoring import positions
from xlstm_jax.scoring.positions import PositionScorer

TEXT = "<script>alert('1')</script> & naïve 日本\n".encode() * 8


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "<b>.txt").write_bytes(TEXT)
    monkeypatch.chdir(tmp_path)
    for name, value in {"MOST_ROWS": 1, "LONGEST_CHUNK": 64, "BATCH_TOKENS": 64}.items():
        monkeypatch.setattr(positions, name, value)
    monkeypatch.setattr(suite, "CLEARED", (4, 8))
    loaded = functools.cache(lambda path: load(path))
    monkeypatch.setattr("xlstm_jax.inference.run.load", lambda path, step, **_: loaded(path))
    return tmp_path


class Page(HTMLParser):
    """The tags of a page, and the text of its spans."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_a_run_is_shown_by_its_losses_gates_states_and_maps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    config = model_config(num_blocks=2, slstm_block=sLSTMBlockConfig(), slstm_at=[1], context_length=2)
    write_run(place / "runs" / "mixed", config)
    words = ["eval", "memory", "mixed", "--text", "<b>.txt", "--window", "20"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    record = json.loads(Path("runs/memory-mixed/result.json").read_text())
    assert record["complete"]
    assert [entry["every"] for entry in record["cleared"]] == [4, 8]
    least = min(entry["loss"] for entry in record["cleared"])
    assert record["effective_context"] == min(e["every"] for e in record["cleared"] if e["loss"] <= 1.01 * least)
    # Trained at 2 tokens, read to 16 times as many, in as many rows as the text has room for.
    assert record["read"] == {"rows": 8, "positions": 32}
    assert [(entry["from"], entry["to"]) for entry in record["by_position"]] == [(0, 16), (16, 32)]
    heads = [(head["block"], head["kind"], head["head"]) for head in record["heads"]]
    assert heads == [(0, "mlstm", 0), (0, "mlstm", 1), *((1, "slstm", head) for head in range(4))]
    assert heads == [(head["block"], head["kind"], head["head"]) for head in record["window"]["heads"]]
    mlstm, slstm = record["by_position"][1]["blocks"]
    assert len(mlstm["stable_rank"]) == len(mlstm["on_floor"]) == 2
    assert min(mlstm["stable_rank"]) >= 1
    assert slstm["stable_rank"] is None
    assert "on_floor" not in slstm
    for part in ("block, head", "1, 3 (slstm)", "memory emptied every", "memory.html"):
        assert part in shown
    assert len(record["window"]["tokens"]) == len(record["window"]["heads"][0]["log_f"]) == 20
    assert Path("runs/memory-mixed/memory.png").read_bytes().startswith(b"\x89PNG")

    text = Path("runs/memory-mixed/memory.html").read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "b"} & {tag for tag, _ in page.tags}
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert len(sources) == 1 + 2 * 2 + 4  # the picture, two maps of each mLSTM head, one of the others
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in text
    assert "@import" not in text
    # The first token, the EOD, stands for itself.
    assert page.shown.count("◌<script>alert('1')") == 2 * 6
    assert "Reading <b>.txt" in page.shown

    def refuse(*arguments: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(PositionScorer, "__call__", refuse)
    monkeypatch.setattr(reading, "Reader", refuse)
    monkeypatch.setattr(picture, "draw_memory", lambda *arguments: None)
    assert main(words) == 0
    assert json.loads(Path("runs/memory-mixed/result.json").read_text()) == record


def test_of_a_transformer_the_softmax_and_the_losses_are_shown(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    config = LlamaConfig(
        embedding_dim=16, num_blocks=1, head_dim=8, context_length=4, dtype="float32", vocab_size=320, ffn_dim=16
    )
    write_run(place / "runs" / "llama", config)
    assert main(["eval", "memory", "llama", "--text", "<b>.txt", "--window", "16", "--json"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert (record["heads"], record["by_position"]) == ([], [])
    (first, _) = record["window"]["heads"]
    assert from_text(first["attention"])[0, 0] == 255
    assert "log_f" not in first
    assert "A Transformer has no gates" in Path("runs/memory-llama/memory.html").read_text()
    for words, sentence in (
        ("llama --window 2000", "--window is 2000, but must be a whole number from 2 to 1024"),
        ("llama --window 1000", "has 353 tokens, but 1,000 are to be shown"),
        ("llama runs/../runs/llama", "the memory of one run is shown at a time, but 2 are named"),
    ):
        assert main(["eval", "memory", *words.split(), "--text", "<b>.txt", "--out", "wrong"]) == 2
        assert sentence in capsys.readouterr().err
    assert not Path("wrong").exists()


def test_the_parts_of_a_record() -> None:
    assert places(100) == [(0, 16), (16, 32), (32, 64)]
    weights = np.array([[1.0, 0.0], [1e-3, 2.0]])
    assert levels(weights).tolist() == [[255, 0], [127, 255]]
    assert from_text(to_text(levels(weights))).tolist() == levels(weights).tolist()
    # A character of several bytes stands at its last one; what is none of UTF-8 is seen.
    tokens = [256, *"é".encode(), 0xFF, ord("<"), 300]
    assert spelled(ByteTokenizer(), tokens) == ["", "", "é", "\ufffd", "<", ""]
    assert html.escape("<") not in spelled(ByteTokenizer(), tokens)
    assert not re.search("[^\x00-\x7f]", to_text(levels(weights)))
