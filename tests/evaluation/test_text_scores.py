"""`xlstm eval RUN`: the numbers are those of a recurrence in float64, whatever is scored, how often, and from where."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference_helpers import model_config, random_params, write_run

from xlstm_jax.cli import main
from xlstm_jax.config import to_json
from xlstm_jax.data.prepare import prepare
from xlstm_jax.evaluation.text import scores
from xlstm_jax.evaluation.text.suite import draw
from xlstm_jax.evaluation.text.texts import Counts, count
from xlstm_jax.inference.run import Run, load
from xlstm_jax.models.language_model import with_exact_resets
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel
from xlstm_jax.report import position_plot
from xlstm_jax.report.position_plot import plot_positions
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.scoring.documents import DocumentScorer, bin_range, position_bins
from xlstm_jax.scoring.heldout import HeldOut
from xlstm_jax.training.config import DataConfig, Experiment

DOCUMENTS = {
    "a.txt": "naïve 日本 café\n\nwords  and\tmore\n".encode(),
    "empty.txt": b"",
    "c.txt": b"\xff one\xc3 two" * 9,
}
CONFIG = model_config(num_blocks=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a converted one whose texts open with another token, and the texts."""
    folder = tmp_path_factory.mktemp("place")
    for name, content in DOCUMENTS.items():
        (folder / name).write_bytes(content)
    write_run(folder / "runs" / "tiny", CONFIG)
    write_run(folder / "runs" / "other", model_config(num_blocks=1, embedding_dim=8))
    (folder / "runs" / "other" / "tokenizer_info.json").write_text('{"bos_id": 300, "stop_ids": []}')
    return folder


@pytest.fixture(scope="module")
def loaded() -> Any:
    """`load` that keeps what it has loaded and compiled."""
    return functools.cache(lambda path, step, mesh: load(path, step, mesh=mesh))


