"""One rule for what a word names: a run, a preset, a file with an experiment, a token store."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from training_helpers import write_corpus

from xlstm_jax.cli import main
from xlstm_jax.cli.names import existing_run, find_experiment, find_run, find_store, find_weights, run_path
from xlstm_jax.config import ConfigError
from xlstm_jax.presets import get_preset
from xlstm_jax.runs.errors import RunNotFoundError
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import DataConfig, Experiment

PREAMBLE = """
import dataclasses
from xlstm_jax.presets.quickstart import quickstart, tiny
from xlstm_jax.training.config import Experiment, OptimizerConfig

"""
GOOD = """
def mine() -> Experiment:
    experiment = tiny()
    return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, steps=33))
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_run(path: str, steps: int = 60) -> Path:
    training = dataclasses.replace(get_preset("tiny").training, steps=steps)
    run = RunFolder(path).create()
    run.write_config(dataclasses.replace(get_preset("tiny"), training=training))
    return run.path


def write(name: str, text: str) -> str:
    Path(name).write_text(PREAMBLE + text)
    return name


def test_a_name_stands_for_what_is_here_and_then_for_a_folder_under_runs() -> None:
    assert (run_path("x"), run_path("a/x"), run_path("./x")) == (Path("runs/x"), Path("a/x"), Path("x"))
    inner = make_run("runs/x")
    assert find_run("x") == find_run("runs/x") == find_weights("x") == inner
    assert find_experiment("x").run == inner
    assert existing_run("./x") is None
    here = make_run("x", steps=70)
    assert find_run("x") == find_run("./x") == find_weights("x") == here
    assert find_experiment("x").experiment.training.steps == 70
    assert find_run(str(here.resolve())) == here.resolve()


def test_a_store_may_be_named_too() -> None:
    assert find_store("mine") == Path("mine")
    Path("stores/mine").mkdir(parents=True)
    assert find_store("mine") == Path("stores/mine")
    assert find_store("./mine") == find_store("other/mine").parent.parent / "mine"
    changed = find_experiment("tiny").changed(["--data.store", "mine", "steps=7"])
    assert (changed.data.store, changed.training.steps) == ("stores/mine", 7)
    # A preset's own text is not what a named store is to be made of.
    assert find_experiment("shakespeare").changed(["--data.store", "mine"]).data.sources == DataConfig().sources
    Path("mine").mkdir()
    assert find_store("mine") == Path("mine")


def test_a_preset_comes_before_a_run_of_its_name_and_that_is_told() -> None:
    assert find_experiment("tiny").note is None
    make_run("runs/tiny", steps=70)
    found = find_experiment("tiny")
    assert (found.experiment, found.name, found.run) == (get_preset("tiny"), "tiny", None)
    assert found.note == "tiny is the name of a preset and of the run runs/tiny: the preset is taken"
    assert find_experiment("runs/tiny").experiment.training.steps == 70
    assert find_run("tiny") == Path("runs/tiny")
    make_run("tiny")
    assert "of the run tiny: the preset is taken; ./tiny means the run" in str(find_experiment("tiny").note)


def test_a_run_comes_before_another_spelling_of_a_preset() -> None:
    assert find_experiment("mLSTM_165M").name == "mlstm_165m"
    make_run("runs/mLSTM_165M")
    assert find_experiment("mLSTM_165M").name == "runs/mLSTM_165M"


def test_what_is_not_there_is_told_with_the_near_miss_among_runs_and_presets() -> None:
    make_run("runs/mine")
    for word, sentence in (
        ("mime", "'mime' is neither a preset nor a run (did you mean 'mine'?); presets are quickstart, "),
        ("quikstart", "'quikstart' is neither a preset (did you mean 'quickstart'?) nor a run; presets are "),
    ):
        with pytest.raises(ConfigError) as error:
            find_experiment(word)
        assert sentence in str(error.value)
    for word, sentence in (
        ("mime", "there is no run runs/mime (runs in runs: mine) (did you mean 'mine'?)"),
        ("runs/mime", "there is no run runs/mime (runs in runs: mine)"),
        ("quickstart", "; quickstart is a preset, which `xlstm train quickstart` makes a run of"),
    ):
        with pytest.raises(RunNotFoundError) as missing:
            find_run(word)
        assert sentence in str(missing.value)
    with pytest.raises(
        ConfigError, match=r"neither a file or folder mime nor a run runs/mime \(did you mean 'mine'\?\)"
    ):
        find_weights("mime")
    with pytest.raises(RunNotFoundError, match="there is no run other/x"):
        find_experiment("other/x")


@pytest.mark.parametrize("find", [find_run, find_experiment, find_weights, find_store, run_path])
@pytest.mark.parametrize("word", ["", " "])
def test_an_empty_word_is_not_the_folder_we_are_in(find: Callable[[str], object], word: str) -> None:
    RunFolder(".").write_config({})
    with pytest.raises(ConfigError, match=f"^'{word}' is neither a name nor a path$"):
        find(word)


