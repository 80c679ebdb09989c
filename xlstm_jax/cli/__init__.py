"""The `xlstm` command: a table of verbs, each in a file of its own that is imported when the verb is used."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from xlstm_jax.machine.malloc import keep_freed_memory
from xlstm_jax.machine.signals import EXIT_INTERRUPT, Interrupts
from xlstm_jax.machine.streams import fill_closed, flush, outlive_terminals

VERBS = {
    "train": "train a model from a preset, or continue a run",
    "launch": "a command in several processes, here or on a cluster",
    "plan": "parameters, operations and memory of an experiment, before it is trained",
    "generate": "continue a prompt with a trained model",
    "convert": "published weights to a run, or a run to the format of Hugging Face",
    "eval": "what a model can do, measured: bits per byte of a text, formal languages",
    "data": "turn text into a token store, or look into one",
    "check": "compare the kernels with float64, on this device",
    "version": "versions, devices and the implementation that would be picked",
}
"""Verb and what it does; `xlstm_jax.cli.VERB` has its `main(argv) -> exit code`."""

TRAINING_VERBS = ("train", "eval")
"""Verbs that run the same compiled step many times."""

COMPILING_VERBS = ("train", "generate", "eval")
"""Verbs whose programs are those of the start before."""

EXIT_FAILURE, EXIT_USAGE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; what a user did wrong comes out as one sentence, what we did wrong as a traceback.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a wrong call or value, 130 after Ctrl-C, 143 after
        SIGTERM, 129 after SIGHUP.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with Interrupts(last=argv is None) as interrupts:
        try:
            if argv is None:
                _own_the_process(arguments)
            try:
                return _run(arguments)
            finally:
                flush(sys.stdout, "standard output")
        except KeyboardInterrupt:
            return _fail("interrupted", EXIT_INTERRUPT)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nothing to say, and nowhere to say it.
            return EXIT_FAILURE
        except Exception as error:
            if interrupts.exit_code is not None:
                return _fail("interrupted", interrupts.exit_code)
            sentence = explain(error)
            if sentence is None:
                raise
            return _fail(sentence, exit_code(error))


def _own_the_process(arguments: list[str]) -> None:
    """What holds for the whole process, so only where it is ours; and before anything starts JAX."""
    makes_folder = arguments[:1] in (["train"], ["convert"]) or arguments[:2] == ["data", "prepare"]
    fill_closed(output_matters=not makes_folder or bool({"-h", "--help"} & set(arguments)))
    if makes_folder:
        outlive_terminals()
    if arguments[:1] and arguments[0] in TRAINING_VERBS:
        keep_freed_memory()
    if arguments[:1] and arguments[0] in COMPILING_VERBS:
        from xlstm_jax.machine.programs import keep_programs  # the help should come at once

        keep_programs()


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        arguments[0] = "version"
    verb = arguments[0]
    if verb not in VERBS:
        from xlstm_jax.config import near_miss

        return _fail(f"there is no verb {verb!r}{near_miss(verb, VERBS)}; verbs are {', '.join(VERBS)}", EXIT_USAGE)
    return importlib.import_module(f"xlstm_jax.cli.{verb}").main(arguments[1:])


def usage() -> str:
    """The text of `xlstm --help`."""
    width = max(map(len, VERBS))
    listed = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    return (
        "usage: xlstm VERB ...\n\nTrain, evaluate and exchange xLSTM language models in JAX.\n\n"
        f"verbs:\n{listed}\n\n`xlstm VERB --help` tells more. A first model in minutes: xlstm train quickstart"
    )


def explain(error: Exception) -> str | None:
    """One sentence for an error that its user can do something about; None for all others."""
    if type(error).__module__.startswith("xlstm_jax."):
        return str(error)
    import shutil  # not before it is needed: the help should come at once

    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        # What `shutil.copytree` could not do, a (source, target, reason) each.
        _, target, why = error.args[0][0]
        error = OSError(errno.ENOSPC if "No space left" in str(why) else errno.EIO, str(why), str(target))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{f' ({error.filename})' if error.filename else ''}; what was saved before is untouched"
    if lacks_device(error):
        return no_device(error)
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        what = str(error).partition("\n")[0]
        if "RESOURCE_EXHAUSTED" in what:
            return (
                "the device has too little memory; a smaller batch, or more of --accumulate, needs less in training, "
                f"fewer prompts or --max-tokens in generation ({what})"
            )
        return f"the device failed: {what}"
    if isinstance(error, MemoryError):
        return f"this machine has too little memory{f' ({error})' if str(error) else ''}; smaller sizes need less"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'reading or writing failed'}: {error.strerror}"
    return None


def lacks_device(error: Exception) -> bool:
    """Whether JAX could not start on the platform that it was told to use."""
    if "Unable to initialize backend" in str(error):
        return True
    # Told to use a GPU where there is none, JAX fails an assertion of its own that says nothing.
    if not isinstance(error, AssertionError) or "jax" not in sys.modules:
        return False
    try:
        sys.modules["jax"].devices()
    except Exception:
        return True
    return False


def no_device(error: Exception) -> str:
    """One sentence for an error that `lacks_device`."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    told = f"JAX_PLATFORMS is {wanted!r}, but JAX can use" if wanted else "JAX can use"
    return f"{told} no such device here; unset it or set it to what is here, such as cpu{_because(error)}"


def _because(error: Exception) -> str:
    what = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
    return f" ({what})" if what else ""


def exit_code(error: Exception) -> int:
    """2 for a value that cannot be used, 1 for everything that went wrong later."""
    from xlstm_jax.config import ConfigError

    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE


def _fail(sentence: str, code: int) -> int:
    with contextlib.suppress(OSError):  # the exit code says it too
        try:
            print(f"xlstm: {sentence}", file=sys.stderr)
        finally:
            flush(sys.stderr, "standard error")
    return code
