"""An experiment from a Python file: a function that returns an `Experiment`, as the presets are."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from xlstm_jax.config import ConfigError
from xlstm_jax.training.config import Experiment


def experiment_from_file(path: Path) -> Experiment:
    """What the file's function `experiment` returns, or its only public one that is annotated `-> Experiment`.

    Files beside it can be imported in it, as in a script.

    Raises:
        ConfigError: for a file that is not there, has no such function or goes wrong; it names file and line.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"experiment_file_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        function = _function(module, path)
        experiment = function()
    except (Exception, SystemExit) as error:
        _tell(error, path)
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not isinstance(experiment, Experiment):
        place = f"{path}, line {_line(function)}"
        raise ConfigError(f"{place}: {function.__name__}() returned {experiment!r}, but must return an Experiment")
    return experiment


def _function(module: ModuleType, path: Path) -> Callable[[], Any]:
    """The function that makes the experiment."""
    own = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    found = [own["experiment"]] if "experiment" in own else [f for f in own.values() if _returns_experiment(f)]
    if len(found) != 1:
        several = f"several: {', '.join(f.__name__ for f in found)}" if found else "none"
        raise _Unclear(
            f"{path} must have one public function that is annotated `-> Experiment`, or one called `experiment`, but "
            f"has {several}"
        )
    needed = [p.name for p in inspect.signature(found[0]).parameters.values() if _is_needed(p)]
    if needed:
        raise _Unclear(
            f"{path}, line {_line(found[0])}: {found[0].__name__}() is called without arguments, but needs "
            f"{', '.join(needed)}"
        )
    return found[0]


class _Unclear(ConfigError):
    """The message names the file already."""


def _is_needed(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _returns_experiment(function: Callable) -> bool:
    try:
        return typing.get_type_hints(function).get("return") is Experiment
    except Exception:  # a name that only a type checker knows
        return str(function.__annotations__.get("return")).rpartition(".")[2] == Experiment.__name__


def _is(path: Path, filename: str) -> bool:
    return Path(filename).absolute() == path.absolute()


def _line(function: Callable) -> int:
    return function.__code__.co_firstlineno


def _tell(error: BaseException, path: Path) -> NoReturn:
    """Raise what went wrong in a file as one sentence, with the last line of the file that was at work."""
    if isinstance(error, _Unclear):
        raise error
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = path if _is(path, error.filename) else error.filename
        raise ConfigError(f"{where}, line {error.lineno}: {error.msg}") from error
    places = [place for place in traceback.extract_tb(error.__traceback__) if _is(path, place.filename)]
    line = f", line {places[-1].lineno}" if places else ""
    kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
    what = " ".join(str(error).split()) or "it gave up"
    raise ConfigError(f"{path}{line}: {kind}{what}") from error
