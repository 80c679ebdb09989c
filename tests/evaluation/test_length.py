"""`xlstm eval length`: the loss by position, gone on with where it was stopped."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_helpers import model_config, write_run

from xlstm_jax.cli import main
from xlstm_jax.evaluation.length.curves import default_lengths
from xlstm_jax.evaluation.length.suite import read_lengths
from xlstm_jax.inference.run import load
from xlstm_jax.report import position_plot
from xlstm_jax.scoring import positions
from xlstm_jax.scoring.positions import PositionScorer, loss_by_position

TEXT = bytes(range(32, 122)) * 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "a.txt").write_bytes(TEXT)
    write_run(folder / "runs" / "tiny", model_config(num_blocks=1))
    (write_run(folder / "runs" / "bos", model_config(num_blocks=1)) / "tokenizer_info.json").write_text(
        '{"bos_id": 300, "stop_ids": []}'
    )
    return folder


def lengths_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = main(["eval", "length", *words, "--text", "a.txt", "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out)


def test_the_curve_is_of_the_same_tokens_and_goes_on_after_a_kill(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.chdir(place)
    # One program for all.
    for name, value in {"MOST_ROWS": 1, "LONGEST_CHUNK": 64, "BATCH_TOKENS": 64}.items():
        monkeypatch.setattr(positions, name, value)
    plot = position_plot.plot_positions
    monkeypatch.setattr(position_plot, "plot_positions", lambda *curves, **labels: None)
    loaded = functools.cache(lambda path, *_: load(path))
    monkeypatch.setattr("xlstm_jax.inference.run.load", lambda path, step, **_: loaded(path))
    read: list[tuple[int, int]] = []
    score = PositionScorer.__call__

    def watched(self: PositionScorer, params: Any, place: Any, *more: Any) -> Any:
        if len(read) == stop:
            raise KeyboardInterrupt
        read.append(tuple(place))
        return score(self, params, place, *more)

    monkeypatch.setattr(PositionScorer, "__call__", watched)
    stop = 2
    assert main(["eval", "length", "tiny", "bos", "--text", "a.txt"]) == 130
    assert not json.loads(Path("runs/length-tiny+bos/result.json").read_text())["runs"][0]["complete"]
    capsys.readouterr()
    stop = -1
    record = lengths_of(capsys, "tiny", "bos")
    # 271 targets, trained at 16: to half the text, each bin of the same 192 tokens.
    assert (record["lengths"], record["tokens"]) == ([16, 32, 64, 128], 192)
    assert record["regions"] == [{"document": 0, "first": 64, "end": 256}]
    bins = [(0, 16), (16, 32), (32, 64), (64, 128)]
    assert read == [*bins, (8, 16), *bins, (8, 16)]
    entry = record["runs"][0]
    assert [(one["from"], one["to"]) for one in entry["by_position"]] == bins
    assert entry["reset"] == entry["by_position"][0]
    assert entry["complete"]
    document = np.array([256, *TEXT, 256])
    run = loaded("runs/tiny")
    direct = loss_by_position(run.scorer, run.params, [document], record["lengths"])
    assert [one["loss"] for one in entry["by_position"]] == pytest.approx([one.loss for one in direct], rel=1e-6)
    means = [one["loss"] for one in entry["by_window"]]
    assert means[2] == pytest.approx(sum(w * one.loss for w, one in zip((16, 16, 32), direct, strict=False)) / 64)

    monkeypatch.setattr(position_plot, "plot_positions", plot)
    assert main(["eval", "length", "tiny", "bos", "--text", "a.txt"]) == 0
    shown = capsys.readouterr().out
    for words in ("64 to 127", "memory emptied every 16", "half-overlapping windows of 16", "the same 192 tokens"):
        assert words in shown
    assert Path("runs/length-tiny+bos/length.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(position_plot, "plot_positions", lambda *curves, **labels: None)
    # Other lengths are another pass. One of its windows begins with the document, which the other run opens otherwise.
    del read[:]
    tiny, bos = lengths_of(capsys, "tiny", "bos", "--lengths", "4,12")["runs"]
    assert read == 2 * [(0, 4), (4, 12), (0, 16), (8, 16)]
    assert tiny["by_position"][0] == bos["by_position"][0]
    assert tiny["windows"] != bos["windows"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--lengths 16,1k", "the longest document of a.txt has 271 tokens, but 1,024 are to be read at once"),
        ("--lengths 16,x", "'x' is no length: lengths are given as in 256,1k,4k"),
        ("--tokens 0", "--tokens is 0, but must be a whole number >= 1"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path, words: str, sentence: str
) -> None:
    monkeypatch.chdir(place)
    out = ["--out", "wrong"]
    assert main(["eval", "length", "tiny", "--text", "a.txt", *words.split(), *out]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("wrong").exists()


def test_lengths_are_the_length_of_training_halved_and_doubled() -> None:
    assert default_lengths([64], 10**6) == (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    assert default_lengths([96, 24], 1600) == (12, 24, 48, 96, 192, 384, 768)
    assert default_lengths([-1], 10)[0] == 16
    assert default_lengths([7], 10**6)[-1] == 448
    assert read_lengths("4k, 256,1K,256") == (256, 1024, 4096)
