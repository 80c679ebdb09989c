"""`xlstm convert`: published weights to a run, and a run to a folder of such weights."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_jax.cli.names import RUNS, find_weights, run_path
from xlstm_jax.cli.parser import Parser
from xlstm_jax.config import ConfigError
from xlstm_jax.files import refuse_existing
from xlstm_jax.hub.formats import TITLES
from xlstm_jax.machine.progress import clock

if TYPE_CHECKING:
    from xlstm_jax.models.language_model import LanguageModelConfig
    from xlstm_jax.training.config import Experiment

_FORMATS = "\n".join(f"  {name:15}{title}" for name, title in TITLES.items())
EXAMPLES = f"""\
examples:
  xlstm convert ~/models/xLSTM-7b xlstm7b --dtype bfloat16     a published model -> runs/xlstm7b
  xlstm generate xlstm7b --prompt "The memory of"
  xlstm convert xlstm7b ~/models/mine --weight-mode fused      a run -> a folder that transformers loads
  xlstm convert mixed ~/models/mixed --format native           a run of any kind -> a folder that is read here

formats (a run is written in that which its weights came from, else in Hugging Face's; --format names another):
{_FORMATS}

A folder of Hugging Face has config.json, model.safetensors (or shards and their index) and the tokenizer's files; in
another format it has the weights as safetensors, too, and the model's config as config.json. A run's newest good
checkpoint is taken. Nothing is written unless every tensor is accounted for, and OUT must not be there yet.
"""

_M_MMAP_THRESHOLD = -3

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str]) -> int:
    """Run `xlstm convert ARGV`; returns the exit code."""
    arguments = _parser().parse_args(argv)
    _give_memory_back_at_once()
    source = find_weights(arguments.source)
    is_run = (source / "checkpoints").is_dir()
    target = arguments.to or ("huggingface" if is_run else "run")
    if is_run and target == "run":
        raise ConfigError(f"{source} is a run already; a copy to train is made by `xlstm train RUN --fork NAME`")
    if not is_run and target == "huggingface":
        raise ConfigError(f"{source} is no run: convert it to a run first, then that to Hugging Face's format")
    _refuse_unused(arguments, target)
    if target == "run":
        out = run_path(arguments.out)
        refuse_existing(out)
        with _working():
            _to_run(source, out, arguments)
    else:
        out = Path(arguments.out)
        if out.absolute().parent == RUNS.absolute() or out.resolve().parent == RUNS.resolve():
            raise ConfigError(f"{out} would lie among the runs, but it is to be no run: choose a place beside {RUNS}/")
        refuse_existing(out)
        with _working():
            _to_huggingface(source, out, arguments)
    return 0


def _working() -> contextlib.AbstractContextManager[None]:
    return clock("converting", terminal_only=True)


def _give_memory_back_at_once() -> None:
    """Tell glibc not to keep freed blocks of megabytes: tensors come one after the other, each of its own size."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has ways of its own
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _to_run(source: Path, out: Path, arguments: argparse.Namespace) -> None:
    from xlstm_jax.hub.converted import convert_to_run
    from xlstm_jax.hub.folders import open_source
    from xlstm_jax.hub.formats.base import ReadOptions
    from xlstm_jax.runs.folder import RunFolder
    from xlstm_jax.training.config import Experiment

    opened = open_source(source, format=arguments.format, config=arguments.config)
    options = ReadOptions(
        arguments.dtype, arguments.context_length, arguments.recurrent_layout, arguments.allow_nonfinite
    )
    convert_to_run(opened, out, options, experiment_of, tokenizer=arguments.tokenizer, eod=arguments.eod, say=_say)
    made = RunFolder(out).read_config(Experiment)
    _say(
        f"a copy to train (`xlstm train {out} --fork NAME`) takes {made.training.steps:,} steps of "
        f"{made.training.batch_size} rows of {made.seq_len:,} tokens at a learning rate up to {made.optimizer.lr:g}, "
        "unless it is told otherwise (--steps, --batch_size, --context_length, --lr)"
    )


def experiment_of(model: LanguageModelConfig, tokenizer: str) -> Experiment:
    """What a copy of a converted run is trained with where its user says nothing else."""
    from xlstm_jax.training.config import DataConfig, Experiment, TrainingConfig

    return Experiment(model=model, data=DataConfig(tokenizer=tokenizer), training=TrainingConfig(sample_prompts=()))


def _to_huggingface(source: Path, out: Path, arguments: argparse.Namespace) -> None:
    from xlstm_jax.hub.card import model_card
    from xlstm_jax.hub.folders import parse_size, write_huggingface, written_as
    from xlstm_jax.hub.kept import Kept
    from xlstm_jax.inference.run import model_config, read_params, read_tokenizer
    from xlstm_jax.runs.folder import RunFolder

    shard_bytes = parse_size(arguments.shard_size)
    folder = RunFolder.open(source)
    # A model that cannot be written is refused before its weights are read.
    config, kept = model_config(folder), Kept.read(folder.huggingface_dir)
    format, _ = written_as(config, kept.record, arguments.weight_mode, arguments.format)
    step, params = read_params(folder, config, arguments.step, lambda sentence: _say(f"note: {sentence}"))
    tokenizer = read_tokenizer(folder, config)
    write_huggingface(
        out,
        config,
        params,
        tokenizer,
        kept,
        info=folder.read_tokenizer_info(),
        format=format,
        readme=model_card(folder, out.name, format, config, step),
        weight_mode=arguments.weight_mode,
        dtype=arguments.dtype,
        shard_bytes=shard_bytes,
        allow_nonfinite=arguments.allow_nonfinite,
        say=_say,
    )
    _say(f"{out} holds the checkpoint of step {step} of {folder}, as {TITLES[format]}")


def _refuse_unused(arguments: argparse.Namespace, target: str) -> None:
    """An option that has no effect on this way is a mistake."""
    only = {
        "run": ("config", "tokenizer", "eod", "context_length", "recurrent_layout"),
        "huggingface": ("step", "weight_mode"),
    }
    other = "huggingface" if target == "run" else "run"
    for name in only[other]:
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} has no meaning here: it is for conversions to {other}, and this is one to {target}"
            )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr if sentence.startswith("note:") else sys.stdout)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="xlstm convert",
        description="Turn published weights into a run, or a run into a folder for Hugging Face's transformers.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder with weights (or one safetensors file), or a run (NAME: runs/NAME)")
    add("out", metavar="OUT", help="what to make: a run (NAME: runs/NAME), or a folder of weights")
    add("--to", choices=("run", "huggingface"), help="what to make (default: the one that SOURCE is not)")
    add("--dtype", choices=DTYPES, help="cast the weights (default: as they are)")
    add("--format", metavar="NAME", help=f"of the folder: {', '.join(TITLES)} (default: as config.json tells)")
    add("--allow-nonfinite", action="store_true", help="take weights that are NaN or infinite, with a note")
    into_run = parser.add_argument_group("to a run")
    add = into_run.add_argument
    add("--config", metavar="FILE", help="the model's config (default: config.json beside the weights)")
    add("--tokenizer", metavar="PATH", help="tokenizer.json, or 'bytes' (default: tokenizer.json beside the weights)")
    add("--eod", metavar="TOKEN", help="the tokenizer's token that ends documents, where it is not evident")
    add("--context-length", type=int, metavar="N", help="tokens in a row of training to come, and in a Llama's cache")
    add("--recurrent-layout", choices=("vanilla", "cuda"), help="of the sLSTM's weights (xlstm-package)")
    into_folder = parser.add_argument_group("to a folder (--to huggingface)")
    add = into_folder.add_argument
    add("--step", type=int, metavar="N", help="take the checkpoint of this step (default: the newest good one)")
    add("--weight-mode", choices=("single", "fused"), help="of xLSTM (default: as it was published, else single)")
    add("--shard-size", default="5GB", metavar="SIZE", help="largest size of a file (default 5GB)")
    return parser
