"""From a run folder and an experiment to everything that a training loop needs, or to one sentence why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xlstm_jax.data.prepare.request import prepare
from xlstm_jax.data.store.store import INDEX_FILE, TOKENIZER_FOLDER, TokenStore, open_store
from xlstm_jax.data.tokenizers.base import load_tokenizer
from xlstm_jax.files import appearing_folder, bytes_in_words
from xlstm_jax.models.language_model import LanguageModel, build_model
from xlstm_jax.runs.checkpoints import DAMAGED_FOLDER, Checkpoints
from xlstm_jax.runs.difference import refuse_differences
from xlstm_jax.runs.errors import DamagedRunError, NoCheckpointError, RunExistsError
from xlstm_jax.runs.folder import RunFolder, with_config
from xlstm_jax.scoring.score import Scorer
from xlstm_jax.training.config import Experiment, with_vocabulary
from xlstm_jax.training.errors import TrainingError, WrongStoreError
from xlstm_jax.training.optimizer import make_optimizer
from xlstm_jax.training.step import TrainState, init_state

MAY_CHANGE = (
    "data.store",
    "training.steps",
    "training.eval_every",
    "training.eval_tokens",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.sample_prompts",
)
"""What a run may be continued with that it was not begun with: its length, its logging, its checkpoints, its paths."""

CONFIG_MAY_DIFFER = (*MAY_CHANGE, "data.fingerprint")
"""What config.json may say otherwise than the newest checkpoint: a copy learns its store's fingerprint when it is first
trained, and a fingerprint is compared with the store's."""

VERIFIED_BYTES = 1 << 30
"""A token store up to this size is compared with its sums before each training, which takes a second or two."""

Say = Callable[[str], None]


@dataclass
class Setup:
    """A run that is ready to train: its lock must be held by whoever uses this."""

    run: RunFolder
    experiment: Experiment
    store: TokenStore
    model: LanguageModel
    optimizer: optax.GradientTransformation
    scorer: Scorer
    checkpoints: Checkpoints
    state: TrainState
    step: int
    """Steps made so far."""
    tokens_seen: int
    """Targets learnt from so far."""


def prepare_run(run: RunFolder, experiment: Experiment, say: Say) -> Setup:
    """Check the experiment against the run, open its data and restore its newest good checkpoint, or start afresh.

    Raises:
        ConfigChangedError: if the run was begun with values that may not change.
        WrongStoreError: if the token store is not the run's.
        TrainingError: if the run holds converted weights; a fork of it can be trained.
        DiskFullError: if the disk has no room for the checkpoints to come.
        NoCheckpointError: if all checkpoints are damaged.
        DamagedRunError: if the config is not the one that the checkpoint was saved with.
    """
    if run.converted:
        raise TrainingError(
            f"{run} holds weights that were trained elsewhere, and stays as it is; train a copy of it on a text of "
            f"yours: xlstm train {run} --fork NAME --sources PATH --steps N"
        )
    recorded = run.read_config(Experiment) if run.exists else None
    if recorded is not None:
        experiment = filled_in(experiment, recorded)
        refuse_differences(run, recorded.to_dict(), experiment.to_dict(), MAY_CHANGE)
    store = open_or_prepare(experiment, say)
    _check_store(run, experiment, store)
    experiment = with_vocabulary(experiment, store.vocab_size)
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, fingerprint=store.fingerprint)
    )
    if not store.split("validation").num_documents:
        say("note: the store holds no validation documents, so nothing is scored on held-out text")
    model, optimizer = build(experiment)
    checkpoints = run.checkpoints(keep=experiment.training.keep_checkpoints, say=say)
    target = jax.eval_shape(lambda: fresh_state(model, optimizer, experiment))
    if (checkpoints.latest_step() or 0) < experiment.training.steps:
        _check_disk(checkpoints, target, say)
    step, tokens_seen = 0, 0
    _check_nothing_lost(run, checkpoints)
    if checkpoints.steps():
        step, saved, extra = checkpoints.restore(target._asdict())
        run.check_config(step, extra, CONFIG_MAY_DIFFER)
        state, tokens_seen = TrainState(**saved), extra["tokens_seen"]
        _announce_changes(run, say)
    else:
        state = jax.jit(lambda: fresh_state(model, optimizer, experiment))()
    run.copy_tokenizer(store.path / TOKENIZER_FOLDER)
    run.write_environment()
    run.metrics().cut_after(step)
    run.write_config(experiment)
    return Setup(run, experiment, store, model, optimizer, Scorer(model), checkpoints, state, step, tokens_seen)


def fork_run(source: RunFolder, path: Path, experiment: Experiment, say: Say) -> RunFolder:
    """A new run at `path` that goes on from another's newest good checkpoint, with other values where these fit.

    One of converted weights begins at step 0, with parameters in float32 and a fresh optimizer.

    Raises:
        StateMismatchError: if the new model or optimizer has other arrays than the checkpoint.
        WrongStoreError: if the store has another tokenizer. In either case no run is made.
    """
    experiment = filled_in(experiment, source.read_config(Experiment), fingerprint=False)
    _check_store(source, experiment, open_or_prepare(experiment, say))
    model, optimizer = build(experiment)
    target = jax.eval_shape(lambda: fresh_state(model, optimizer, experiment))
    if source.converted:
        return _begin_with_weights(source, path, experiment, optimizer, target)
    step, _, extra = source.checkpoints(read_only=True).restore(target._asdict())
    source.check_config(step, extra, CONFIG_MAY_DIFFER)
    return source.fork(path, experiment)


