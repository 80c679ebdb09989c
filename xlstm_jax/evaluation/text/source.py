"""Which runs read which text: the options that the evaluations on texts have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.evaluation.suite import argument, option

if TYPE_CHECKING:
    from xlstm_jax.evaluation.text.texts import Text

SPLITS = ("train", "validation")


@dataclass
class Source:
    """Runs, and the text that they are to read.

    Raises:
        ConfigError: for values that cannot be, or that exclude each other.
    """

    runs: tuple[str, ...] = argument("RUN", "run to score; several are set side by side", names="run")
    text: tuple[str, ...] | None = option(
        "FILE", "files to score, each a document; - for standard input", several=True, default=None
    )
    store: str | None = option("STORE", "token store to score, in place of files", names="store", default=None)
    split: str = option("NAME", "of the store, or of the run's own (default validation)", default="validation")
    step: int | None = option("N", "use the checkpoint of this step (default: the newest)", read=int, default=None)
    mesh: str | None = option("AXIS=N,...", "lay the model out over devices, as in fsdp=4,tp=2", default=None)
    name: str = field(init=False)
    """Of the folder for the results."""

    def __post_init__(self) -> None:
        self.runs, self.text = tuple(dict.fromkeys(self.runs)), None if self.text is None else tuple(self.text)
        self.name = "+".join(Path(run).resolve().name for run in self.runs)
        if self.text is not None and self.store is not None:
            raise ConfigError("--text and --store each name a text to score; give one of them")
        if self.split not in SPLITS:
            raise ConfigError(
                f"--split is {self.split!r}, but must be validation or train{near_miss(self.split, SPLITS)}"
            )
        if self.text is not None and self.split != "validation":
            raise ConfigError("--split is of a token store, but --text names files")

    def read(self) -> Text:
        """The text.

        Raises:
            ConfigError: if it cannot be read, or if the runs' own texts are not one.
        """
        from xlstm_jax.data.store import open_store
        from xlstm_jax.evaluation.text.scores import training_store
        from xlstm_jax.evaluation.text.texts import text_of_files, text_of_split

        if self.text is not None:
            return text_of_files(self.text)
        if self.store is not None:
            return text_of_split(open_store(self.store).split(self.split), f"{self.store}, {self.split}")
        texts = []
        for path in self.runs:
            store = training_store(path)
            if store is None:
                raise ConfigError(
                    f"the token store that {path} learnt from cannot be found, so there is no held-out text of its "
                    "own; --text FILE or --store STORE names a text to score"
                )
            texts.append(text_of_split(store.split(self.split), f"{store}, {self.split}"))
        for path, text in zip(self.runs, texts, strict=True):
            if text.fingerprint != texts[0].fingerprint:
                raise ConfigError(
                    f"{self.runs[0]} and {path} hold out different texts; --text FILE or --store STORE names one for "
                    "all"
                )
        return texts[0]
