"""What a word of a command line names: a run, a preset, a file with an experiment, a token store.

The rules are those of every verb. A word with a `/`, or that begins with a dot, is a path. Any other is a name: of a
preset, where the verb takes presets; else of what is here under that name; else of `runs/NAME` (`stores/NAME`). Case
and punctuation of a preset's name may differ, if nothing else has the name. Where an experiment is wanted, a word that
ends in .py or .json is a file with one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.cli.options import apply_options, named_fields
from xlstm_jax.config import ConfigError, from_json, near_miss
from xlstm_jax.runs.errors import RunNotFoundError
from xlstm_jax.runs.folder import RunFolder

if TYPE_CHECKING:
    from xlstm_jax.training.config import DataConfig, Experiment

RUNS, STORES = Path("runs"), Path("stores")


@dataclass
class Target:
    """An experiment, and where it is from."""

    experiment: Experiment
    name: str
    """That of the preset or the experiment's file, or the run's folder; empty if there is none."""
    run: Path | None = None
    """The run's folder, if it is that of a run."""
    note: str | None = None
    """What its giver should know, where the word could have meant something else."""
    preset: bool = False

    def changed(
        self, fields: Sequence[str], say: Callable[[str], None] = lambda sentence: None, begun: Path | None = None
    ) -> Experiment:
        """The experiment with fields changed as `cli.options` reads them; a store may be given by its name, and a
        shorter training has a shorter warm-up. `begun` is the run that goes on, of which the warm-up stays as it is."""
        named = named_fields(self.experiment, fields)
        usual = self.experiment if begun is None else _warmed_up_as(begun, self.experiment)
        follow = functools.partial(shorter_warm_up, usual, say, begun=begun)
        changed = apply_options(dataclasses.replace(self, experiment=usual)._with_room(named), fields, follow)
        before, data = self.experiment.data, changed.data
        if data.sources != before.sources and data.store == before.store and "data.store" not in named:
            data = dataclasses.replace(data, store=None)  # that of other sources
        if data.store is not None and data.store != before.store:
            data = dataclasses.replace(data, store=str(find_store(data.store)))
        if data.mixture or (data.store is not None and "data.sources" not in named):
            _refuse_preparing(before, data)
        return dataclasses.replace(changed, data=data)

    def on_mesh(self, words: str | None) -> Target:
        """With the mesh of words like "fsdp=4,tp=2"; as it is for None."""
        if words is None:
            return self
        from xlstm_jax.distributed.mesh import with_mesh  # which needs JAX

        model = dataclasses.replace(self.experiment.model, parallel=with_mesh(self.experiment.model.parallel, words))
        return dataclasses.replace(self, experiment=dataclasses.replace(self.experiment, model=model))

    def _with_room(self, named: set[str]) -> Experiment:
        """The experiment without the text that another takes the place of: a mixture that of sources or a store, or
        the other way round."""
        data, others = self.experiment.data, {"data.sources", "data.store"} & named
        sources = type(data)().sources
        if "data.mixture" in named:
            if "data.sources" in named:
                raise ConfigError("--mixture names the texts to learn from, and so does --sources; give one of them")
            data = dataclasses.replace(data, sources=sources, store=None)
        elif data.mixture and others:
            data = dataclasses.replace(data, sources=sources, mixture={})
        elif self.preset and others == {"data.store"}:
            data = dataclasses.replace(data, sources=sources)  # that store as it is, not one of the preset's text
        return dataclasses.replace(self.experiment, data=data)


def _refuse_preparing(before: DataConfig, data: DataConfig) -> None:
    """Refuse other values of what says how a text becomes a store, where stores are given that are made."""
    from xlstm_jax.data.prepare import PrepareConfig

    names = [field.name for field in dataclasses.fields(PrepareConfig) if field.name != "tokenizer"]
    if idle := [name for name in names if getattr(before, name) != getattr(data, name)]:
        raise ConfigError(
            f"--data.{idle[0]} says how a text becomes a token store, but the one to learn from is made already; "
            "`xlstm data prepare` takes it, or give --sources"
        )


def _warmed_up_as(begun: Path, experiment: Experiment) -> Experiment:
    """The experiment with the warm-up and cool-down of a run, where those are shorter, as of a run that was begun with
    few steps."""
    from xlstm_jax.training.config import Experiment

    own, optimizer = RunFolder(begun).read_config(Experiment).optimizer, experiment.optimizer
    warmup = min(own.warmup_steps, optimizer.warmup_steps)
    cooldown = min(own.cooldown_steps, optimizer.cooldown_steps)
    optimizer = dataclasses.replace(optimizer, warmup_steps=warmup, cooldown_steps=cooldown)
    return dataclasses.replace(experiment, optimizer=optimizer)


