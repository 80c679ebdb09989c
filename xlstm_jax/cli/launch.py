"""`xlstm launch`: the same command in several processes, on this machine or on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from xlstm_jax.cli.parser import Parser
from xlstm_jax.config import ConfigError


def main(argv: Sequence[str]) -> int:
    from xlstm_jax.distributed.launch.local import run_locally

    arguments = list(argv)
    options, _, command = arguments[1:], None, []
    if "--" in options:
        place = options.index("--")
        options, command = options[:place], options[place + 1 :]
    parser = Parser(prog="xlstm launch local")
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int)
    call = parser.parse_args(options)
    if not command:
        raise ConfigError("no command")
    own = [sys.executable, "-c", "import sys; from xlstm_jax.cli import main; sys.exit(main())", *command]
    return run_locally(own, call.processes, call.devices)
