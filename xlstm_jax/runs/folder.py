"""`runs/NAME/`: everything that belongs to one training run, and nothing else.

config.json          the resolved config
environment.json     versions, cores and devices of the last process that trained
tokenizer/           a copy of the store's tokenizer
tokenizer_info.json  special tokens, where the model expects others than its tokenizer's EOD
huggingface/         what came along with weights that were trained elsewhere
metrics.jsonl        one JSON object a line
checkpoints/         see `xlstm_jax.runs.checkpoints`
loss.png             the loss curve
report.json          the model beside the baselines, when all steps are made
lock                 held by the one process that writes
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from xlstm_jax.config import Config, ConfigError, NonNegativeInt, dumps, from_json, to_json
from xlstm_jax.distributed.processes import ALONE, Processes
from xlstm_jax.files import Lock, appearing_folder, copy_folder, read_json_object, write_atomic, write_json
from xlstm_jax.machine.environment import ONE_DEVICE, environment_changes, installed_version, present_environment
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.difference import refuse_another_config
from xlstm_jax.runs.errors import (
    DamagedCheckpointError,
    DamagedRunError,
    NoCheckpointError,
    RunExistsError,
    RunNotFoundError,
)
from xlstm_jax.runs.manifest import replace_extra
from xlstm_jax.runs.metrics import MetricsLog

if TYPE_CHECKING:  # jaxtyping's PyTree brings JAX in
    from jaxtyping import PyTree

T = TypeVar("T")

SAVED_CONFIG = "config"
"""Where the extra values of a checkpoint have the config that it was saved with."""

CONVERTED = "converted"
"""Where they say whether its weights were trained elsewhere."""


@dataclass(frozen=True)
class TokenizerInfo(Config):
    """The special tokens of a run's model. Published models have such; ours go by the EOD alone."""

    bos_id: NonNegativeInt | None = None
    """Opens every text; None: the EOD of the tokenizer."""
    stop_ids: tuple[NonNegativeInt, ...] = ()
    """End a text, as the EOD does."""


