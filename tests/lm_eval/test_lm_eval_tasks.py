"""Tasks of the lm-evaluation-harness, from files and offline: the numbers are those of the model, computed by hand."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval import utils
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

from inference_helpers import model_config, write_run

import xlstm_jax
from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.lm_eval.harness import XLSTM
from xlstm_jax.inference.run import Run
from xlstm_jax.machine.progress import Progress
from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.llama.config import LlamaConfig

pytestmark = pytest.mark.filterwarnings("default")

QUESTIONS = [
    {"question": "the sky is", "choices": ["blue", "made of green cheese", "up"], "answer": 0},
    {"question": "one and one is", "choices": ["two", "eleven or so", "x"], "answer": 1},
    {"question": "the sky is", "choices": ["low", "far away", "wide"], "answer": 2},
]
PAGES = [{"page": "naïve café \n two lines, and more of it " * 4}, {"page": "short"}]
PROMPTS = [{"prompt": "import numpy", "answer": "as"}, {"prompt": "def f", "answer": "(x)"}]
CHOICE = """
task: choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PAGE = """
task: page
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
SPEAK = """
task: speak
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks as a user writes them, with their data, and a run."""
    place = tmp_path_factory.mktemp("harness")
    os.environ["HF_DATASETS_CACHE"] = str(place / "cache")
    (place / "tasks").mkdir()
    for name, config, rows in (("choice", CHOICE, QUESTIONS), ("page", PAGE, PAGES), ("speak", SPEAK, PROMPTS)):
        data = place / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (place / "tasks" / f"{name}.yaml").write_text(config.lstrip() + where)
    write_run(place / "run", model_config(num_blocks=1))
    return place


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return xlstm_jax.load(folder / "run")


@pytest.fixture(scope="module")
def model(run: Run) -> XLSTM:
    return XLSTM(run, batch_size=4, progress=Progress(show=False))


@pytest.fixture(scope="module")
def log_probability(run: Run) -> Callable[[str, str], float]:
    """Of a continuation of a context, from logits of the whole text at once."""
    apply = jax.jit(run.model.apply)

    def found(context: str, continuation: str) -> float:
        text = (context + continuation).encode()
        tokens = np.full((1, 256), 256, np.int32)
        tokens[0, 1 : len(text) + 1] = list(text)
        logits = np.asarray(apply({"params": run.params}, tokens), np.float64)[0]
        each = logits[np.arange(len(text)), list(text)] - np.log(np.exp(logits[: len(text)]).sum(-1))
        return float(each[len(context.encode()) :].sum())

    return found


def instances(kind: str, arguments: list[tuple]) -> list[Any]:
    return [Instance(kind, {}, arguments[number], number) for number in range(len(arguments))]


def test_tasks_from_yaml_files_give_the_numbers_of_the_model(
    folder: Path, run: Run, log_probability, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--tasks", "choice,page", "speak", "--include-path", str(folder / "tasks"), "--batch-size", "2"]
    assert main(["eval", "lm-eval", str(folder / "run"), *words, "--out", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (entry,) = record["runs"]
    found = entry["results"]

    right, right_by_character = 0, 0
    for row in QUESTIONS:
        costs = np.array([log_probability(row["question"], f" {choice}") for choice in row["choices"]])
        right += int(costs.argmax() == row["answer"])
        right_by_character += int((costs / [len(choice) for choice in row["choices"]]).argmax() == row["answer"])
    assert found["choice"]["acc,none"] == pytest.approx(right / 3)
    assert found["choice"]["acc_norm,none"] == pytest.approx(right_by_character / 3)
    # Two contexts, one of them of two questions, are read once each.
    texts = [f" {choice}" for row in QUESTIONS for choice in row["choices"]]
    contexts = {row["question"] for row in QUESTIONS}
    assert entry["tokens_read"] == sum(map(len, texts)) + sum(map(len, contexts))

    nats = -sum(log_probability("", row["page"]) for row in PAGES)
    size = sum(len(row["page"].encode()) for row in PAGES)
    assert found["page"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    count = sum(len(re.split(r"\s+", row["page"])) for row in PAGES)
    assert found["page"]["word_perplexity,none"] == pytest.approx(math.exp(nats / count), rel=1e-3)

    said = [run.generate(row["prompt"], temperature=0, heal=False, max_tokens=12, stop="e") for row in PROMPTS]
    exact = sum(text.split("\n")[0] == row["answer"] for text, row in zip(said, PROMPTS, strict=True)) / 2
    assert found["speak"]["exact_match,none"] == exact
    assert entry["samples"]["choice"] == {"original": 3, "effective": 3}
    assert (tmp_path / "tasks.png").read_bytes().startswith(b"\x89PNG")
    assert record["lm_eval"] == lm_eval.__version__


def test_tasks_that_need_no_file_run_and_are_shown(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Alice was beginning to get very tired, and what is the use of a book, thought Alice. " * 20)
    words = ["--tasks", "text_perplexity", "last_word", "phone_book", "--text", str(book), "--limit", "2"]
    assert main(["eval", "lm-eval", str(folder / "run"), *words, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "out/result.json").read_text())["runs"][0]
    score = xlstm_jax.load(folder / "run").score(book.read_text())
    per_byte = record["results"]["text_perplexity"]["bits_per_byte,none"]
    assert per_byte < score.bits_per_byte  # which counts the end of the document
    assert per_byte == pytest.approx(score.bits_per_byte, rel=0.02)
    assert set(record["results"]["last_word"]) >= {"acc,none", "perplexity,none"}
    assert record["results"]["phone_book"]["exact_match,none"] == 0
    for text in ("text_perplexity", f"{per_byte:.4f}", "last_word", "exact_match", "one standard error"):
        assert text in shown


def test_what_is_not_there_is_told_with_the_near_miss(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "lm-eval", str(folder / "run"), "--include-path", str(folder / "tasks"), "--out", "nowhere"]
    for task, sentence in (
        ("choise", "there is no task 'choise' (did you mean 'choice'?)"),
        ("text_perplexity", "--text FILE names them"),
    ):
        assert main([*words, "--tasks", task]) == 2
        assert sentence in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_the_harness_makes_the_model_of_its_own_options(folder: Path, log_probability) -> None:
    # It hands on a device and batch sizes even where there is no such device.
    found = lm_eval.simple_evaluate(
        model="xlstm",
        model_args=f"run={folder / 'run'},max_gen_toks=4",
        tasks=["page"],
        task_manager=TaskManager(include_path=str(folder / "tasks")),
        batch_size="auto",
        max_batch_size=64,
        device="cuda:0",
        bootstrap_iters=0,
        log_samples=False,
    )
    nats = -sum(log_probability("", row["page"]) for row in PAGES)
    size = sum(len(row["page"].encode()) for row in PAGES)
    assert found["results"]["page"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["config"]["model_num_parameters"] == xlstm_jax.load(folder / "run").model.param_count
    for wrong in ({"batch_size": "many"}, {"batch_size": 0}, {"max_length": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            XLSTM(folder / "run", **wrong)


def test_the_entry_point_is_the_class_that_registers_itself() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lm_eval.models"] == {"xlstm": f"{XLSTM.__module__}:{XLSTM.__name__}"}
    assert lm_eval.api.registry.get_model("xlstm") is XLSTM


def test_a_text_costs_what_the_run_says_without_its_end(run: Run, model: XLSTM) -> None:
    texts = ["", "a", PAGES[0]["page"]]
    whole = model.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in texts]))
    pairs = model.loglikelihood(instances("loglikelihood", [("", text) for text in texts]))
    for text, value, (alone, _) in zip(texts, whole, pairs, strict=True):
        tokens = np.array([256, *text.encode()], np.int32)
        end = np.asarray(jax.nn.log_softmax(run.model.apply({"params": run.params}, tokens[None])[0, -1]))[256]
        assert value == pytest.approx(-(run.score(text).nats + end), rel=1e-5, abs=1e-4)
        assert alone == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_texts_can_be_read_as_the_harness_has_other_models_read_them(run: Run, log_probability) -> None:
    limited = XLSTM(run, batch_size=4, max_length=16, progress=Progress(show=False))
    text = "it reads a window of sixteen tokens, and the last is full, too"
    tokens = run.tokenizer.encode(text)
    theirs = list(map(utils.make_disjoint_window, utils.get_rolling_token_windows(tokens, 256, 16, 1)))

    def cost(context: list[int], rest: list[int]) -> float:
        logits = run.model.apply({"params": run.params}, np.array([[*context, *rest]], np.int32))[0]
        logs = jax.nn.log_softmax(logits)[len(context) - 1 : -1]
        return float(logs[np.arange(len(rest)), np.array(rest)].sum())

    (found,) = limited.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]))
    assert found == pytest.approx(sum(cost(*window) for window in theirs), rel=1e-5)
    ((value, _),) = limited.loglikelihood(instances("loglikelihood", [(text, " and on")]))
    assert value == pytest.approx(cost(tokens[-10:], list(b" and on")), rel=1e-5)
    bare = XLSTM(run, batch_size=4, add_bos_token=False, progress=Progress(show=False))
    found = bare.loglikelihood(instances("loglikelihood", [("the sky is", " low"), ("", "low")]))
    assert found[0][0] == pytest.approx(cost(list(b"the sky is"), list(b" low")), rel=1e-5)
    assert found[1][0] == pytest.approx(cost([256], list(b"low")), rel=1e-5)
    assert XLSTM(run).max_length is None
    config = LlamaConfig(embedding_dim=16, num_blocks=1, vocab_size=320, context_length=12, head_dim=8)
    assert XLSTM(Run(run.path, 0, build_model(config), {}, run.tokenizer)).max_length == 12


def test_answers_are_kept_as_they_come_and_do_not_depend_on_the_batch(run: Run, model: XLSTM) -> None:
    class Kept(list):
        def add_partial(self, kind: str, arguments: tuple, answer: Any) -> None:
            self.append((kind, arguments, answer))

    alone = XLSTM(run, batch_size=1, progress=Progress(show=False))
    alone.set_cache_hook(kept := Kept())
    pairs = [("the sky is", " blue"), ("", "x"), ("one and one is", " two or three"), ("the sky is", " up")]
    settings = {"until": ["e"], "max_gen_toks": 6}
    for kind, arguments in (
        ("loglikelihood", pairs),
        ("generate_until", [("import", settings), ("a much longer prompt than that", settings)]),
    ):
        kept.clear()
        asked = instances(kind, arguments)
        one, several = getattr(alone, kind)(asked), getattr(model, kind)(asked[::-1])[::-1]
        assert sorted(map(str, kept)) == sorted(str((kind, a, b)) for a, b in zip(arguments, one, strict=True))
        if kind == "loglikelihood":
            for (nats, greedy), other in zip(one, several, strict=True):
                assert (pytest.approx(nats, rel=1e-5), greedy) == other
        else:
            assert one == several
            assert all("e" not in text for text in one)
