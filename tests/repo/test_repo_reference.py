"""The pages that are made from the code say all of it: the modules that other packages' users know, every verb, every
record of results."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PARALLEL = "xlstm_jax.models.xlstm_parallel"
CELL, STACK = f"{PARALLEL}.blocks.mlstm.cell", f"{PARALLEL}.xlstm_block_stack"
PARALLEL_CONFIG = "xlstm_jax.models.configs.ParallelConfig | None"
NORMS = "Literal['layernorm', 'rmsnorm']"
DISTRIBUTION = "xlstm_jax.models.shared.init.InitDistribution"
FLOAT = "xlstm_jax.models.configs.FloatName"

WANTED = {
    f"{CELL}.mLSTMCellConfig": {
        "context_length": ("int", "-1"),
        "embedding_dim": ("int", "-1"),
        "num_heads": ("int", "-1"),
        "backend": (f"{PARALLEL}.blocks.mlstm.backend.mLSTMBackendNameAndKwargs", "mLSTMBackendNameAndKwargs()"),
        "norm_eps": ("float", "1e-06"),
        "norm_type": (NORMS, "'layernorm'"),
        "norm_type_v1": (NORMS, "'layernorm'"),
        "dtype": (FLOAT, "'bfloat16'"),
        "gate_dtype": (FLOAT, "'float32'"),
        "gate_soft_cap": ("float | None", "None"),
        "gate_linear_headwise": ("bool", "False"),
        "igate_bias_init_range": ("tuple[float, float] | float | None", "None"),
        "fgate_bias_init_range": ("tuple[float, float] | float | None", "(3.0, 6.0)"),
        "add_qk_norm": ("bool", "False"),
        "reset_at_document_boundaries": ("bool", "False"),
        "reset_fgate_value": ("float", "-25.0"),
        "parallel": (PARALLEL_CONFIG, "None"),
        "_dtype": None,
        "_gate_dtype": None,
        "to_dict": None,
    },
    f"{CELL}.mLSTMCell": {"config": (f"{CELL}.mLSTMCellConfig", None)},
    f"{STACK}.xLSTMBlockStackConfig": {
        "mlstm_block": (f"{PARALLEL}.blocks.mlstm.block.mLSTMBlockConfig | None", "None"),
        "slstm_block": (f"{PARALLEL}.blocks.slstm.block.sLSTMBlockConfig | None", "None"),
        "context_length": ("int", "-1"),
        "num_blocks": ("int", "1"),
        "embedding_dim": ("int", "128"),
        "add_post_blocks_norm": ("bool", "True"),
        "bias": ("bool", "False"),
        "dropout": ("float", "0.0"),
        "scan_blocks": ("bool", "False"),
        "dtype": (FLOAT, "'bfloat16'"),
        "parallel": (PARALLEL_CONFIG, "None"),
        "init_distribution_embed": (DISTRIBUTION, "'normal'"),
        "init_distribution_out": (DISTRIBUTION, "'normal'"),
        "slstm_at": ("list[int] | Literal['all']", "[]"),
        "_block_map": ("str | None", "None"),
        "block_map": None,
        "_create_block_map": None,
        "_dtype": None,
        "to_dict": None,
    },
    f"{STACK}.xLSTMBlockStack": {"config": (f"{STACK}.xLSTMBlockStackConfig", None)},
    f"{STACK}.BlockStack": {"config": (f"{STACK}.xLSTMBlockStackConfig", None), "_create_blocks": None},
}
"""What the field's reference documentation says of these classes: each field with its type and default, and the other
members. Where ours is narrower than `str`, `Any` or `list[int]`, or lies one module deeper, ours stands here."""


@pytest.fixture(autouse=True)
def extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "extensions")


def entries(page: str) -> dict[str, dict[str, tuple[str | None, str | None] | None]]:
    """The classes of a page with their members: (type, default) of a field, None of others."""
    found: dict[str, dict[str, tuple[str | None, str | None] | None]] = {}
    for block in re.split(r"^\.\. autoclass:: ", page, flags=re.MULTILINE)[1:]:
        members = found[block.split()[0]] = {}
        for name, options in re.findall(r"^   \.\. py:attribute:: (\w+)\n((?:      :.*\n)*)", block, re.MULTILINE):
            said = dict(re.findall(r":(\w+): (.*)", options))
            members[name] = (said.get("type"), said.get("value"))
        members |= {path.rpartition(".")[2]: None for path in re.findall(r"auto(?:method|property):: (\S+)", block)}
    return found


def test_the_modules_that_others_know_are_complete() -> None:
    import reference

    shown = {name: members for module in (CELL, STACK) for name, members in entries(reference.page(module)).items()}
    for name, wanted in WANTED.items():
        assert {member: shown[name][member] for member in wanted} == wanted, name
        module, _, kind = name.rpartition(".")
        base = "SubModelConfig" if kind.endswith("Config") else "Module"
        assert base in [one.__name__ for one in getattr(importlib.import_module(module), kind).__mro__]


def test_every_public_module_has_its_page_and_every_name_of_the_top_leads_to_one() -> None:
    import reference

    import xlstm_jax

    modules = reference.public_modules()
    assert {CELL, STACK, "xlstm_jax.models.shared", "xlstm_jax.kernels.mlstm.api"} <= set(modules)
    assert not [name for name in modules if name.startswith("xlstm_jax.cli") or "._" in name]
    assert all(reference.source_of(name).text for name in modules), "a module says nothing of itself"
    top = reference.page("xlstm_jax")
    for name in set(xlstm_jax.__all__) - {"__version__", "load"}:
        home = reference.home("xlstm_jax", name)
        assert f":py:obj:`{name} <{home}>`" in top
        assert home.rpartition(".")[0] in modules


def test_names_that_pages_link_to_are_there() -> None:
    import reference

    for page in sorted(DOCS.glob("*.md")):
        for target in re.findall(r"\{py:\w+\}`(?:[^`<]*<|~)?(xlstm_jax[\w.]*)>?`", page.read_text()):
            module, _, name = target.rpartition(".")
            there = target in reference.public_modules() or name in reference.source_of(module).shown
            assert there, f"{page.name} links to {target}, which has no entry"


def test_every_verb_and_every_word_behind_one_has_its_page() -> None:
    import commands

    from xlstm_jax.cli import VERBS
    from xlstm_jax.evaluation.suite import suites

    pages = commands.pages()
    assert {f"{verb}.md" for verb in VERBS} | {f"eval-{suite.name}.md" for suite in suites()} <= set(pages)
    assert "eval-text" in pages["eval.md"]
    assert {f"commands/{verb}" for verb in VERBS} <= set(commands.verbs().splitlines())
    assert "```{xlstm-help} data prepare\n" in pages["data-prepare.md"]


def made_up() -> dict[str, Any]:
    """The record of a table with a failure, a missing cell and two sources that disagree."""
    from xlstm_jax.evaluation.table.table import Column, Published, Row, Table, record_of

    table = Table(
        name="made-up",
        title="Made up",
        rows=(Row("slstm", "sLSTM"), Row("mlstm", "mLSTM")),
        columns=(Column("parity", "parity", "%", "its last answer"), Column("sums", "sums", "nats", digits=2)),
        jobs=(),
        protocol="Two tasks.",
        differences=("40 steps",),
        published=(
            Published("slstm", "parity", 100.0, None, "A et al.", "5 seeds"),
            Published("slstm", "parity", 97.5, 1.5, "B et al.", "best of 3"),
            Published("slstm", "sums", 2.77, None, "B et al.", "best of 3"),
        ),
    )
    trained = [
        {"row": "slstm", "columns": ["parity"], "seed": 1, "values": {"parity": 0.989}, "error": None},
        {"row": "slstm", "columns": ["parity"], "seed": 2, "values": {"parity": 0.997}, "error": None},
        {"row": "slstm", "columns": ["sums"], "seed": 1, "values": {}, "error": "loss is NaN at step 3"},
        {"row": "mlstm", "columns": ["sums"], "seed": 1, "values": {"sums": 2.5}, "error": None},
    ]
    common = {"choice": "", "selection": None, "seconds": 1.0}
    measured = [{**common, **entry, "key": str(i)} for i, entry in enumerate(trained)]
    environment = {"jax": "0.10", "cores": 2, "processor": "a CPU", "device_kind": "cpu"}
    return {**record_of(table, measured, (1, 2)), "command": "xlstm eval ...", "environment": environment}


def test_a_record_of_results_shows_all_published_values_and_what_failed(tmp_path: Path) -> None:
    import results

    record = made_up()
    (tmp_path / "a.json").write_text(json.dumps(record))
    shown = results.page(tmp_path).splitlines()
    for line in (
        "| | | parity, % | sums, nats |",
        "| sLSTM | here | 99.3 ±0.6 | 1 failed |",
        "|  | a | 100 |  |",
        "|  | b | 97.5 ±1.5 | 2.77 |",
        "| mLSTM | here | - | 2.50 |",
        "* a: A et al. (5 seeds).",
        "* b: B et al. (best of 3).",
        "* parity: its last answer.",
        "* Failed: slstm, sums, seed 1: loss is NaN at step 3",
        "on 2 cores of a CPU, cpu, with JAX 0.10.",
    ):
        assert line in shown
    assert any(line.startswith("**same task, short recipe**") for line in shown)
    with pytest.raises(ValueError, match=r"b\.json: label is 'equal'"):
        results.markdown(record | {"label": "equal"}, "b.json")
    with pytest.raises(ValueError, match="slstm has 2 cells for 1 columns"):
        results.markdown(record | {"columns": record["columns"][:1]}, "b.json")


def test_every_recorded_benchmark_is_shown_with_its_command() -> None:
    import benchmark_records

    shown = benchmark_records.page()
    for path in (DOCS.parent / "benchmarks/results").glob("*.json"):
        assert json.loads(path.read_text()).get("command", "xlstm check") in shown
    assert "nan" not in shown