@pytest.fixture(autouse=True)
def here(place: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def load_once(path: str, step: int | None, say: Any, mesh: str | None) -> Run:
        newest = RunFolder(path).checkpoints(read_only=True).latest_step()
        return loaded(str(path), newest if step is None else step, mesh)

    monkeypatch.setattr("xlstm_jax.inference.run.load", load_once)
    monkeypatch.setattr(position_plot, "plot_positions", lambda *curves, **labels: None)
    monkeypatch.chdir(place)
    yield
    for path in Path("runs").glob("text-*/*"):
        path.unlink()


def scored(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = main(["eval", *words, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out)


@pytest.fixture(scope="module")
def nats_of_each() -> Any:
    """(document, clear_every) -> the nats of its targets, token by token in float64."""
    with jax.enable_x64(True):
        model = xLSTMLMModel(with_exact_resets(dataclasses.replace(CONFIG, dtype="float64")))
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), random_params(xLSTMLMModel(CONFIG)))
        step = jax.jit(lambda state, token: model.apply({"params": params}, token, state=state, return_state=True))

        def run(document: bytes, clear_every: int | None) -> np.ndarray:
            with jax.enable_x64(True):
                tokens, nats = [256, *document, 256], []
                state: Any = None
                for position, (token, target) in enumerate(itertools.pairwise(tokens)):
                    if position % (clear_every or len(tokens)) == 0:
                        state = model.init_state(1)
                    logits, state = step(state, np.array([[token]], np.int32))
                    row = np.asarray(logits, np.float64)[0, 0]
                    nats.append(row.max() + math.log(np.exp(row - row.max()).sum()) - row[target])
                return np.array(nats)

        yield run


@pytest.mark.parametrize("clear_every", [None, 18])
def test_the_numbers_are_those_of_a_recurrence_in_float64(
    capsys: pytest.CaptureFixture[str], nats_of_each: Any, clear_every: int | None
) -> None:
    words = [] if clear_every is None else ["--clear-every", str(clear_every)]
    found = scored(capsys, "tiny", "--text", *DOCUMENTS, *words)
    each = [nats_of_each(document, clear_every) for document in DOCUMENTS.values()]
    nats, size = sum(map(np.sum, each)), sum(map(len, DOCUMENTS.values()))
    assert found["nats"] == pytest.approx(nats, rel=1e-5)
    assert found["end_nats"] == pytest.approx(sum(one[-1] for one in each), rel=1e-5)
    assert (found["tokens"], found["bytes"], found["documents"]) == (size + 3, size, 3)
    # a has 31 characters in 37 bytes; c 9 times 10 bytes, two of them no characters of UTF-8.
    assert (found["characters"], found["words"], found["lines"]) == (31 + 90, 6 + 19, 3)
    assert found["perplexity"] == pytest.approx(math.exp(nats / (size + 3)), rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(math.exp(nats / 25), rel=1e-3)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(nats / math.log(2) / 121, rel=1e-5)
    (run,) = found["runs"]
    assert [entry["nats"] for entry in run["by_document"]] == pytest.approx(list(map(np.sum, each)), rel=1e-5)
    assert [entry["bits_per_byte"] is None for entry in run["by_document"]] == [False, True, False]
    for entry in run["by_position"]:
        parts = [
            one[i] for one in each for i in range(len(one)) if entry["from"] <= i % (clear_every or 999) < entry["to"]
        ]
        assert entry["tokens"] == len(parts)
        assert entry["nats"] == pytest.approx(sum(parts), rel=1e-5)
    assert run["by_position"][-1]["to"] == (128 if clear_every is None else 32)


def test_the_picture_has_a_curve_for_each_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(position_plot, "plot_positions", plot_positions)
    bins = [{"from": 0, "to": 16, "tokens": 16, "nats": 40.0}, {"from": 16, "to": 32, "tokens": 9, "nats": 20.0}]
    run = {"run": "runs/a", "tokenizer": "x", "context_length": 16, "tokens": 25, "bytes": 50, "by_position": bins}
    for other in ("x", "y"):
        runs = [run, {**run, "run": "elsewhere/a", "tokenizer": other}]
        draw({"text": {"name": "a text"}, "clear_every": 8, "runs": runs}, tmp_path / "position.png")
        assert (tmp_path / "position.png").read_bytes().startswith(b"\x89PNG")


def test_counts_are_what_they_are_called() -> None:
    assert count(b"") == Counts(0, 0, 0, 0)
    assert count("é\u3000日\n".encode()) == Counts(9, 4, 2, 1)  # an ideographic space parts words
    assert count(b"\xff\xc3 x\r\ny") == Counts(7, 7, 3, 1)
    places = np.array([0, 15, 16, 31, 32, 10**7], np.int32)
    bins = position_bins(places)
    assert bins.tolist()[:5] == [0, 0, 1, 1, 2]
    assert all(bin_range(b)[0] <= p < bin_range(b)[1] for p, b in zip(places, bins.tolist(), strict=True))


def test_python_the_command_and_standard_input_say_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, loaded: Any
) -> None:
    # The second opens its texts with a token of its own, and both are set side by side.
    found = scored(capsys, "tiny", "runs/other", "--text", "a.txt")
    for entry in found["runs"]:
        score = loaded(entry["run"], 3, None).score(DOCUMENTS["a.txt"])
        assert (entry["nats"], entry["tokens"], entry["bytes"]) == (score.nats, score.tokens, score.raw_bytes)
        assert (entry["perplexity"], entry["bits_per_byte"]) == (score.perplexity, score.bits_per_byte)
    assert "nats" not in found
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(DOCUMENTS["a.txt"])))
    assert scored(capsys, "tiny", "--text", "-")["nats"] == found["runs"][0]["nats"]
    over = scored(capsys, "tiny", "--text", "a.txt", "--mesh", "fsdp=2,tp=2", "--out", "meshed")
    assert over["nats"] == pytest.approx(found["runs"][0]["nats"], rel=1e-5)
    assert main(["eval", "tiny", "other", "--text", "a.txt"]) == 0
    shown = capsys.readouterr().out
    for part in ("bits/byte", "tiny", "other", "gzip -9", "0 to 15", "37 bytes, 31 characters, 6 words"):
        assert part in shown


