"""`xlstm check`: is the mathematics right on this device?"""

from __future__ import annotations

import json
from collections.abc import Sequence

from xlstm_jax.cli.parser import Parser
from xlstm_jax.config import ConfigError

EPILOG = """\
Every implementation of the mLSTM, the sLSTM and the chunked cross-entropy that this device can run is compared with
float64: outputs, final states and the gradients of all inputs, at several lengths, with resets, padding, initial
states and extreme gates; what cannot run here is told, with the reason. The exit code is 1 if anything is beyond its
bound.

keys of --json: passed, device, truth_device, seed, seconds; findings: a list with cell, implementation, case, dtype,
verdict ("ok", "failed", "not run"), tensor (the one nearest to its bound), error, bound, reason; picks: a list with
cell, implementation (what None picks), reason.
"""


def main(argv: Sequence[str]) -> int:
    """Run `xlstm check ARGV`; returns the exit code."""
    parser = Parser(
        prog="xlstm check",
        description="Check the kernels on this device against float64.",
        epilog=EPILOG,
    )
    parser.add_argument("--all", action="store_true", help="run and show every case, in every dtype")
    parser.add_argument("--cell", action="append", metavar="NAME", help="check this cell alone (repeatable)")
    parser.add_argument("--dtype", action="append", metavar="NAME", help="check this dtype alone (repeatable)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    # After the parser, so that --help needs no JAX.
    from xlstm_jax.evaluation.kernels import print_report, run_check
    from xlstm_jax.evaluation.kernels.cells import CELLS
    from xlstm_jax.evaluation.kernels.run import DTYPES
    from xlstm_jax.machine.progress import Progress, make_console

    cells = _known("--cell", arguments.cell, CELLS)
    dtypes = _known("--dtype", arguments.dtype, DTYPES) if arguments.dtype else None
    if arguments.seed < 0:
        raise ConfigError(f"--seed is {arguments.seed}, but must be a whole number >= 0")
    with Progress().bar("checking") as bar:
        report = run_check(
            cells=cells,
            dtypes=dtypes,
            everything=arguments.all,
            seed=arguments.seed,
            progress=lambda finished, total, what: bar.to(finished, what, total),
        )
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        print_report(report, make_console(), everything=arguments.all)
    return 0 if report.passed else 1


def _known(option: str, names: list[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{option} is {name!r}, but must be one of {', '.join(known)}")
    return tuple(name for name in known if names is None or name in names)