class RunFolder:
    """The paths and the small files of a run. Making the object touches nothing; see `create` and `open`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.environment_path = self.path / "environment.json"
        self.report_path = self.path / "report.json"
        self.tokenizer_dir = self.path / "tokenizer"
        self.tokenizer_info_path = self.path / "tokenizer_info.json"
        self.huggingface_dir = self.path / "huggingface"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoint_dir = self.path / "checkpoints"
        self.plot_path = self.path / "loss.png"
        self.lock_path = self.path / "lock"

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # -- being there --------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether the folder is a run (a config was written)."""
        return self.config_path.is_file() and not self.published

    @property
    def published(self) -> bool:
        """Whether the folder holds weights as they are published, which a run never does."""
        return any(self.path.glob("*.safetensors"))

    def create(self) -> Self:
        """Make the folder; one that is empty, or a run already, is fine.

        Raises:
            RunExistsError: if the path is a file, or a folder with other things in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunExistsError(f"{self.path} is a file, but a run is a folder")
        if self.path.is_dir() and not self.exists:
            ours = {self.lock_path.name, self.tokenizer_dir.name, self.environment_path.name}  # a start that was killed
            others = sorted(p.name for p in self.path.iterdir() if p.name not in ours and not p.name.endswith(".tmp"))
            if others:
                lacks = "it holds published weights" if self.published else f"it has {others[0]!r}, but no config.json"
                raise RunExistsError(f"{self.path} is not a run ({lacks}); choose another name")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunExistsError(f"{self.path} cannot be made: {error.strerror}") from error
        return self

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The run at `path`.

        Raises:
            RunNotFoundError: if there is no such folder, or it is not a run; neighbours are named.
        """
        run = cls(path)
        if run.exists:
            return run
        if run.published:
            problem = f"{run} holds published weights and is no run: `xlstm convert {run} NAME` makes a run of them"
            raise RunNotFoundError(problem)
        if run.path.is_dir():
            problem = f"{run.path} is not a run: it has no config.json"
        elif run.path.exists():
            problem = f"{run.path} is a file, but a run is a folder"
        else:
            problem = f"there is no run {run.path}"
        place = run.path if run.path.is_dir() else run.path.parent
        runs = sorted(p.name for p in place.iterdir() if cls(p).exists) if place.is_dir() else []
        hint = f" (runs in {place}: {', '.join(runs[:8])}{', ...' if len(runs) > 8 else ''})" if runs else ""
        raise RunNotFoundError(problem + hint)

    def lock(self) -> Lock:
        """The lock of the one writer, to be used as `with run.lock(): ...`."""
        return Lock(self.lock_path)

    # -- config -------------------------------------------------------------------------------------------------------

    def write_config(self, config: Any) -> None:
        """Write a config (a dataclass, or its JSON dict), atomically."""
        # A path that is not UTF-8 has half surrogates in it, which JSON can hold as escapes only.
        write_atomic(self.config_path, dumps(config).encode("utf-8", "backslashreplace"))

    def read_config_json(self) -> dict[str, Any]:
        """The config as a JSON dict.

        Raises:
            RunNotFoundError: if there is no such run.
            DamagedRunError: if the file is not a JSON object.
        """
        if not self.exists:
            type(self).open(self.path)  # says what is there instead
        return read_json_object(self.config_path, DamagedRunError)

    def read_config(self, target: type[T]) -> T:
        """The config as an object of the dataclass `target`, equal to the one written.

        Raises:
            RunNotFoundError: if there is no such run.
            DamagedRunError: if the file cannot be read as `target`, naming the field.
        """
        data = self.read_config_json()
        try:
            return from_json(target, data)
        except ConfigError as error:
            raise DamagedRunError(f"{self.config_path} cannot be used: {error}{self._written_by_another()}") from error

    def _written_by_another(self) -> str:
        """That another version of this package has written to the run, if one has."""
        try:
            theirs = read_json_object(self.environment_path, DamagedRunError).get("version")
        except (OSError, DamagedRunError):
            return ""
        ours = installed_version("xlstm-jax") or theirs
        return f"; the run was written by xlstm-jax {theirs}, and this is {ours}" if theirs != ours else ""

    def check_config(self, step: int, extra: Mapping[str, Any], may_change: Iterable[str] = ()) -> None:
        """Compare the config with the one that a checkpoint was saved with, if it was saved with one.

        Args:
            step, extra: as read from the checkpoint.
            may_change: as in `difference`.

        Raises:
            DamagedRunError: if they differ, naming the keys and the values.
        """
        if isinstance(saved := extra.get(SAVED_CONFIG), Mapping):
            refuse_another_config(self.config_path, self.read_config_json(), step, saved, may_change)

    def mend(self, config: Any, save_tokenizer: Callable[[Path], None], processes: Processes = ALONE) -> None:
        """Write the config and the tokenizer again, without which the checkpoints are no run, if they are gone."""
        if not processes.leader:
            return
        if not self.exists:
            self.write_config(config)
        if not self.tokenizer_dir.exists():
            with appearing_folder(self.tokenizer_dir) as folder:
                save_tokenizer(folder)

    def read_report(self, step: int | None = None) -> dict[str, Any] | None:
        """What report.json tells of the trained model; None if there is none, or one after another number of steps."""
        try:
            report = read_json_object(self.report_path, DamagedRunError)
        except (OSError, DamagedRunError):
            return None
        if not isinstance(report.get("comparison", {}), dict):
            return None
        return report if step is None or report.get("step") == step else None

    # -- environment --------------------------------------------------------------------------------------------------

    def write_environment(
        self, environment: Mapping[str, Any] | None = None, *, mesh: str = ONE_DEVICE
    ) -> dict[str, Any]:
        """Record the environment (the present one if None, with this mesh)."""
        record = dict(present_environment(mesh) if environment is None else environment)
        write_json(self.environment_path, record, indent=2)
        return record

    def environment_changes(self, mesh: str = ONE_DEVICE) -> list[str]:
        """What differs from the recorded environment, a sentence each; empty if nothing was recorded.

        Raises:
            DamagedRunError: if the record is not a JSON object.
        """
        if not self.environment_path.is_file():
            return []
        recorded = read_json_object(self.environment_path, DamagedRunError)
        return environment_changes(recorded, present_environment(mesh))

    # -- tokenizer ----------------------------------------------------------------------------------------------------

    def copy_tokenizer(self, source: str | Path) -> None:
        """Copy a tokenizer's folder into the run; a run that has the same one already keeps it.

        Raises:
            RunNotFoundError: if `source` is not a folder.
            RunExistsError: if the run has another tokenizer.
        """
        source = Path(source)
        if not source.is_dir():
            raise RunNotFoundError(f"there is no tokenizer folder {source}")
        if not self.tokenizer_dir.exists():
            copy_folder(source, self.tokenizer_dir)
        elif not _same_folder(source, self.tokenizer_dir):
            raise RunExistsError(f"{self.path} was trained with another tokenizer than that of {source}")

    def write_tokenizer_info(self, info: TokenizerInfo) -> None:
        """Record the special tokens that the model expects."""
        write_json(self.tokenizer_info_path, to_json(info), indent=2)

    def read_tokenizer_info(self) -> TokenizerInfo:
        """The special tokens that the model expects; none if nothing was recorded.

        Raises:
            DamagedRunError: if the record cannot be used.
        """
        path, before = self.tokenizer_info_path, self.huggingface_dir / "format.json"
        try:
            if path.exists():
                return from_json(TokenizerInfo, read_json_object(path, DamagedRunError), "tokenizer_info")
            # Where converted runs had it before.
            data = read_json_object(before, DamagedRunError) if before.is_file() else {}
            return from_json(TokenizerInfo, {"bos_id": data.get("opening_id")}, "tokenizer_info")
        except ConfigError as error:
            raise DamagedRunError(f"{path if path.exists() else before} cannot be used: {error}") from error

    # -- what grows ---------------------------------------------------------------------------------------------------

    def metrics(self) -> MetricsLog:
        return MetricsLog(self.metrics_path)

    def checkpoints(
        self,
        *,
        keep: int = 3,
        read_only: bool = False,
        say: Callable[[str], None] | None = None,
        processes: Processes = ALONE,
    ) -> Checkpoints:
        """The checkpoints; who does not hold the lock must say `read_only=True`, unless one of its `processes` does."""
        return Checkpoints(
            self.checkpoint_dir, keep=keep, read_only=read_only, say=say, processes=processes, older_name=_older_name
        )

    @property
    def converted(self) -> bool:
        """Whether the run holds weights that were trained elsewhere, so that it is forked, not trained.

        One that cannot be read is none; whoever reads it says so.
        """
        try:
            manifest = self.checkpoints(read_only=True).manifest()
        except (NoCheckpointError, DamagedCheckpointError):
            return False
        # Before it was recorded, such runs were those of parameters alone.
        return bool(manifest.extra.get(CONVERTED, set(manifest.arrays) == {"params"}))

    def read_params(
        self,
        step: int | None = None,
        target: PyTree | None = None,
        say: Callable[[str], None] | None = None,
        *,
        any_float: bool = False,
    ) -> tuple[int, Any, dict[str, Any]]:
        """The parameters of the newest good checkpoint (or of `step`), also while the run trains.

        Only the files of the part `"params"` are read, and verified first; damaged checkpoints are passed over. With
        `any_float` parameters may be of another width than in `target`, and come as they are.

        Returns:
            (step, params, extra): params as nested dicts of arrays, or in the structure of `target`.

        Raises:
            NoCheckpointError, DamagedCheckpointError, StateMismatchError: as `Checkpoints.restore`.
        """
        if not self.exists:
            type(self).open(self.path)
        return self.checkpoints(read_only=True, say=say).restore_part("params", target, step, any_float=any_float)

    def fork(
        self, path: str | Path, config: Any, step: int | None = None, *, state: Mapping[str, PyTree] | None = None
    ) -> RunFolder:
        """A new run that starts from this one's newest good checkpoint (or that of `step`), with another config.

        Tokenizer, environment and the metrics up to the checkpoint come along; the checkpoint counts as saved with the
        new config. The new folder appears complete or not at all; this run is only read.

        Args:
            step: of the checkpoint; the newest good one if None.
            state: what the new run starts from at step 0 instead, with no metrics and in the present environment.

        Raises:
            RunExistsError: if there is something at `path`.
            CheckpointError: if there is no good checkpoint to start from.
        """
        type(self).open(self.path)
        new = RunFolder(path)
        if new.path.exists():
            raise RunExistsError(f"{new.path} exists already; choose another name for the copy")
        with appearing_folder(new.path) as folder:
            draft = RunFolder(folder)
            along = []
            if state is None:
                found = self._copy_checkpoint(draft, step)
                replace_extra(draft.checkpoints().path(found), with_config(config))
                along = [self.environment_path, self.metrics_path]
            else:
                found = 0
                draft.write_environment()
                with draft.checkpoints() as checkpoints:
                    checkpoints.save(found, state, with_config(config, tokens_seen=0))
            self.copy_text_side(draft)
            for source in along:
                if source.exists():
                    shutil.copyfile(source, draft.path / source.name)
            draft.metrics().cut_after(found)
            draft.write_config(config)
        return new

    def copy_text_side(self, target: RunFolder) -> None:
        """Give a new run this one's tokenizer, and what came along with weights that were trained elsewhere."""
        for source in (self.tokenizer_dir, self.tokenizer_info_path, self.huggingface_dir):
            if source.exists():
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target.path / source.name)

    def _copy_checkpoint(self, target: RunFolder, step: int | None) -> int:
        source = self.checkpoints(read_only=True)
        for attempt in range(10):
            found, folder = source.verified(step)
            shutil.rmtree(target.checkpoint_dir, ignore_errors=True)
            target.checkpoint_dir.mkdir()
            try:
                shutil.copytree(folder, target.checkpoint_dir / folder.name)
                target.checkpoints(read_only=True).verified(found)
                return found
            except (shutil.Error, FileNotFoundError):
                # Rotated away while it was copied: there is a newer one.
                if folder.exists() or attempt == 9:
                    raise
        raise AssertionError("unreachable")


def with_config(config: Any, **values: Any) -> dict[str, Any]:
    """The extra values of a checkpoint that is saved under a config, for `RunFolder.check_config` to find."""
    return {**values, SAVED_CONFIG: to_json(config)}


def _older_name(path: str) -> str:
    from xlstm_jax.models.layouts import older_name  # brings JAX in

    return older_name(path)


def _same_folder(one: Path, other: Path) -> bool:
    def names(folder: Path) -> set[Path]:
        return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}

    files = names(one)
    return files == names(other) and all(filecmp.cmp(one / f, other / f, shallow=False) for f in files)
