"""The one shape of an evaluation: its options, its record, its table, its picture; found by the name of its folder.

A new evaluation is a folder beside this file whose `suite.py` holds a `SUITE`; nothing else names it. Where a command
is to have a hyphen, its folder has an underscore. All of these
files are imported to tell what there is: they bring in JAX within their functions only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xlstm_jax import evaluation
from xlstm_jax.machine.progress import Progress, clock, make_console

if TYPE_CHECKING:
    from rich.console import RenderableType

RESULT = "result.json"
DRAW_SECONDS = 30.0
"""Between two pictures of what there is so far."""

Record = Mapping[str, Any]
"""JSON values."""

Records = Generator[Record, None, None]
"""A record as it grows."""


@dataclass(frozen=True)
class Suite:
    """An evaluation; `table` and `picture` know nothing but the record."""

    name: str
    """That of its folder, with hyphens for underscores, and `xlstm eval NAME`."""
    summary: str
    """What it does, in a line."""
    config: type
    """A dataclass that checks itself, with a field for each option of the command; see `option`. Its attribute
    `folder`, if it has one, is set to the folder of the results."""
    run: Callable[[Any, Progress, Record], Records]
    """(config, progress, the record that is there already) -> the record as it grows: an interruption leaves what was
    found. What is wrong with the config is raised by the call, before anything is run."""
    table: Callable[[Record], tuple[RenderableType, str]]
    """(table, or tables, for a terminal of 80 columns, what the columns mean)."""
    picture: Callable[[Record, Path], None]
    """Draws a PNG."""
    picture_name: str = "picture.png"
    page: Callable[[Record, Path], str] | None = None
    """(record, the picture) -> HTML, for what is neither a table nor a picture."""
    page_name: str = "page.html"
    folder: str | None = None
    """Where the results go below `runs`, with the config's fields in braces: "synthetic-{task}"; the name if None."""
    examples: str = ""
    """What stands below the options in the help."""

    def place(self, **values: Any) -> Path:
        """The folder for the results of a config with these values, if no other is asked for."""
        return Path("runs", (self.folder or self.name).format(**values))


def option(
    metavar: str,
    what: str,
    *,
    read: Callable[[str], Any] = str,
    several: bool = False,
    names: Literal["run", "store"] | None = None,
    **default: Any,
) -> Any:
    """A field of a suite's config that the command line can set.

    Args:
        metavar: its value in the help.
        what: it is, for the help.
        read: makes the value of its text; raises ValueError or `argparse.ArgumentTypeError`.
        several: it takes one value or more, a list.
        names: the value is the word for a run or a store; the config gets the path of its folder.
        default: `default=VALUE`; without it the option must be given.
    """
    how = {"metavar": metavar, "help": what, "type": read, **({"nargs": "+"} if several else {})}
    return dataclasses.field(metadata={"how": how, "names": names}, **default)


def flag(what: str) -> Any:
    """A field that is true if the option is given."""
    how = {"help": what, "action": "store_true"}
    return dataclasses.field(metadata={"how": how, "names": None}, default=False)


def argument(metavar: str, what: str, *, several: bool = True, names: Literal["run", "store"] | None = None) -> Any:
    """A field that the word of the command line is which belongs to no option, or the words; see `option`."""
    how = {"metavar": metavar, "help": what, **({"nargs": "+"} if several else {})}
    return dataclasses.field(metadata={"how": how, "names": names, "positional": True})


def suites() -> Iterator[Suite]:
    """All suites, by name."""
    found = {file.parent.name for place in evaluation.__path__ for file in Path(place).glob("*/suite.py")}
    for name in sorted(found):
        yield importlib.import_module(f"{evaluation.__name__}.{name}.suite").SUITE


def evaluate(suite: Suite, config: Any, out: Path | None = None, *, as_json: bool = False) -> Record:
    """Run a suite and show what it found.

    Args:
        out: the folder for result.json, the picture and the page; that of `Suite.place` if None.
        as_json: print the record on standard output, and all else on standard error.

    Returns:
        The record, as result.json has it.

    Raises:
        ConfigError: for a value that cannot be used; nothing is written then.
    """
    from xlstm_jax.files import write_atomic
    from xlstm_jax.machine.environment import present_environment

    console = make_console(stderr=as_json)
    progress = Progress(console=console)
    out = suite.place(**vars(config)) if out is None else out
    if hasattr(config, "folder"):
        config.folder = out
    records = suite.run(config, progress, _found(out / RESULT))
    out.mkdir(parents=True, exist_ok=True)
    record: Record = {}
    drawn = -math.inf
    # Closed here, not when it is collected: what it does in other threads must end before the process does.
    with contextlib.closing(records):
        for found in records:
            record = {**found, "environment": present_environment()}
            write_atomic(out / RESULT, json.dumps(record, indent=2) + "\n")
            if time.monotonic() - drawn > DRAW_SECONDS:
                suite.picture(record, out / suite.picture_name)
                drawn = time.monotonic()
    with clock(f"drawing {suite.picture_name}", terminal_only=True):
        suite.picture(record, out / suite.picture_name)
        if suite.page is not None:
            write_atomic(out / suite.page_name, suite.page(record, out / suite.picture_name))
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        tables, meaning = suite.table(record)
        console.print(tables)
        progress.say(meaning)
        sys.stdout.flush()
    names = (RESULT, suite.picture_name, *((suite.page_name,) if suite.page else ()))
    progress.say(f"written: {', '.join(str(out / name) for name in names)}")
    return record


def _found(path: Path) -> Record:
    """The record of a result.json; an empty one where there is none that can be read."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
