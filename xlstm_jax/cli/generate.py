"""`xlstm generate`: continue a prompt with a trained model."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from xlstm_jax.cli.parser import Parser
from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.machine.progress import clock

if TYPE_CHECKING:
    from xlstm_jax.inference.generate import Delta
    from xlstm_jax.inference.run import Run
    from xlstm_jax.inference.sampling import Sampling

EXAMPLES = """\
examples:
  xlstm generate quickstart --prompt "def "
  xlstm generate runs/quickstart --prompt "import " --prompt "class " --temperature 0.5 --stop "\\n\\n"
  head -20 some_file.py | xlstm generate quickstart --max-tokens 500

RUN is a run's folder, or NAME for runs/NAME; it may be training meanwhile. Without --prompt the prompt is what comes
from standard input, to the last byte. The same seed gives the same text.
"""

# Control characters but tab and line feed would be carried out by the terminal; they are shown as symbols instead.
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_SHOWN |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def main(argv: Sequence[str]) -> int:
    """Run `xlstm generate ARGV`; returns the exit code."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown[0], parser)}")
    # After the parser, so that --help needs no JAX.
    from xlstm_jax.inference.sampling import Sampling

    settings = Sampling(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=tuple(_unescaped(stop) for stop in arguments.stop),
        heal=not arguments.no_heal,
    )
    if arguments.samples < 1:
        raise ConfigError(f"--samples is {arguments.samples}, but must be a whole number >= 1")
    from xlstm_jax.cli.names import find_run
    from xlstm_jax.inference.run import load

    path = find_run(arguments.run)
    with clock(f"loading {path}", terminal_only=True):
        run = load(
            path,
            arguments.step,
            say=lambda sentence: print(f"note: {sentence}", file=sys.stderr),
            mesh=arguments.mesh,
        )
    # Bytes that are not UTF-8 reach us as half surrogate pairs, and become those bytes again.
    prompts = [os.fsencode(prompt) for prompt in arguments.prompt] or [_standard_input()]
    prompts = [prompt for prompt in prompts for _ in range(arguments.samples)]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    if arguments.json:
        _print_json(run, prompts, settings)
    else:
        _print_text(run, prompts, settings, echo=not arguments.no_echo)
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Continue a prompt with a trained model."
    parser = Parser(prog="xlstm generate", description=description, epilog=EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of the run, or NAME for runs/NAME")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to continue (repeatable)")
    add("--max-tokens", type=int, default=256, metavar="N", help="tokens to make, at most (default 256)")
    add("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest always (default 0.8)")
    add("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens")
    add("--top-p", type=float, metavar="P", help="choose among the likeliest tokens that together have probability P")
    add("--seed", type=int, default=0, metavar="N", help="of the random numbers (default 0)")
    add("--stop", action="append", default=[], metavar="TEXT", help=r"end before this text; knows \n, \t (repeatable)")
    add("--samples", type=int, default=1, metavar="N", help="continue each prompt N times (default 1)")
    add("--step", type=int, metavar="N", help="use the checkpoint of this step (default: the newest)")
    add("--mesh", metavar="AXIS=N,...", help="lay the model out over devices, as in fsdp=4,tp=2 (default: one)")
    add("--no-heal", action="store_true", help="keep the prompt's last token as it is, though a longer one would fit")
    add("--no-echo", action="store_true", help="print the continuation without its prompt")
    add("--json", action="store_true", help="print one JSON object a prompt, when all are finished")
    return parser


def _meant(option: str, parser: argparse.ArgumentParser) -> str:
    """What may be meant by an option that there is not, for an error."""
    from xlstm_jax.inference.sampling import ELSEWHERE

    name = option.partition("=")[0]
    meant = ELSEWHERE.get(name.lstrip("-").replace("-", "_"))
    return f"; {meant}" if meant else near_miss(name, [known for known in parser._option_string_actions if known[2:]])


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ConfigError("there is no prompt: standard input is closed; --prompt TEXT gives one")
    if sys.stdin.isatty():
        print("reading the prompt (end it with Ctrl-D):", file=sys.stderr)
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ConfigError(f"the prompt cannot be read from standard input ({error.strerror})") from error


def _unescaped(text: str) -> str:
    for written, meant in (("\\n", "\n"), ("\\t", "\t")):
        text = text.replace(written, meant)
    return text


def _takes_styles() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _print_text(run: Run, prompts: Sequence[bytes], settings: Sampling, *, echo: bool) -> None:
    """Stream row after row: the later ones are made at the same time and wait for their turn."""
    terminal = sys.stdout.isatty()
    bold, plain = ("\x1b[1m", "\x1b[0m") if terminal and _takes_styles() else ("", "")

    def show(text: str) -> None:
        sys.stdout.write(text.translate(_SHOWN) if terminal else text)
        sys.stdout.flush()

    def begin(row: int) -> None:
        if len(prompts) > 1:
            show(f"{chr(10) if row else ''}--- {row + 1} of {len(prompts)} ---\n")
        if echo:
            prompt = prompts[row].decode("utf-8", "replace")
            sys.stdout.write(f"{bold}{prompt.translate(_SHOWN)}{plain}" if terminal else prompt)
            sys.stdout.flush()

    stream = run.generator.stream(prompts, settings)
    with clock("compiling and reading the prompt", terminal_only=True):
        first = list(itertools.islice(stream, 1))
    try:
        begin(0)
        for row, text, ended in _in_order(itertools.chain(first, stream), len(prompts)):
            show(text)
            if ended:
                show("\n")
                if row + 1 < len(prompts):
                    begin(row + 1)
    except BrokenPipeError:
        raise
    except BaseException:
        print(flush=True)  # what is said next begins on a line of its own
        raise


def _in_order(deltas: Iterator[Delta], rows: int) -> Iterator[tuple[int, str, bool]]:
    """(row, text, whether the row ends), all of a row before anything of the next."""
    waiting = [""] * rows
    ended = [False] * rows
    turn = 0
    for delta in deltas:
        waiting[delta.row] += delta.text
        ended[delta.row] |= delta.finish is not None
        while turn < rows and (waiting[turn] or ended[turn]):
            yield turn, waiting[turn], ended[turn]
            waiting[turn] = ""
            if not ended[turn]:
                break
            turn += 1


def _print_json(run: Run, prompts: Sequence[bytes], settings: Sampling) -> None:
    texts: list[str] = [""] * len(prompts)
    last: dict[int, Delta] = {}
    with clock("generating", terminal_only=True):
        for delta in run.generator.stream(prompts, settings):
            texts[delta.row] += delta.text
            last[delta.row] = delta
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        record = {
            "prompt": prompt.decode("utf-8", "replace"),
            "text": text,
            "finish": last[row].finish,
            "tokens": last[row].tokens,
            "step": run.step,
            "settings": dataclasses.asdict(settings),
        }
        print(json.dumps(record, ensure_ascii=False))
