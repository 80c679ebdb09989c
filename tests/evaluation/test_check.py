"""The check finds what is wrong with an implementation, and nothing where nothing is."""

from __future__ import annotations

import io
import itertools
import json
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from xlstm_jax.cli import main
from xlstm_jax.evaluation.kernels import Report, all_cells, print_report, run, run_check
from xlstm_jax.evaluation.kernels.cell import Truth
from xlstm_jax.kernels.mlstm import api as mlstm_api
from xlstm_jax.kernels.mlstm.recurrent import recurrent
from xlstm_jax.kernels.registry import Implementation, table
from xlstm_jax.kernels.slstm import api as slstm_api

BOUNDS = ("nats", "dfeatures", "dkernel")


def judged(cell: str, *cases: str) -> Report:
    return run_check(cells=[cell], dtypes=["float32"], cases=lambda case: case.name in cases)


def of(report: Report, implementation: str) -> dict[str, str]:
    return {f.case: f.verdict for f in report.findings if f.implementation == implementation}


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def without_normaliser_gradient(q, k, v, i, f, state, **options):
    """The forward pass is right; the gradient is that of a normaliser held constant."""
    h, final = recurrent(q, k, v, i, f, state, **options)
    return h + 0.5 * (q.sum() - jax.lax.stop_gradient(q.sum())), final


def not_finite(q, k, v, i, f, state, **options):
    h, final = recurrent(q, k, v, i, f, state, **options)
    return jnp.where(q[..., :1] > 1e9, h, jnp.log(-jnp.ones(())) * h), final


def raising(*arguments, **options):
    raise NotImplementedError("no kernel for this device")


def deaf_to_the_mask(q, k, v, i, f, state, *, mask, **options):
    return recurrent(q, k, v, i, f, state, mask=None, **options)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (without_normaliser_gradient, "dq"),
        (not_finite, "not finite"),
        (raising, "NotImplementedError: no kernel for this device"),
    ],
)
def test_a_wrong_implementation_is_named_and_the_others_go_on(monkeypatch, wrong, said):
    monkeypatch.setitem(mlstm_api.FORMS, "wrong", Implementation("wrong", wrong))
    monkeypatch.delitem(mlstm_api.FORMS, "parallel")
    report = judged("mlstm", "resets")
    assert not report.passed
    assert of(report, "wrong") == {"resets": "failed"}
    assert of(report, "recurrent") == of(report, "chunkwise") == of(report, "step") == {"resets": "ok"}
    text = shown(report)
    assert said in text
    assert "FAILED" in text
    assert "1 FAILED" in text


def test_what_is_not_supported_is_told_with_its_reason_and_fails_nothing(monkeypatch):
    def for_another_device(shapes, dtype, device):
        return f"it is written for TPUs, not for a {device.platform}"

    toy = Implementation("toy", raising, supported=for_another_device)
    monkeypatch.setattr(mlstm_api, "FORMS", table(mlstm_api.FORMS["recurrent"], toy))
    report = judged("mlstm", "resets")
    assert of(report, "toy") == {"resets": "not run"}
    assert of(report, "recurrent") == {"resets": "ok"}
    assert report.passed
    assert "mLSTM, exp gate, toy, 1 of float32: it is written for TPUs, not for a cpu" in shown(report)


def test_a_forgotten_mask_fails_where_there_is_padding_alone(monkeypatch):
    forms = table(mlstm_api.FORMS["recurrent"], Implementation("wrong", deaf_to_the_mask))
    monkeypatch.setattr(mlstm_api, "FORMS", forms)
    report = judged("mlstm", "resets", "padding")
    assert of(report, "wrong") == {"resets": "ok", "padding": "failed"}
    assert of(report, "recurrent") == {"resets": "ok", "padding": "ok"}


def test_halved_gradients_at_ties_are_found_in_the_scalar_memory(monkeypatch):
    @jax.custom_vjp
    def halved(x):
        return x

    halved.defvjp(lambda x: (x, None), lambda _, dx: (dx / 2,))

    oracle = slstm_api.FORMS["recurrent"]

    def wrong(wx, r, b, state, **options):
        return oracle.run(halved(wx), r, b, state, **options)

    monkeypatch.setattr(slstm_api, "FORMS", table(oracle, Implementation("wrong", wrong)))
    report = judged("slstm", "ties of the stabiliser")
    assert of(report, "wrong") == {"ties of the stabiliser": "failed"}
    assert of(report, "recurrent") == {"ties of the stabiliser": "ok"}
    (failed,) = report.failed
    assert (failed.tensor, failed.error) == ("dwx", pytest.approx(0.5, rel=1e-3))


def test_of_cases_that_share_a_program_the_one_that_raises_has_failed_alone(monkeypatch):
    cell = all_cells()["mlstm"]
    first, second = next((a, b) for a, b in itertools.combinations(cell.cases, 2) if a.program == b.program)

    def raising_at_first(cell, form, cases, *rest):
        if first in cases:
            raise FloatingPointError("here")
        return [{} for _ in cases]

    monkeypatch.setattr(run, "run_form", raising_at_first)
    truths: Future = Future()
    truths.set_result({(second.name, "float32"): Truth({}, {})})
    task = run._Task(cell, "recurrent", "float32", (first, second))
    findings = run._judge_task(task, 0, jax.devices()[0], truths)
    assert [(f.case, f.verdict) for f in findings] == [(first.name, "failed"), (second.name, "ok")]


def test_the_command_ends_with_the_verdict(monkeypatch, capsys):
    cells, dtypes = ["--cell", "cross-entropy"], ["--dtype", "float32"]
    assert main(["check", *cells, *dtypes]) == 0
    text = capsys.readouterr().out
    assert "all within their bounds" in text
    assert "mLSTM: None picks chunkwise" in text
    assert "sLSTM: None picks fused" in text

    monkeypatch.setattr("xlstm_jax.evaluation.kernels.cell.bounds", lambda *given: dict.fromkeys(BOUNDS, 1e-30))
    assert main(["check", *cells, *dtypes, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert {finding["verdict"] for finding in report["findings"]} >= {"failed"}


def test_wrong_words_are_refused(capsys):
    assert main(["check", "--cell", "mlsm"]) == 2
    assert "--cell is 'mlsm', but must be one of mlstm" in capsys.readouterr().err
    assert main(["check", "--dtype", "float16"]) == 2
    assert main(["check", "--seed", "-1"]) == 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "cells"), [("float32", all_cells()), ("bfloat16", ["mlstm", "slstm", "cross-entropy"])]
)
def test_all_cells_are_within_their_bounds_here(dtype, cells):
    """In short rows; CI types `xlstm check`, which has the long ones and all that is not run here."""
    report = run_check(cells=list(cells), dtypes=[dtype], cases=lambda case: case.quick and case.length < 100)
    assert report.passed, shown(report)
    assert {f.verdict for f in report.findings} == {"ok"}
    assert {f.dtype for f in report.findings} == {dtype}
    assert len({f.cell for f in report.findings}) == len(cells)


def test_what_is_run_for_its_speed_is_checked_as_it_is_compiled_in_use():
    cells = all_cells()
    for name, fast in (("mlstm", {"chunkwise", "parallel", "step"}), ("slstm", {"fused", "step"})):
        assert set(cells[name].forms) - cells[name].plainly == fast
