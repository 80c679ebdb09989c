"""The pages that are made from the code say all of it: the modules that other packages' users know, every verb, every
record of results."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

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
    assert "```{xlstm-help} data prepare\n" in pages["data-prepare.md"]


RECORD = {
    "table": "made-up",
    "title": "Made up",
    "label": "same task, short recipe",
    "protocol": "Two tasks.",
    "environment": {"device": "cpu", "jax": "0.10", "flags": None},
    "seeds": [1, 2],
    "columns": [{"name": "parity", "unit": "%"}, {"name": "sums", "unit": None}],
    "rows": [
        {
            "name": "sLSTM",
            "cells": [{"mean": 99.25, "sd": 0.5, "values": [98.9, 99.6]}, {"failed": "loss is NaN at step 3"}],
            "published": [
                {"column": "parity", "value": 100.0, "source": "A et al.", "variant": "5 seeds"},
                {"column": "parity", "value": 97.5, "source": "B et al.", "variant": None},
                {"column": "sums", "value": 27.7, "source": "B et al.", "variant": None},
            ],
        },
        {"name": "mLSTM", "cells": [None, {"mean": 28, "sd": None, "values": [28]}], "published": []},
    ],
    "command": "xlstm eval ...",
}


def test_a_record_of_results_shows_all_published_values_and_what_failed(tmp_path: Path) -> None:
    import results

    (tmp_path / "a.json").write_text(json.dumps(RECORD))
    shown = results.page(tmp_path)
    for line in (
        "| | | parity, % | sums |",
        "| **sLSTM** | here | **99.25** ± 0.5 | failed: loss is NaN at step 3 |",
        "|  | A et al. (5 seeds) | 100 |  |",
        "|  | B et al. | 97.5 | 27.7 |",
        "| **mLSTM** | here | — | **28** |",
        "Seeds 1, 2; mean ± standard deviation over them. Made by",
        "on device cpu, jax 0.10.",
    ):
        assert line in shown.splitlines()
    assert "**same task, short recipe**" in shown
    with pytest.raises(ValueError, match=r"b\.json: label is 'equal'"):
        results.markdown(RECORD | {"label": "equal"}, "b.json")
    with pytest.raises(ValueError, match="sLSTM has 2 cells for 1 columns"):
        results.markdown(RECORD | {"columns": RECORD["columns"][:1]}, "b.json")


def test_every_recorded_benchmark_is_shown_with_its_command() -> None:
    import benchmark_records

    shown = benchmark_records.page()
    for path in (DOCS.parent / "benchmarks/results").glob("*.json"):
        assert json.loads(path.read_text()).get("command", "xlstm check") in shown
    assert "nan" not in shown