def _begin_with_weights(
    source: RunFolder, path: Path, experiment: Experiment, optimizer: optax.GradientTransformation, target: TrainState
) -> RunFolder:
    if path.exists():
        raise RunExistsError(f"{path} exists already; choose another name for the copy")
    step, params, extra = source.read_params(None, target.params, any_float=True)
    source.check_config(step, extra, CONFIG_MAY_DIFFER)
    params = jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), params, target.params)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    with appearing_folder(path) as folder:
        draft = RunFolder(folder)
        source.copy_text_side(draft)
        draft.write_environment()
        with draft.checkpoints() as checkpoints:
            checkpoints.save(0, state._asdict(), with_config(experiment, tokens_seen=0))
        draft.write_config(experiment)
    return RunFolder(path)


def filled_in(experiment: Experiment, recorded: Experiment, *, fingerprint: bool = True) -> Experiment:
    """The experiment with what it leaves open (vocabulary, store) as the run has it."""
    model, data = experiment.model, experiment.data
    if model.vocab_size == -1:
        model = dataclasses.replace(model, vocab_size=recorded.model.vocab_size)
    data = dataclasses.replace(data, fingerprint=recorded.data.fingerprint if fingerprint else None)
    return dataclasses.replace(experiment, model=model, data=data)


def open_or_prepare(experiment: Experiment, say: Say) -> TokenStore:
    """The experiment's token store, verified; one that is not there yet is made from the sources.

    A flipped bit would not stop training: it would change what is learnt, and the numbers of a run that goes on.
    """
    data = experiment.data
    path = data.store_path()
    if not (path / INDEX_FILE).is_file() and data.sources:
        say(f"preparing the token store {path} from {', '.join(data.sources)}")
        return prepare(
            list(data.sources),
            path,
            tokenizer=data.tokenizer,
            vocab_size=data.vocab_size if data.tokenizer == "bpe" else None,
            validation_fraction=data.validation_fraction,
            seed=data.seed,
        )
    store = open_store(path)
    if store.disk_bytes <= VERIFIED_BYTES:
        store.verify()
    else:
        say(f"note: {path} is too large to be verified at each start; `xlstm data inspect {path} --verify` does it")
    return store


def build(experiment: Experiment) -> tuple[LanguageModel, optax.GradientTransformation]:
    """The experiment's model and optimizer."""
    model = build_model(experiment.model)
    optimizer = make_optimizer(
        experiment.optimizer,
        experiment.training.steps,
        decay_embedding=experiment.model.weight_decay_on_embedding,
    )
    return model, optimizer


def fresh_state(model: Any, optimizer: optax.GradientTransformation, experiment: Experiment) -> TrainState:
    """The state before the first step."""
    return init_state(model, optimizer, experiment.training.seed, jnp.zeros((1, 1), jnp.int32))


def _check_store(run: RunFolder, experiment: Experiment, store: TokenStore) -> None:
    if run.tokenizer_dir.exists():
        tokenizer = load_tokenizer(run.tokenizer_dir)
        if tokenizer.fingerprint != store.tokenizer.fingerprint:
            raise WrongStoreError(
                f"{run} was trained with another tokenizer ({tokenizer.kind}, {tokenizer.vocab_size} tokens) than that "
                f"of the store {store.path} ({store.tokenizer.kind}, {store.vocab_size} tokens); give its own store "
                "with --data.store PATH"
            )
    wanted = experiment.data.tokenizer
    if wanted in ("bytes", "bpe") and wanted != store.tokenizer.kind:
        raise WrongStoreError(
            f"data.tokenizer is {wanted!r}, but the store {store.path} was made with a tokenizer of the kind "
            f"{store.tokenizer.kind!r}; give that, or another store"
        )
    known = experiment.data.fingerprint
    if known is not None and known != store.fingerprint:
        raise WrongStoreError(
            f"{run} was trained on another text than that of the store {store.path}; give its own store with "
            "--data.store PATH, or start a copy with --fork NAME"
        )


def _check_nothing_lost(run: RunFolder, checkpoints: Checkpoints) -> None:
    """A run whose checkpoints are all damaged must not begin at step 0 again as if there had been none."""
    if checkpoints.steps() or not run.checkpoint_dir.is_dir():
        return
    shelf = run.checkpoint_dir / DAMAGED_FOLDER
    places = [p for folder in (run.checkpoint_dir, shelf) if folder.is_dir() for p in folder.iterdir()]
    lost = sorted(p for p in places if p.name[:8].isdigit() and "." not in p.name)
    if lost:
        raise NoCheckpointError(
            f"no checkpoint of {run} is undamaged ({lost[-1]} is not); delete {run.checkpoint_dir} to train the run "
            "from the start again"
        )


def _announce_changes(run: RunFolder, say: Say) -> None:
    try:
        changes = run.environment_changes()
    except DamagedRunError as error:
        # Only this note needs the record; it is written anew with the next line that counts.
        changes = [str(error)]
    for change in changes:
        say(f"note: {change}")


def _check_disk(checkpoints: Checkpoints, target: TrainState, say: Say) -> None:
    state = target._asdict()
    count = max(checkpoints.keep + 1 - len(checkpoints.steps()), 1)
    one = checkpoints.bytes_needed(state)
    say(f"disk: {bytes_in_words(one)} a checkpoint, at most {checkpoints.keep + 1} at a time in {checkpoints.folder}")
    checkpoints.check_space(state, count)