def test_what_was_held_out_is_scored_as_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts").mkdir()
    for number in range(40):
        Path(f"texts/{number}.txt").write_text(f"text {number}\n" * (number % 7 + 1))
    store = prepare("texts", "stores/held", validation_fraction=0.3, progress=False, workers=1)
    path = write_run(Path("runs/trained"), CONFIG)
    data = DataConfig(sources=("texts",), store="stores/held", tokenizer="bytes", fingerprint=store.fingerprint)
    experiment = to_json(Experiment(model=CONFIG, data=data))
    (path / "config.json").write_text(json.dumps(experiment))
    run, split = load(path), store.split("validation")
    score = HeldOut(run.scorer, split, batch_size=3, seq_len=16)(run.params)
    for words in ([], ["--store", "held"], ["--mesh", "dp=4,sp=2", "--out", "parted"]):
        found = scored(capsys, "trained", *words)
        assert found["nats"] == pytest.approx(score.nats, rel=1e-6)
        assert (found["tokens"], found["bytes"]) == (score.tokens, score.raw_bytes)
        assert found["unigram"] > 0
    assert found["documents"] == split.num_documents > 5
    found = scored(capsys, "tiny", "trained", "--store", "held", "--split", "train")
    assert found["runs"][0]["unigram"] is None
    assert found["text"]["documents"] == store.split("train").num_documents


def test_a_killed_pass_goes_on_with_what_is_left_of_the_same_text_and_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    score_all = DocumentScorer.__call__

    def watched(self: DocumentScorer, params: Any, documents: Any = None, *more: Any) -> Iterator[Any]:
        for number in documents:
            (score,) = score_all(self, params, [number], *more)
            read.append(number)
            yield score
            if len(read) == stop:
                raise KeyboardInterrupt

    monkeypatch.setattr(DocumentScorer, "__call__", watched)
    monkeypatch.setattr(scores, "SAVE_SECONDS", 0.0)
    stop = 2
    words = ["tiny", "--text", *DOCUMENTS]
    assert main(["eval", *words]) == 130
    result = json.loads(Path("runs/text-tiny/result.json").read_text())
    assert (result["documents"], result["complete"], read) == (2, False, [0, 1])
    capsys.readouterr()
    stop = 0
    whole = scored(capsys, *words)
    assert (read, whole["complete"]) == ([0, 1, 2], True)
    fresh = scored(capsys, *words, "--out", "fresh")
    assert read == [0, 1, 2, 0, 1, 2]
    for record in (whole, fresh):
        for entry in (record, *record["runs"]):
            entry.pop("seconds")
    assert whole == fresh
    # Finished, it costs nothing; another memory, text or checkpoint is another pass.
    assert scored(capsys, *words)["nats"] == whole["nats"]
    assert len(read) == 6
    scored(capsys, *words, "--clear-every", "3")
    scored(capsys, "tiny", "--text", "a.txt", "empty.txt")
    assert len(read) == 6 + 3 + 2
    run = RunFolder("runs/tiny")
    with run.checkpoints() as checkpoints:
        params = random_params(xLSTMLMModel(CONFIG), seed=1)
        checkpoints.save(4, {"params": params, "step": jnp.int32(4)}, {})
    assert scored(capsys, "tiny", "--text", "a.txt", "empty.txt")["step"] == 4
    assert scored(capsys, "tiny", "--text", "a.txt", "empty.txt", "--step", "3")["step"] == 3
    assert len(read) == 6 + 3 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tiny", "the token store that runs/tiny learnt from cannot be found"),
        ("tinny --text a.txt", "there is no run"),
        ("sinthetic --task parity", "unrecognized arguments: --task parity"),
        ("synthetik", "suites are length, lm-eval, memory, synthetic, table, text (did you mean 'synthetic'?)"),
        ("tiny --text a.tx", "there is no text a.tx (did you mean 'a.txt'?)"),
        ("tiny --text runs", "the text runs is a folder; name the files in it, as in runs/*"),
        ("tiny --text a.txt --store b", "--text and --store each name a text"),
        ("tiny --text a.txt --clear-every 0", "--clear-every is 0, but must be a whole number >= 1"),
        ("tiny --text a.txt --split train", "--split is of a token store"),
        ("tiny --store stores/none", "there is no token store at stores/none"),
        ("tiny --text a.txt --step 99", "no checkpoint of step 99"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], words: str, sentence: str
) -> None:
    assert main(["eval", *words.split()]) in (1, 2)
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1
    assert not Path("runs/text-tiny").is_dir() or not list(Path("runs/text-tiny").iterdir())


def test_no_text_at_all_has_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    found = scored(capsys, "tiny", "--text", "empty.txt")
    assert (found["tokens"], found["bits_per_byte"], found["word_perplexity"]) == (1, None, None)
    assert main(["eval", "tiny", "--text", "empty.txt"]) == 0
