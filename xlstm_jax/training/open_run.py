"""From a run folder and an experiment to everything that a training loop needs, or to one sentence why not.

In three parts: `inspect` reads the folder, `agree` decides by what was read, `act` does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import TOKENIZER_FOLDER, TokenStore
from xlstm_jax.data.tokenizers import Tokenizer, load_tokenizer
from xlstm_jax.distributed.placement import Placement
from xlstm_jax.distributed.processes import ALONE, Processes
from xlstm_jax.files import bytes_in_words
from xlstm_jax.machine.memory import machine_memory
from xlstm_jax.machine.progress import Waiting, silently
from xlstm_jax.models.language_model import LanguageModel
from xlstm_jax.models.stack import spans
from xlstm_jax.runs.checkpoints import DAMAGED_FOLDER, Checkpoints
from xlstm_jax.runs.difference import refuse_differences
from xlstm_jax.runs.errors import DamagedRunError, NoCheckpointError
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.runs.storage import bytes_needed
from xlstm_jax.scoring.score import Scorer
from xlstm_jax.training.build import build, fresh_state, refuse_lost_precision
from xlstm_jax.training.config import Experiment, with_vocabulary
from xlstm_jax.training.errors import TrainingError, WrongStoreError
from xlstm_jax.training.layout import place, placed
from xlstm_jax.training.optimizers import Optimizer, learning_rate
from xlstm_jax.training.run_store import open_together, own_store
from xlstm_jax.training.step import TrainState

MAY_CHANGE = (
    "data.store",
    "data.mixture",
    "training.steps",
    "training.eval_every",
    "training.eval_tokens",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.skip_not_finite",
    "training.silent_seconds",
    "training.stuck_seconds",
    "training.sample_prompts",
    "model.parallel",
)
"""What a run may be continued with that it was not begun with: its length, its logging, its checkpoints, its paths, the
devices it runs on."""

CONFIG_MAY_DIFFER = (*MAY_CHANGE, "data.fingerprint")
"""What config.json may say otherwise than the newest checkpoint: a copy learns its store's fingerprint when it is first
trained, and a fingerprint is compared with the store's."""

LOADER_BYTES = 15
"""A token of a batch takes while it is read: three times 32 bits, for what was read, the inputs and the targets, and
three masks."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Facts:
    """What a run's folder holds, so far as it decides how training may go on."""

    run: RunFolder
    recorded: Experiment | None
    """What config.json says; None for a run that has not begun."""
    converted: bool
    """Whether its newest checkpoint holds weights that were trained elsewhere, and nothing else."""
    tokenizer: Tokenizer | None
    has_checkpoint: bool
    """Whether there is a complete checkpoint."""
    lost: Path | None
    """The newest of its damaged checkpoints, where there is no complete one."""


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready to train: its lock must be held by whoever uses this."""

    run: RunFolder
    experiment: Experiment
    store: TokenStore
    model: LanguageModel
    optimizer: Optimizer
    placement: Placement
    scorer: Scorer
    checkpoints: Checkpoints
    state: TrainState
    step: int
    """Steps made so far."""
    tokens_seen: int
    """Targets learnt from so far."""
    processes: Processes = ALONE
    """That train it together."""


def open_run(
    run: RunFolder, experiment: Experiment, say: Say, waiting: Waiting = silently, processes: Processes = ALONE
) -> OpenRun:
    """Check the experiment against the run, open its data and restore its newest good checkpoint, or start afresh.

    Args:
        processes: that do so together; the leader alone writes to the folder, and holds its lock.

    Raises:
        ConfigChangedError: if the run was begun with values that may not change.
        WrongStoreError: if the token store is not the run's.
        TrainingError: if the run holds converted weights; a fork of it can be trained.
        DiskFullError: if the disk has no room for the checkpoints to come.
        NoCheckpointError: if all checkpoints are damaged.
        DamagedRunError: if the config is not the one that the checkpoint was saved with.
    """
    facts = inspect(run)
    facts = dataclasses.replace(facts, has_checkpoint=processes.agree(lambda: facts.has_checkpoint))
    return act(run, facts, agree(facts, experiment), say, waiting, processes)


def inspect(run: RunFolder) -> Facts:
    """The facts of a run's folder; nothing in it is changed."""
    has_checkpoint = bool(run.checkpoints(read_only=True).steps())
    return Facts(
        run=run,
        recorded=run.read_config(Experiment) if run.exists else None,
        converted=run.converted,
        tokenizer=load_tokenizer(run.tokenizer_dir) if run.tokenizer_dir.exists() else None,
        has_checkpoint=has_checkpoint,
        lost=None if has_checkpoint else _lost_checkpoint(run),
    )