def test_every_verb_knows_a_run_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    (make_run("runs/mine") / "checkpoints").mkdir()
    assert main(["plan", "mine", "--no-compile", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "runs/mine"
    # Each finds the run, and then what is wrong with it or the call.
    for argv, sentence in (
        (["generate", "mine", "--prompt", "x"], "runs/mine has no tokenizer"),
        (["convert", "mine", "out"], "xLSTMLMModelConfig.vocab_size is -1"),
        (["train", "mine", "--run", "b"], "mine is a run itself"),
    ):
        assert main(argv) in (1, 2)
        assert sentence in capsys.readouterr().err


def test_an_experiment_comes_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    found = find_experiment(write("mine.py", GOOD))
    assert (found.experiment.training.steps, found.name, found.run) == (33, "mine", None)
    write(
        "named.py",
        GOOD + "\ndef other() -> Experiment:\n    return quickstart()\n\ndef experiment():\n    return mine()\n",
    )
    assert find_experiment("named.py").experiment.training.steps == 33
    write("quoted.py", '\ndef mine(steps=3) -> "Experiment":\n    return tiny()\n\ndef _hidden() -> Experiment: ...\n')
    assert find_experiment("quoted.py").experiment == get_preset("tiny")
    Path("beside.py").write_text("STEPS = 44\n")
    write("uses.py", "import beside\n" + GOOD.replace("33", "beside.STEPS"))
    assert find_experiment("uses.py").experiment.training.steps == 44
    assert main(["plan", "mine.py", "--no-compile", "--json", "batch_size=2"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 33


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def mine(:\n", "wrong.py, line 6: "),
        ("x = 1\nimport nowhere\n", "wrong.py, line 7: ModuleNotFoundError: No module named 'nowhere'"),
        ("x = 1 / 0\n", "wrong.py, line 6: ZeroDivisionError: division by zero"),
        (
            "def experiment():\n    x = 1\n    return OptimizerConfig(lr=-1.0)\n",
            "wrong.py, line 8: OptimizerConfig.lr is -1.0, but must be a number > 0",
        ),
        (
            "def experiment():\n    return 3\n",
            "wrong.py, line 6: experiment() returned 3, but must return an Exp",
        ),
        (
            "def experiment(size): ...\n",
            "wrong.py, line 6: experiment() is called without arguments, but needs size",
        ),
        ("x = 1\n", "wrong.py must have one public function that is annotated `-> Experiment`"),
        (GOOD + "\ndef two() -> Experiment: ...\n", "but has several: mine, two"),
        ("import sys\nsys.exit()\n", "wrong.py, line 7: SystemExit: it gave up"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence_with_its_place(
    text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("wrong.py", text)
    for verb in ("train", "plan"):
        assert main([verb, "wrong.py"]) == 2
        shown = capsys.readouterr().err
        assert sentence in shown
        assert shown.count("\n") == 1


def test_an_experiment_comes_from_the_config_of_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("runs/a", steps=70)
    experiment = RunFolder(run).read_config(Experiment)
    data = dataclasses.replace(experiment.data, fingerprint="of the text of a")
    RunFolder(run).write_config(dataclasses.replace(experiment, data=data))
    found = find_experiment("runs/a/config.json")
    assert (found.experiment, found.name, found.run) == (experiment, "", None)
    (run / "config.json").rename("small.json")
    assert find_experiment("small.json").name == "small"
    assert main(["plan", "small.json", "--no-compile", "--json"]) == 0
    capsys.readouterr()
    Path("broken.json").write_text("{")
    Path("other.json").write_text('{"model": {}, "trainin": {}}')
    Path("config.json").write_text(Path("small.json").read_text())
    for argv, sentence in (
        (["train", "broken.json"], "broken.json is not JSON ("),
        (
            ["train", "other.json"],
            "other.json cannot be used: experiment has no field 'trainin' (did you mean 'training'?",
        ),
        (["train", "nowhere.json"], "nowhere.json"),
        (["train", "nowhere.py"], "there is no file nowhere.py"),
        (["train", "./config.json"], "config.json gives no name to the new run; --run NAME does"),
    ):
        assert main(argv) in (1, 2)
        shown = capsys.readouterr().err
        assert sentence in shown
        assert shown.count("\n") == 1


def test_a_file_and_then_the_config_of_its_run_are_trained(capfd: pytest.CaptureFixture[str]) -> None:
    write_corpus(Path("text"))
    write("mine.py", GOOD)
    small = ["embedding_dim=16", "num_blocks=1", "context_length=16", "steps=5", "validation_fraction=0.2"]
    assert main(["train", "mine.py", *small, "--sources", "text"]) == 0
    assert "the run is in runs/mine" in capfd.readouterr().out
    assert main(["train", "runs/mine/config.json", "--run", "b"]) == 0
    assert "the run is in runs/b" in capfd.readouterr().out
    assert RunFolder("runs/b").read_config(Experiment) == RunFolder("runs/mine").read_config(Experiment)
    losses = [
        [line["loss"] for line in RunFolder(f"runs/{name}").metrics().read() if "loss" in line]
        for name in ("mine", "b")
    ]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]
