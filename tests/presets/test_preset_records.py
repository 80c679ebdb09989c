"""Presets are what is recorded of them: configs, parameters, and the operations of a training step."""

from __future__ import annotations

import difflib

import pytest
from record_presets import FOLDER, LOWERED, OPERATIONS, description, operations

from xlstm_jax.presets import preset_names


def recorded(name: str) -> tuple[str, str, str]:
    """(what is recorded of a preset, the title of its operations, these)"""
    text, title, counts = (FOLDER / f"{name}.txt").read_text().partition("\n[operations")
    title, _, counts = counts.partition("\n")
    return text, f"[operations{title}", counts


def check(name: str, before: str, now: str) -> None:
    changed = [
        line
        for line in difflib.unified_diff(before.splitlines(), now.splitlines(), "recorded", "now", n=0, lineterm="")
        if not line.startswith("@@")
    ]
    if changed:
        more = f"\n... and {len(changed) - 40} more lines" if len(changed) > 40 else ""
        pytest.fail(
            f"the preset {name} is not what is recorded of it. If that is meant, let\n"
            f"    python tests/presets/record_presets.py {name}\nrecord it, and show the diff:\n"
            + "\n".join(changed[:40])
            + more,
            pytrace=False,
        )


def test_every_preset_is_recorded_and_no_other() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_configs_and_parameters_are_those_recorded(name: str) -> None:
    check(name, recorded(name)[0], description(name))


@pytest.mark.parametrize("name", LOWERED)
def test_a_training_step_has_the_operations_recorded(name: str) -> None:
    _, title, counts = recorded(name)
    if title != OPERATIONS:
        pytest.skip(f"what is recorded is: {title}; this is another JAX")
    check(name, counts, operations(name))
