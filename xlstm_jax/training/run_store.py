"""The text that a run learns from: its own store wherever it lies, one made now, or one that was made before."""

from __future__ import annotations

import contextlib
import glob
import socket
from collections.abc import Callable
from pathlib import Path

from xlstm_jax.data.errors import StoreError
from xlstm_jax.data.prepare import has_changed, prepare, prepare_beside
from xlstm_jax.data.store import INDEX_FILE, MixedStore, TokenStore, open_store, read_index
from xlstm_jax.distributed.processes import ALONE, Processes
from xlstm_jax.machine.progress import Waiting, silently
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import DataConfig, Experiment
from xlstm_jax.training.errors import WrongStoreError

VERIFIED_BYTES = 1 << 30
"""A token store up to this size is compared with its sums before each training, which takes a second or two."""


def open_or_prepare(
    experiment: Experiment, say: Callable[[str], None], run: RunFolder, waiting: Waiting = silently
) -> TokenStore:
    """The experiment's token store, verified; one that is not there yet is made from the sources, as is one of which
    the sources have changed. A run that has begun keeps its own.

    A flipped bit would not stop training: it would change what is learnt, and the numbers of a run that goes on.
    """
    data = experiment.data
    path = data.store_path()
    # Who names a store, and no sources beside those of the preset or the run, means that store as it is.
    made_of = () if data.store is not None and data.sources == DataConfig().sources else data.sources
    of_run = data.store is not None and run.exists and run.read_config(Experiment).data.sources == data.sources
    if data.mixture:
        store: TokenStore = MixedStore({str(_seen_from(run, Path(name))): w for name, w in data.mixture.items()})
    elif (own := own_store(data, run)) is not None:
        store = open_store(own)
        if made_of and store.disk_bytes <= VERIFIED_BYTES and has_changed(made_of, own, data.to_prepare()):
            say(f"note: {', '.join(made_of)} changed since {own} was made of it; the run goes on with {own} as it is")
    elif not (path / INDEX_FILE).is_file() and data.sources:
        say(f"preparing the token store {path} from {', '.join(data.sources)}")
        return prepare(data.sources, path, data.to_prepare(), say=say)
    elif made_of and not of_run:
        store = (prepare if data.store else prepare_beside)(made_of, path, data.to_prepare(), say=say)
    else:
        store = open_store(path)
    if store.disk_bytes <= VERIFIED_BYTES:
        with waiting(f"verifying {store}", terminal_only=True):
            store.verify()
    else:
        say(f"note: {store} is too large to be verified at each start; `xlstm data inspect {path} --verify` does it")
    return store


def open_together(
    experiment: Experiment,
    say: Callable[[str], None],
    run: RunFolder,
    waiting: Waiting = silently,
    processes: Processes = ALONE,
) -> TokenStore:
    """`open_or_prepare` for several processes: the leader makes the store, the others open what it has made.

    Raises:
        WrongStoreError: in a process that sees another text under the store's path.
    """
    if processes.count == 1:
        return open_or_prepare(experiment, say, run, waiting)
    store: TokenStore | None = None

    def first() -> tuple[str, str]:
        nonlocal store
        store = open_or_prepare(experiment, say, run, waiting)
        return str(store.path.absolute()), store.fingerprint

    path, fingerprint = processes.agree(first)
    if store is None:
        store = open_or_prepare(experiment, say, run) if experiment.data.mixture else open_store(path)
        if store.fingerprint != fingerprint:
            raise WrongStoreError(f"{processes.name} sees another text in {store} than process 0")
    hosts = processes.gather(socket.gethostname())
    new_here = hosts.index(hosts[processes.index]) == processes.index  # the first one that reads this host's copy
    if not processes.leader and new_here and store.disk_bytes <= VERIFIED_BYTES:
        store.verify()
    return store


def own_store(data: DataConfig, run: RunFolder) -> Path | None:
    """The store of the text that a run was begun with, as far as it lies where it may be looked for: under its name or
    beside it, from here or from a folder above the run."""
    path = data.store_path()
    names = glob.escape(path.name) + ("" if data.store else "*")
    for folder in (Path(), *run.path.resolve().parents) if data.fingerprint else ():
        for found in sorted((folder / path.parent).glob(names)):
            with contextlib.suppress(StoreError, OSError):
                if read_index(found)["fingerprint"] == data.fingerprint:
                    return found
    return None


def store_of(data: DataConfig, run: RunFolder) -> TokenStore | None:
    """The token store of the text that a run was begun with, as it lies; None where it cannot be found."""
    if data.mixture:
        paths = {str(_seen_from(run, Path(name))): weight for name, weight in data.mixture.items()}
        return MixedStore(paths) if all((Path(path) / INDEX_FILE).is_file() for path in paths) else None
    own = own_store(data, run)
    return None if own is None else open_store(own)


def _seen_from(run: RunFolder, path: Path) -> Path:
    """A store's path from here, or from a folder above the run if it is not there."""
    places = [folder / path for folder in (Path(), *run.path.resolve().parents)]
    return next((place for place in places if (place / INDEX_FILE).is_file()), path)
