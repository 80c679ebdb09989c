"""constraints.txt: one exact version of everything that pyproject.toml asks for, on every Python, and no PyTorch."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = [Requirement(line) for line in LINES if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [
    Requirement(line)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in group
]


def pins(python: str) -> dict[str, Requirement]:
    """The lines that hold on a Python, by name."""
    place = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    kept = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(place)]
    names = [canonicalize_name(pin.name) for pin in kept]
    assert len(set(names)) == len(names)
    return dict(zip(names, kept, strict=True))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_everything_asked_for_has_one_version_that_fits(python: str) -> None:
    found = pins(python)
    for wanted in ASKED:
        (only,) = found[canonicalize_name(wanted.name)].specifier
        assert only.operator == "=="
        assert wanted.specifier.contains(only.version), (wanted, only)


def test_the_pythons_of_both_jax_lines_are_there() -> None:
    versions = {python: str(pins(python)["jax"].specifier) for python in ("3.11", "3.12", "3.13")}
    assert versions["3.11"].startswith("==0.10.")
    assert versions["3.12"] == versions["3.13"]
    assert versions["3.12"].startswith("==0.12.")


def test_no_pytorch_triton_or_cuda_build_is_needed() -> None:
    heavy = ("torch", "triton", "nvidia", "cuda", "tensorflow")
    assert not [pin.name for pin in PINS if pin.name.lower().startswith(heavy)]
