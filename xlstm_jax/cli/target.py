"""What a command line starts from: a preset by name, or a run by its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.presets import find_preset, get_preset, preset_names
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import Experiment

RUNS = Path("runs")


@dataclass
class Target:
    """An experiment, and where it is from."""

    experiment: Experiment
    preset: str | None = None
    """The preset's listed name."""
    run: Path | None = None
    """The run's folder."""

    @property
    def name(self) -> str:
        """The preset's name or the run's folder."""
        return self.preset or str(self.run)


def find_target(word: str) -> Target:
    """The preset, or the run, that a word names; a run comes before another spelling of a preset's name.

    Raises:
        ConfigError: if it is neither.
        RunError: for a run that is not there or cannot be read.
    """
    preset = find_preset(word)
    if word not in preset_names() and (RunFolder(word).exists or (preset is None and len(Path(word).parts) > 1)):
        run = RunFolder.open(word)
        return Target(run.read_config(Experiment), run=run.path)
    if preset is not None:
        return Target(get_preset(preset), preset=preset)
    hint = f" (there is a run {RUNS / word})" if RunFolder(RUNS / word).exists else ""
    raise ConfigError(
        f"{word!r} is neither a preset{near_miss(word, preset_names())} nor a run{hint}; presets are "
        f"{', '.join(preset_names())}"
    )


def take_values(words: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words without the options of these names, and these with their values (`--name VALUE`, `--name=VALUE`).

    Raises:
        ConfigError: for one without a value.
    """
    others: list[str] = []
    taken = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name not in names:
            others.append(word)
            continue
        if not equals and not rest:
            raise ConfigError(f"{name} needs a value after it")
        taken.append((name, value if equals else rest.pop(0)))
    return others, taken