def shorter_warm_up(
    experiment: Experiment,
    say: Callable[[str], None],
    value: Callable[[str], Any],
    given: set[str],
    begun: Path | None = None,
) -> dict[str, Any]:
    """Warm-up and cool-down in the share of the steps that they had, where fewer steps alone were asked for.

    Raises:
        ConfigError: for a run that has begun already.
    """
    names = ("optimizer.warmup_steps", "optimizer.cooldown_steps")
    asked, usual = value("training.steps"), experiment.training.steps
    if "training.steps" not in given or given & set(names) or not 0 < asked < sum(map(value, names)):
        return {}
    if begun is not None:
        raise ConfigError(
            f"training.steps is {asked}, but must be >= {sum(map(value, names))}, the warm-up and cool-down that "
            f"{begun} was begun with; a new run, or a copy by --fork NAME, can have others"
        )
    shorter = {name: value(name) * asked // usual for name in names}
    for name, steps in shorter.items():
        if steps != value(name):
            say(f"note: {name} is {steps} of {asked} steps, since it is {value(name)} of {usual}")
    return shorter


def is_name(word: str) -> bool:
    """Whether a word is a name rather than a path.

    Raises:
        ConfigError: if it is empty, as an unset variable of a shell is: the path that it makes is the folder we are in.
    """
    if not word.strip():
        raise ConfigError(f"{word!r} is neither a name nor a path")
    path = Path(word)
    return len(path.parts) == 1 and not path.is_absolute() and not word.startswith(".")


def run_path(word: str) -> Path:
    """The folder of a run to be made: `runs/NAME` for a name, else the path."""
    return RUNS / word if is_name(word) else Path(word)


def existing_run(word: str) -> Path | None:
    """The folder of the run that a word names, if there is one."""
    places = (Path(word), run_path(word))
    return next((place for place in places if RunFolder(place).exists), None)


def find_run(word: str) -> Path:
    """The folder of the run that a word names.

    Raises:
        RunNotFoundError: if there is none; it names the near miss, or the preset that is called so.
    """
    if (run := existing_run(word)) is not None:
        return run
    if RunFolder(word).published:
        RunFolder.open(word)  # which tells what to do with it
    try:
        return RunFolder.open(run_path(word)).path
    except RunNotFoundError as error:
        from xlstm_jax.presets import find_preset

        preset = find_preset(word)
        hint = f"; {preset} is a preset, which `xlstm train {preset}` makes a run of" if preset else _near_run(word)
        raise RunNotFoundError(f"{error}{hint}") from None


def find_weights(word: str) -> Path:
    """The file or folder with weights, or the run, that a word names.

    Raises:
        ConfigError: if there is none.
    """
    path = Path(word)
    found = path if word.strip() and path.exists() else existing_run(word)
    if found is None:
        raise ConfigError(f"there is neither a file or folder {path} nor a run {run_path(word)}{_near_run(word)}")
    return found


def find_store(word: str) -> Path:
    """The folder of the token store that a word names; whether it is one is seen when it is opened."""
    path = Path(word)
    return STORES / word if is_name(word) and not path.exists() and (STORES / word).exists() else path


def find_experiment(word: str) -> Target:
    """The experiment that a word names: a preset's, a run's or a file's.

    Raises:
        ConfigError: if it names none, or a file that holds none.
        RunError: for a run that is not there or cannot be read.
    """
    # Here, because what follows needs JAX, which those that only look for a run or a store may do without.
    from xlstm_jax.cli.experiment_file import experiment_from_file
    from xlstm_jax.presets import find_preset, get_preset, preset_names
    from xlstm_jax.training.config import Experiment

    if Path(word).suffix == ".py":
        return Target(experiment_from_file(Path(word)), Path(word).stem)
    if Path(word).suffix == ".json":
        return _from_json_file(Path(word))
    run = existing_run(word)
    if word in preset_names():
        both = f"{word} is the name of a preset and of the run {run}: the preset is taken" if run else None
        if run is not None and run == Path(word):
            both = f"{both}; ./{word} means the run"
        return Target(get_preset(word), word, note=both, preset=True)
    if run is not None:
        return Target(RunFolder(run).read_config(Experiment), str(run), run)
    if (preset := find_preset(word)) is not None:
        return Target(get_preset(preset), preset, preset=True)
    if not is_name(word) or RunFolder(word).published:
        RunFolder.open(word)  # which tells what is wrong
    raise ConfigError(
        f"{word!r} is neither a preset{near_miss(word, preset_names())} nor a run{_near_run(word)}; presets are "
        f"{', '.join(preset_names())}"
    )


def _near_run(word: str) -> str:
    runs = [place.name for place in RUNS.iterdir() if RunFolder(place).exists] if RUNS.is_dir() else []
    return near_miss(Path(word).name, runs)


def _from_json_file(path: Path) -> Target:
    """The experiment of a JSON file such as a run's config.json: for a new run, which may learn from a new text."""
    from xlstm_jax.training.config import Experiment

    try:
        experiment = from_json(Experiment, json.loads(path.read_bytes()), "experiment")
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from error
    data = dataclasses.replace(experiment.data, fingerprint=None)
    # The config of a run has the name of every other.
    name = "" if path.name == "config.json" else path.stem
    return Target(dataclasses.replace(experiment, data=data), name)
