"""What the command line sets of a table."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.evaluation.suite import argument, flag, option
from xlstm_jax.machine.cores import usable_cores

TABLES = {
    "memory": "what each memory can do: track, recall, copy, read on (three quarters of an hour)",
    "formal": "the fifteen formal languages of the xLSTM paper (three hours)",
    "mqar": "associative recall of 4, 8 and 16 pairs, over learning rates (hours)",
    "groups": "products of the groups S3, S4, A5, S5, Z60 and A4 x Z5 (an hour)",
    "shakespeare": "a million tokens of Shakespeare for every model, and equal time (an hour)",
    "extrapolation": "the loss by position to 64 times the length of training (half an hour)",
    "isoflop": "the best size for a budget of operations, xLSTM and Llama (hours)",
}
"""Each with what it is, and how long two cores need for it."""


@dataclass
class TableOptions:
    """Which table is made, and how much of it.

    Raises:
        ConfigError: for a table, a model, a protocol or a seed that cannot be.
    """

    table: str = argument("NAME", f"the table: {', '.join(TABLES)}", several=False)
    seeds: str | None = option("LIST", "of parameters and rows (default 0,1,2; isoflop: 0)", default=None)
    models: str | None = option("LIST", "some of the table's, as in [1:0],llama (default: all)", default=None)
    protocol: str = option("NAME", "of synthetic tasks, as in `xlstm eval synthetic` (default quick)", default="quick")
    text: str | None = option("FILE", "that language models learn from, in place of the table's own", default=None)
    resume: bool = flag("go on with the trainings that the folder's result.json has already")
    folder: Path = field(init=False, default=Path())
    """For the results."""
    jobs: int | None = option(
        "N", "trainings at once (default: one a CPU core, or one a device)", read=int, default=None
    )

    def __post_init__(self) -> None:
        from xlstm_jax.evaluation.synthetic.protocols import get_protocol

        if self.table not in TABLES:
            hint = near_miss(self.table, TABLES)
            raise ConfigError(f"the table is {self.table!r}, but must be one of {', '.join(TABLES)}{hint}")
        if self.seeds is not None:
            self.chosen_seeds(())
        get_protocol(self.protocol)
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"--jobs is {self.jobs}, but must be a whole number >= 1")

    def chosen_seeds(self, usual: tuple[int, ...]) -> tuple[int, ...]:
        """The seeds, each once."""
        from xlstm_jax.evaluation.synthetic.recipes import listed_seeds

        return usual if self.seeds is None else listed_seeds("--seeds", self.seeds)

    def chosen_models(self, among: tuple[str, ...]) -> tuple[str, ...]:
        """The models, in the order of all that there are.

        Raises:
            ConfigError: for a name that is not among them.
        """
        from xlstm_jax.evaluation.synthetic.recipes import listed_models

        return among if self.models is None else listed_models(self.models, among)

    def workers(self, usual: int | None) -> int:
        """Trainings at once."""
        import jax

        if self.jobs is not None or usual is not None:
            return self.jobs or usual or 1
        return usable_cores() if jax.default_backend() == "cpu" else 1

    def command(self) -> str:
        """What makes the table again."""
        words = ["xlstm eval table", self.table]
        for name, value in {"--seeds": self.seeds, "--models": self.models, "--text": self.text}.items():
            words += [] if value is None else [name, shlex.quote(value)]
        return " ".join([*words, *([] if self.protocol == "quick" else ["--protocol", self.protocol])])
