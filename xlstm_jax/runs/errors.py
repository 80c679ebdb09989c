"""What can go wrong with a run folder; every message is one sentence for the person at the terminal."""

from __future__ import annotations


class RunError(Exception):
    """Base of all errors about a run folder."""


class RunNotFoundError(RunError, FileNotFoundError):
    """There is no such folder, or the folder is not a run."""


class DamagedRunError(RunError, ValueError):
    """A file of the run (config, metrics, environment) cannot be read as what it should be."""


class RunExistsError(RunError, FileExistsError):
    """A folder that should be made is there already, and holds something else."""


class ConfigChangedError(RunError, ValueError):
    """A run is to be continued under a config that differs where it may not."""


class CheckpointError(RunError):
    """A checkpoint could not be written or read."""


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """No (usable) checkpoint is there."""


class DamagedCheckpointError(CheckpointError, ValueError):
    """A checkpoint's files are not the ones that its manifest lists."""


class StateMismatchError(CheckpointError, ValueError):
    """A checkpoint holds other arrays than the ones asked for."""
