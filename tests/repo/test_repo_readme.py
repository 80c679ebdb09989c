"""The README is true: what it says to type is typed here or by CI, and what it says to write runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")

SMALL_MODEL = shlex.split("--embedding_dim 32 --num_blocks 1 --num_heads 2 --context_length 32 --warmup_steps 1")
SMALL_MIX = shlex.split("--embedding_dim 32 --num_blocks 2 --context_length 32 --warmup_steps 1")
SMALL_LLAMA = shlex.split("--embedding_dim 32 --num_blocks 1 --head_dim 16 --context_length 32 --warmup_steps 1")
SMALL_RUN = shlex.split("--batch_size 2 --steps 2 --eval_every 0 --eval_tokens 100")
SHORTER = {
    "xlstm train quickstart": [*SMALL_MODEL, *SMALL_RUN],
    "xlstm train quickstart_mixed": [*SMALL_MIX, *SMALL_RUN, "--sources", "my-texts", "--data.vocab_size", "512"],
    "xlstm train quickstart_llama": [*SMALL_LLAMA, *SMALL_RUN, "--sources", "my-texts", "--data.vocab_size", "512"],
    "xlstm train": ["--steps", "3"],
    "xlstm launch local": ["--steps", "4"],
    "xlstm plan xlstm_125m_7_1": ["--no-compile"],
    "xlstm plan mlstm_v1_7b": ["--no-compile"],
    "xlstm eval synthetic": shlex.split(
        "--steps 2 --models llama --train-lengths 3-10 --test-lengths 40-50 --test-rows 64"
    ),
    "xlstm eval table": shlex.split("--models lstm --seeds 0"),
    "xlstm check": shlex.split("--cell cross-entropy --dtype float32"),
    "xlstm generate runs": ["--max-tokens", "5"],
}
"""What is added to the README's commands here, so that they take seconds."""


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The code blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    """Every command line of the README."""
    for block in blocks("sh"):
        for line in block.splitlines():
            yield line.removeprefix(".venv/bin/")


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


def xlstm(command: str, folder: Path) -> str:
    """Type an `xlstm` command, made shorter."""
    more = SHORTER.get(max((start for start in SHORTER if command.startswith(start)), key=len, default=""), [])
    main = "import sys; from xlstm_jax.cli import main; sys.exit(main())"
    return run([sys.executable, "-c", main, *shlex.split(command)[1:], *more], folder).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's reader stands after `make quickstart`, with own text and a peer's weights."""
    place = tmp_path_factory.mktemp("reader")
    texts = place / "my-texts"
    texts.mkdir()
    for number, path in enumerate(sorted(Path(os.__file__).parent.glob("[a-c]*.py"))[:12]):
        (texts / f"{number}.txt").write_bytes(path.read_bytes())
    golden = dict(np.load(ROOT / "tests/golden/v2_headwise_loop.npz"))
    metadata = json.loads((ROOT / "tests/golden/v2_headwise_loop.json").read_text())
    metadata["config"]["vocab_size"] = golden["logits"].shape[-1]
    (place / "metadata.json").write_text(json.dumps(metadata))
    params = {name.removeprefix("param/"): value for name, value in golden.items() if name.startswith("param/")}
    np.savez(place / "params.npz", **params)
    xlstm("xlstm train quickstart --sources my-texts --data.vocab_size 512", place)
    return place


def test_every_command_is_typed_by_ci_or_here() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for command in commands():
        if command.startswith(("make ", "pip ")):
            in_ci = re.search(rf"^{re.escape(command)}(\s|$)", ci, re.MULTILINE)
            assert in_ci, f"{command} is not in .ci/run"
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif not command.startswith("pip "):
            assert command.startswith("xlstm ") or command == ". .venv/bin/activate"


@pytest.mark.long
@pytest.mark.slow
def test_the_commands_run_in_their_order(folder: Path) -> None:
    said = {command: xlstm(command, folder) for command in commands() if command.startswith("xlstm ")}
    assert len(said) >= 5
    assert (folder / "runs/mine/loss.png").stat().st_size > 1000
    last = [json.loads(line) for line in (folder / "runs/mine/metrics.jsonl").read_text().splitlines()][-1]
    assert last["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_code_runs(number: int, folder: Path) -> None:
    run([sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", blocks("python")[number]], folder)


SHORTER_SWEEP = """
import dataclasses, xlstm_jax
def shorter(name, full=xlstm_jax.get_preset):
    experiment = full(name)
    training = dataclasses.replace(experiment.training, steps=1, eval_tokens=100)
    model = dataclasses.replace(experiment.model, num_blocks=1)
    optimizer = dataclasses.replace(experiment.optimizer, warmup_steps=0)
    data = dataclasses.replace(experiment.data, sources=("my-texts",))
    return dataclasses.replace(experiment, training=training, model=model, optimizer=optimizer, data=data)
xlstm_jax.get_preset = shorter
"""


@pytest.mark.long
@pytest.mark.slow
def test_the_sweep_of_the_configuration_page_prints_a_score_for_each_run(folder: Path) -> None:
    (sweep,) = (block for block in blocks("python", "docs/configuration.md") if "for lr in" in block)
    said = run([sys.executable, "-c", SHORTER_SWEEP + sweep.replace("(0, 1)", "(1,)")], folder).stdout
    assert re.findall(r"^(\S+) (\d) \d+\.\d+$", said, re.MULTILINE) == [("0.003", "1"), ("0.01", "1")]


@pytest.mark.long
@pytest.mark.slow
def test_the_code_of_the_library_page_runs(folder: Path) -> None:
    code = "\n".join(blocks("python", "docs/library.md")).replace("runs/mine", "runs/listened")
    said = run([sys.executable, "-c", SHORTER_SWEEP + code], folder).stdout
    assert re.search(r"^1 \d+\.\d+$", said, re.MULTILINE), said


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall((ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_quickstart_is_what_it_says() -> None:
    from xlstm_jax.presets import get_preset

    quickstart, text = get_preset("quickstart"), " ".join((ROOT / "README.md").read_text().split())
    assert f"A model of {quickstart.model.num_blocks} mLSTM blocks" in text
    assert f"for {quickstart.training.steps} steps" in text


def test_the_configuration_page_has_every_config_of_the_presets() -> None:
    from xlstm_jax.presets import get_preset, preset_names

    def kinds(config: object) -> Iterator[str]:
        if dataclasses.is_dataclass(config):
            yield type(config).__name__
            for field in dataclasses.fields(config):
                yield from kinds(getattr(config, field.name))

    page = (ROOT / "docs/configuration.md").read_text()
    shown = set(re.findall(r"xlstm_jax\.[\w.]+\.(\w+)>?`", page))
    assert {kind for name in preset_names() for kind in kinds(get_preset(name))} <= shown
