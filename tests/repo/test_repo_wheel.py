"""The wheel holds all of the package: installed elsewhere, every module of it can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("xlstm_jax", "pyproject.toml", "README.md", "LICENSE")

IMPORT_ALL = """
import pathlib, pkgutil, importlib.util, sys
import xlstm_jax
home = pathlib.Path(xlstm_jax.__file__).parent
assert home.is_relative_to(sys.prefix), home
names = [module.name for module in pkgutil.walk_packages([str(home)], "xlstm_jax.")]
if not importlib.util.find_spec("lm_eval"):
    names.remove("xlstm_jax.evaluation.lm_eval.harness")
for name in names:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(home), module.__file__
print("\\n".join(names))
"""


def run(*words: object, cwd: Path) -> str:
    # PYTHONPATH, or a checkout as the current folder, would hide what the wheel lacks.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a clean copy of what is checked in: leftovers of earlier builds must not help."""
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "source"
    copy.mkdir()
    for path in (source for name in SOURCES for source in sorted([ROOT / name, *(ROOT / name).rglob("*")])):
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, copy, cwd=place)
    (built,) = place.glob("*.whl")
    return built


def test_the_wheel_says_what_it_is_and_brings_its_papers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "xlstm_jax/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"xlstm_jax"}
    assert "License-Expression: Apache-2.0" in metadata
    assert "Description-Content-Type: text/markdown" in metadata
    assert "make quickstart" in metadata
    in_checkout = {str(path.relative_to(ROOT)) for path in (ROOT / "xlstm_jax").rglob("*.py")}
    assert in_checkout <= set(names)


def test_every_module_imports_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (packages,) = home.glob("lib/python3*/site-packages")
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *("install", "--no-deps", "--no-index", "--quiet", wheel),
        cwd=tmp_path,
    )
    # The dependencies of the environment that tests run in; as `.pth` of its own folder is not followed from here,
    # its editable install of the checkout stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    names = run(python, "-c", IMPORT_ALL, cwd=tmp_path).split()
    assert "xlstm_jax.cli.train" in names
    assert "xlstm_jax.kernels.mlstm.chunkwise" in names
    assert "xlstm train quickstart" in run(home / "bin" / "xlstm", "--help", cwd=tmp_path)