def agree(facts: Facts, experiment: Experiment) -> Experiment:
    """What the run is trained on with, by its facts alone: the experiment, with what it leaves open as the run has it.

    Raises:
        as `open_run`, where the folder alone is against it.
    """
    run = facts.run
    refuse_lost_precision(experiment)
    place(experiment)
    for span in spans(experiment.model):  # a model that cannot be built is refused before a text is prepared for it
        experiment.model.block_config(span[0])
    if facts.recorded is None and experiment.training.seed >= 2**32:
        # A run that was begun with such a seed goes on with what JAX made of it.
        raise ConfigError(
            f"training.seed is {experiment.training.seed}, but must be < 2**32: JAX takes the last 32 bits of it, "
            f"{experiment.training.seed % 2**32}"
        )
    if facts.converted:
        raise TrainingError(
            f"{run} holds weights that were trained elsewhere, and stays as it is; train a copy of it on a text of "
            f"yours: xlstm train {run} --fork NAME --sources PATH --steps N"
        )
    if facts.recorded is not None:
        experiment = filled_in(experiment, facts.recorded)
        refuse_differences(run, facts.recorded.to_dict(), experiment.to_dict(), MAY_CHANGE)
    if facts.lost is not None:
        raise NoCheckpointError(
            f"no checkpoint of {run} is undamaged ({facts.lost} is not); delete {run.checkpoint_dir} to train the run "
            "from the start again"
        )
    return experiment


def agree_on_store(facts: Facts, experiment: Experiment, store: TokenStore) -> Experiment:
    """The experiment with what follows from its store: the vocabulary and the fingerprint.

    Raises:
        WrongStoreError: if the store is not the run's, or not of the experiment's tokenizer.
        ConfigError: if the model's vocabulary is smaller than the tokenizer's.
    """
    ours = facts.tokenizer
    if ours is not None and ours.fingerprint != store.tokenizer.fingerprint:
        raise WrongStoreError(
            f"{facts.run} was trained with another tokenizer ({ours.kind}, {ours.vocab_size} tokens) than that "
            f"of the store {store} ({store.tokenizer.kind}, {store.vocab_size} tokens); give its own store "
            "with --data.store PATH"
        )
    data = experiment.data
    if not data.mixture and data.tokenizer in ("bytes", "bpe") and data.tokenizer != store.tokenizer.kind:
        raise WrongStoreError(
            f"data.tokenizer is {data.tokenizer!r}, but the store {store} was made with a tokenizer of the kind "
            f"{store.tokenizer.kind!r}; give that, or another store"
        )
    if data.fingerprint is not None and data.fingerprint != store.fingerprint:
        texts, option = f"another text than that of the store {store}; give its own store", "--data.store PATH"
        if data.mixture:
            texts = f"other texts, or with other weights, than those of the mixture of {store}; give its own"
            option = "--data.mixture"
        raise WrongStoreError(f"{facts.run} was trained on {texts} with {option}, or start a copy with --fork NAME")
    experiment = with_vocabulary(experiment, store.vocab_size)
    return dataclasses.replace(experiment, data=dataclasses.replace(data, fingerprint=store.fingerprint))


def act(
    run: RunFolder,
    facts: Facts,
    experiment: Experiment,
    say: Say,
    waiting: Waiting = silently,
    processes: Processes = ALONE,
) -> OpenRun:
    """Do what was agreed on: make or open the store, restore or begin the state, write down what the run is now.

    Raises:
        as `open_run`, where the store, the disk or the checkpoints are against it.
    """
    _check_rows(experiment)
    store = open_together(experiment, say, run, waiting, processes)
    experiment = agree_on_store(facts, experiment, store)
    if not store.split("validation").num_documents:
        say("note: the store holds no validation documents, so nothing is scored on held-out text")
    model, optimizer = build(experiment)
    placement = place(experiment)
    if placement.mesh is None and jax.device_count() > 1:
        say(f"note: one of {jax.device_count()} devices is used; --mesh dp={jax.device_count()} uses all of them")
    checkpoints = run.checkpoints(keep=experiment.training.keep_checkpoints, say=say, processes=processes)
    target = placed(placement, model, jax.eval_shape(lambda: fresh_state(model, optimizer, experiment)))
    if processes.leader and (checkpoints.latest_step() or 0) < experiment.training.steps:
        _check_disk(checkpoints, target, say)
    step, tokens_seen = 0, 0
    if facts.has_checkpoint:
        with waiting("reading the checkpoint", terminal_only=True):
            step, saved, extra = checkpoints.restore(target._asdict())
        run.check_config(step, extra, CONFIG_MAY_DIFFER)
        state, tokens_seen = TrainState(**saved), extra["tokens_seen"]
        _announce_changes(run, placement, say)
        if facts.recorded is not None:
            experiment = _with_steps(experiment, facts.recorded, step, say)
    else:
        with waiting("drawing the first parameters"):
            shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
            draw = jax.jit(lambda: fresh_state(model, optimizer, experiment), out_shardings=shardings)
            state = jax.block_until_ready(draw())
    if processes.leader:
        run.copy_tokenizer(store.path / TOKENIZER_FOLDER)
        run.write_environment(mesh=placement.in_words())
        run.metrics().cut_after(step)
        run.write_config(experiment)
    return OpenRun(
        run,
        experiment,
        store,
        model,
        optimizer,
        placement,
        Scorer(model),
        checkpoints,
        state,
        step,
        tokens_seen,
        processes,
    )


