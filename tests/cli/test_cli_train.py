"""`xlstm train`: every field has an option, every mistake a sentence."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import Literal

import pytest
from training_helpers import write_corpus

from xlstm_jax.cli import main
from xlstm_jax.cli.field_help import fields_help
from xlstm_jax.cli.names import find_experiment
from xlstm_jax.cli.options import apply_options, field_paths
from xlstm_jax.cli.train import parse
from xlstm_jax.config import Config, ConfigError, to_json
from xlstm_jax.presets import get_preset, preset_names
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import Experiment


def leaves(value: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, inner in value.items():
        found |= leaves(inner, f"{prefix}{name}.") if isinstance(inner, dict) and inner else {f"{prefix}{name}"}
    return found


CELL = "model.mlstm_block.mlstm.mlstm_cell"


def test_every_field_has_an_option() -> None:
    experiment = get_preset("quickstart")
    fields = leaves(to_json(experiment))
    paths = field_paths(experiment)
    assert fields <= set(paths)
    assert len(fields) > 80
    assert not any(path.rpartition(".")[2].startswith("_") for path in paths)


@pytest.mark.parametrize("name", preset_names())
def test_no_options_leave_a_preset_as_it_is(name: str) -> None:
    assert apply_options(get_preset(name), []) == get_preset(name)


@pytest.mark.parametrize(
    ("options", "path", "value"),
    [
        (["--steps", "7", "--warmup_steps=3"], "training.steps", 7),
        (["--training.steps=70"], "training.steps", 70),
        (["--lr", "1e-4"], "optimizer.lr", 1e-4),
        (["--optimizer.grad-clip-norm", "None"], "optimizer.grad_clip_norm", None),
        (["--betas", "0.8", "0.9"], "optimizer.betas", (0.8, 0.9)),
        (["--sources", "a", "b*.txt"], "data.sources", ("a", "b*.txt")),
        (["--num_heads", "8"], "model.mlstm_block.mlstm.num_heads", 8),
        (["--dropout", "0.1"], "model.dropout", 0.1),
        (
            ["--igate_bias_init_range", "-3", "3"],
            "model.mlstm_block.mlstm.mlstm_cell.igate_bias_init_range",
            (-3.0, 3.0),
        ),
        (["--scan_blocks", "True"], "model.scan_blocks", True),
        (["scan_blocks=true"], "model.scan_blocks", True),
        (["training.steps=70", "steps=71"], "training.steps", 71),
        (["--lr", ".5"], "optimizer.lr", 0.5),
        (["--sources", "a", "b=c", "steps=99"], "data.sources", ("a", "b=c")),
        (["--sources", "a", "b=c", "steps=99"], "training.steps", 99),
        (["--tokenizer", "123"], "data.tokenizer", "123"),
        (["--data.store", "None"], "data.store", None),
        (["model.slstm_block={}", "slstm_at=all"], "model.slstm_at", "all"),
        (["model.slstm_block={}", "model.slstm_block.slstm.num_heads=2"], "model.slstm_block.slstm.num_heads", 2),
        (["model.slstm_block={}", "model.slstm_block=null"], "model.slstm_block", None),
        (["backend.name=chunkwise", "backend.kwargs.chunk_size=32"], f"{CELL}.backend.kwargs", {"chunk_size": 32}),
        (['kwargs={"eps": 1e-5}'], f"{CELL}.backend.kwargs", {"eps": 1e-5}),
        (
            ["model.parallel={}", "--remat", "mLSTMBlock", "FFNResBlock"],
            "model.parallel.remat",
            ["mLSTMBlock", "FFNResBlock"],
        ),
    ],
)
def test_options_reach_their_fields(options: list[str], path: str, value: object) -> None:
    inner: object = apply_options(get_preset("quickstart"), options)
    for name in path.split("."):
        inner = getattr(inner, name)
    assert inner == value


def test_set_switches_sub_configs_off_and_on_and_reaches_any_field() -> None:
    preset = get_preset("quickstart")
    off = apply_options(preset, ["--set", "model.mlstm_block.feedforward=null"])
    assert off.model.mlstm_block is not None
    assert off.model.mlstm_block.feedforward is None
    on = apply_options(
        off, ['--set=model.mlstm_block.feedforward={"proj_factor": 2.0}', "--set", "data.tokenizer=bytes"]
    )
    assert on.model.mlstm_block is not None
    assert on.model.mlstm_block.feedforward is not None
    assert on.model.mlstm_block.feedforward.proj_factor == 2.0
    assert on.data.tokenizer == "bytes"
    assert preset == get_preset("quickstart")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--stepz", "3"], ["no field 'stepz'", "did you mean 'steps'"]),
        (["--training.stepz", "3"], ["no field 'training.stepz'", "did you mean 'training.steps'"]),
        (["--model.num_head", "3"], ["no field 'model.num_head'", "did you mean 'num_heads'"]),
        (["--seq_len", "long"], ["training.seq_len is 'long', but must be a whole number or None"]),
        (["--grad_clip_norm=off"], ["optimizer.grad_clip_norm is 'off', but must be a number or None"]),
        (["--steps", "many"], ["training.steps is 'many'", "a whole number"]),
        (["--lr", "-1"], ["OptimizerConfig.lr is -1.0", "> 0"]),
        (["--schedule", "cosin"], ["optimizer.schedule is 'cosin'", "'cosine', 'linear'", "did you mean 'cosine'"]),
        (["--seed", "3"], ["--data.seed or --training.seed"]),
        (["--scan_blocks", "yes"], ["model.scan_blocks is 'yes'", "true or false"]),
        (["--set", "training.steps"], ["PATH=JSON"]),
        (["--set", "training.stepz=3"], ["no field 'training.stepz'", "did you mean 'training.steps'"]),
        (["trainin.steps=3"], ["no field 'trainin.steps'", "did you mean 'training.steps'"]),
        (["training.steps=true"], ["training.steps is True", "a whole number"]),
        (["model.slstm_block.x=1"], ["model.slstm_block is off", "model.slstm_block={} switches it on"]),
        (["slstm_block.slstm.num_heads=2"], ["model.slstm_block is off", "model.slstm_block={} switches it on"]),
        (["model.slstm_block=on"], ["model.slstm_block is 'on'", "sLSTMBlockConfig or None"]),
        (['model.slstm_block={"slstmm": 1}'], ["model.slstm_block has no field 'slstmm'", "did you mean 'slstm'"]),
        (["--betas", "1"], ["optimizer.betas is 1", "two numbers"]),
        (["--steps"], ["--training.steps needs a value"]),
        (["--set"], ["--set needs a value"]),
        (["steps", "3"], ["'steps' names no field", "PATH=VALUE"]),
        (["optimizer.name=adan"], ["optimizer.name is 'adan'"]),
    ],
)
def test_wrong_options_name_the_field_the_value_and_what_would_do(options: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        apply_options(get_preset("quickstart"), options)
    for part in parts:
        assert part in str(error.value)


def test_a_call_is_taken_apart() -> None:
    call = parse(["tiny", "--steps", "5", "--run=x", "--set", "a=1", "--set=b=2", "--fork", "y"])
    assert (call.target, call.run, call.fork, call.help) == ("tiny", "x", "y", False)
    assert call.fields == ["--steps", "5", "--set", "a=1", "--set=b=2"]
    with pytest.raises(ConfigError, match="--run needs a value"):
        parse(["tiny", "--run"])
    with pytest.raises(ConfigError, match="takes a preset, a run or a file first"):
        parse(["--steps", "5"])


def test_help_lists_presets_main_options_and_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in preset_names():
        assert f"\n  {name} " in shown
    for part in (
        "--run NAME|PATH",
        "--fork NAME",
        "PATH=VALUE",
        "--steps N",
        "--training.steps",
        "Rows in one step",
    ):
        assert part in shown
    assert shown.index("presets:") < shown.index("often used") < shown.index("--training.batch_size")


@dataclasses.dataclass
class One(Config):
    name: Literal["one"] = "one"
    lr: float = 1.0
    own: int = 3


@dataclasses.dataclass
class Two(Config):
    name: Literal["two"] = "two"
    lr: float = 2.0


@dataclasses.dataclass
class Either(Config):
    optimizer: One | Two = dataclasses.field(default_factory=One)


def test_the_name_of_one_of_several_configs_switches_to_it_and_keeps_what_both_have() -> None:
    changed = apply_options(Either(One(lr=0.5)), ["optimizer.name=two"])
    assert changed.optimizer == Two(lr=0.5)
    assert apply_options(changed, ['optimizer={"name": "one"}', "own=4"]).optimizer == One(own=4)
    with pytest.raises(ConfigError, match=r"no field 'own'"):
        apply_options(changed, ["own=4"])
    with pytest.raises(ConfigError, match=r"optimizer.name is 'twe', but must be one of 'one', 'two'.*'two'"):
        apply_options(changed, ['optimizer={"name": "twe"}'])


def test_options_do_not_change_what_they_are_applied_to() -> None:
    preset = get_preset("quickstart")
    apply_options(preset, ["backend.name=chunkwise", "backend.kwargs.chunk_size=32", "sample_prompts=[]"])
    assert preset == get_preset("quickstart")


@pytest.mark.parametrize("columns", ["40", "80", "100", "300"])
def test_help_lists_every_field_with_what_it_takes_and_the_value_that_holds(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    experiment = get_preset("quickstart_mixed")
    lines = fields_help(experiment).split("\n")
    options = {line.split()[0][2:]: (line, text) for line, text in itertools.pairwise(lines) if line.startswith("  --")}
    whole = {
        path for path in field_paths(experiment) if not any(p.startswith(f"{path}.") for p in field_paths(experiment))
    }
    assert set(options) == whole
    for path, value, parts in (
        ("optimizer.lr", "0.003", ["a number > 0. Learning rate at its peak."]),
        ("optimizer.schedule", "cosine", ["one of 'cosine', 'linear', 'exponential'"]),
        ("training.seq_len", "null", ["a whole number >= 1 and < 2**31 or None"]),
        (f"{CELL}.num_heads", "4", ["(from model.mlstm_block.mlstm.num_heads)", "whole number >= -1"]),
        (f"{CELL}.embedding_dim", "256", ["(from model.embedding_dim)", "a whole number"]),
        ("model.slstm_block.slstm.dtype", "float32", ["(from model.dtype)", "'float32'"]),
        ("model.slstm_block.feedforward.embedding_dim", "256", ["(from model.embedding_dim)"]),
        ("model.slstm_block.slstm.slstm_cell.reset_at_document_boundaries", "true", ["(from model)", "true or false"]),
    ):
        assert options[path][0].startswith(f"  --{path} {value}")
        for part in parts:
            assert part in " ".join(options[path])
    assert "(from" not in "".join(options["model.dtype"])
    assert max(map(len, lines)) <= min(max(int(columns), 80), 120)


def test_help_of_a_target_shows_its_values_with_the_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "steps=77", "--help"]) == 0
    assert "\n  --training.steps 77\n      a whole number >= 1 and < 2**31\n" in capsys.readouterr().out
    assert main(["plan", "tiny", "--steps", "78", "-h"]) == 0
    assert "--training.steps 78\n" in capsys.readouterr().out


def test_what_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for target, sentence in (
        ("tiny --run ./file", "file is a file, but a run is a folder"),
        ("tiny --run ./file/new", "file/new cannot be made"),
        ("' '", "' ' is neither a name nor a path"),
        ("quikstart", "'quikstart' is neither a preset (did you mean 'quickstart'?) nor a run"),
        ("runs/nothing", "there is no run runs/nothing"),
        ("tiny --data.store nowhere", "there is no token store at nowhere"),
    ):
        assert main(["train", *shlex.split(target)]) in (1, 2)
        shown = capsys.readouterr().err
        assert sentence in shown
        assert "Traceback" not in shown


def test_a_model_is_trained_from_the_command_line_and_told_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "text")
    small = ["--embedding_dim", "16", "--num_blocks", "1", "--context_length", "16", "--steps", "6"]
    small += ["--checkpoint_every", "3", "--validation_fraction", "0.2", "--sources", "text"]
    assert main(["train", "tiny", *small]) == 0
    shown = capfd.readouterr().out
    for part in ("step 6/6", "bits per byte on", "unigram bytes", "gzip -9", "xz -9", "the run is in runs/tiny"):
        assert part in shown
    run = RunFolder("runs/tiny")
    assert run.read_config(Experiment).training.steps == 6
    assert (run.path / "report.json").exists()

    assert main(["train", "tiny", *small]) == 0
    assert "runs/tiny is finished: it has made 6 of 6 steps" in capfd.readouterr().out
    assert main(["train", "runs/tiny", "--lr", "0.5"]) == 2
    shown = capfd.readouterr().err
    assert "optimizer.lr is 0.01 in the run and 0.5 now" in shown
    assert "--fork NAME" in shown
    assert main(["train", "runs/tiny", "--fork", "copy", "--data.store", "mistyped"]) == 1
    assert "there is no token store at mistyped" in capfd.readouterr().err
    assert not RunFolder("runs/copy").path.exists()
    assert not Path("mistyped").exists()
    assert main(["train", "runs/tiny", "--fork", "copy", "--lr", "0.5", "--steps", "7"]) == 0
    assert RunFolder("runs/copy").metrics().read()[-1]["step"] == 7
    assert RunFolder("runs/tiny").metrics().read()[-1]["step"] == 6


def test_fewer_steps_have_a_shorter_warm_up_unless_it_was_given() -> None:
    said: list[str] = []
    changed = find_experiment("quickstart").changed(["--steps", "20"], said.append)
    assert (changed.training.steps, changed.optimizer.warmup_steps) == (20, 3)
    assert said == ["note: optimizer.warmup_steps is 3 of 20 steps, since it is 40 of 240"]
    assert find_experiment("tiny").changed(["steps=1"]).optimizer.warmup_steps == 0
    assert find_experiment("quickstart").changed(["--steps", "100"]).optimizer.warmup_steps == 40
    with pytest.raises(ConfigError, match=r"warmup_steps is 30, .* = 20; give both"):
        find_experiment("quickstart").changed(["--steps", "20", "--warmup_steps", "30"])


def test_a_run_keeps_the_warm_up_that_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    target = find_experiment("tiny")
    short = target.changed(["--steps", "2"])
    RunFolder("runs/tiny").create().write_config(short)
    begun = Path("runs/tiny")
    assert target.changed([], begun=begun).optimizer == short.optimizer
    assert target.changed(["--steps", "200"], begun=begun).optimizer == short.optimizer
    assert target.changed(["--warmup_steps", "4"], begun=begun).optimizer.warmup_steps == 4
    RunFolder("runs/tiny").write_config(get_preset("tiny"))
    for words in (["tiny"], ["runs/tiny"], ["runs/tiny/config.json", "--run", "tiny"]):
        assert main(["train", *words, "--steps", "3"]) == 2
        shown = capsys.readouterr().err
        assert "training.steps is 3, but must be >= 5" in shown
        assert "runs/tiny was begun with; a new run, or a copy by --fork NAME" in shown
    assert RunFolder("runs/tiny").read_config(Experiment) == get_preset("tiny")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning-rate", "1e-3"], "the learning rate at its peak is --lr"),
        (["--epochs", "3"], "length of a training is --steps"),
        (["--d_model=64"], "--embedding_dim"),
        (["--save_steps", "10"], "are --checkpoint_every"),
        (["--bf16"], "is --model.dtype"),
    ],
)
def test_names_of_other_trainers_are_told_in_ours(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        apply_options(get_preset("tiny"), words)


@pytest.mark.parametrize("option", ["--run", "--fork"])
def test_an_empty_name_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", option, " "]) == 2
    assert f"{option} is ' ', but must be the name" in capsys.readouterr().err