def filled_in(experiment: Experiment, recorded: Experiment, *, fingerprint: bool = True) -> Experiment:
    """The experiment with what it leaves open (vocabulary, store) as the run has it."""
    model, data = experiment.model, experiment.data
    if model.vocab_size == -1:
        model = dataclasses.replace(model, vocab_size=recorded.model.vocab_size)
    data = dataclasses.replace(data, fingerprint=recorded.data.fingerprint if fingerprint else None)
    return dataclasses.replace(experiment, model=model, data=data)


def is_finished(run: RunFolder, experiment: Experiment) -> bool:
    """Whether a run has made all its steps and its text is not here any more, so that there is nothing to be done."""
    if not run.exists or not (facts := inspect(run)).has_checkpoint or facts.converted:
        return False
    experiment = agree(facts, experiment)
    steps = run.checkpoints(read_only=True).steps()
    return (
        max(steps) >= experiment.training.steps and not experiment.data.mixture and not own_store(experiment.data, run)
    )


def _lost_checkpoint(run: RunFolder) -> Path | None:
    """A run whose checkpoints are all damaged must not begin at step 0 again as if there had been none."""
    places = [
        p
        for folder in (run.checkpoint_dir, run.checkpoint_dir / DAMAGED_FOLDER)
        if folder.is_dir()
        for p in folder.iterdir()
    ]
    return max((p for p in places if p.name[:8].isdigit() and "." not in p.name), default=None)


def _announce_changes(run: RunFolder, placement: Placement, say: Say) -> None:
    try:
        changes = run.environment_changes(placement.in_words())
    except DamagedRunError as error:
        # Only this note needs the record; it is written anew with the next line that counts.
        changes = [str(error)]
    for change in changes:
        say(f"note: {change}")


def _with_steps(experiment: Experiment, recorded: Experiment, step: int, say: Say) -> Experiment:
    """The experiment with at least the steps that are made; a rate that rises with a longer schedule is told."""
    steps = experiment.training.steps
    if steps < step:
        say(f"note: {step} steps are made already, so training ends with them and not with {steps}")
        return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, steps=step))
    tell_of_rise(experiment, recorded, step, say)
    return experiment


def tell_of_rise(experiment: Experiment, recorded: Experiment, step: int, say: Say) -> None:
    """Say where the learning rate goes after `step` steps that were made as recorded, if more steps let it rise."""
    steps, before = experiment.training.steps, recorded.training.steps
    rate = learning_rate(recorded.optimizer, before)
    now = learning_rate(experiment.optimizer, steps)(step)
    if step and experiment.optimizer == recorded.optimizer and now > 1.05 * rate(min(step, before - 1)):
        say(
            f"note: the learning rate follows a schedule of {steps} steps now, not of {before}: with step {step + 1} "
            f"it goes from {rate(step - 1):.2e} to {now:.2e}"
        )


def _check_rows(experiment: Experiment) -> None:
    training, total = experiment.training, machine_memory().total
    needed = LOADER_BYTES * training.batch_size * experiment.seq_len
    if total is not None and needed > total:
        raise ConfigError(
            f"training.batch_size is {training.batch_size}, but to read rows of {experiment.seq_len} tokens so many at "
            f"a time takes {bytes_in_words(needed)}, and this machine has {bytes_in_words(total)} of memory"
        )


def _check_disk(checkpoints: Checkpoints, target: TrainState, say: Say) -> None:
    state = target._asdict()
    count = max(checkpoints.keep + 1 - len(checkpoints.steps()), 1)
    one = bytes_needed(state)
    say(f"disk: {bytes_in_words(one)} a checkpoint, at most {checkpoints.keep + 1} at a time in {checkpoints.folder}")
    checkpoints.check_space(state, count)
