"""The order of the house: each part of the package imports only from the parts below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import xlstm_jax

PACKAGE = Path(__file__).parents[2] / "xlstm_jax"
FLOORS = [
    *("cli", "presets", "evaluation", "cost", "training", "inference", "report", "scoring", "hub", "runs", "data"),
    *("models", "distributed", "kernels", "machine"),
]
"""From the top to the bottom."""
LEAVES = {
    "xlstm_jax.models.configs": ("xlstm_jax.config",),
    "xlstm_jax.config": (),
    "xlstm_jax.files": (),
}
"""Open to all, with what each may import of the package itself."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of what a source imports from the package, inside functions, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            # `from a.b import c` may mean the module a.b.c; from the root, what lives elsewhere
            names = [full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
            if base == "xlstm_jax":
                names += [f"{base}.{xlstm_jax.PLACES[a.name]}" for a in node.names if a.name in xlstm_jax.PLACES]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [str(word.value) for word in ast.walk(node) if isinstance(word, ast.Constant)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "xlstm_jax":
                yield node.lineno, name


def allowed(module: str, imported: str) -> bool:
    """Whether a module may import another one."""
    if module in LEAVES:
        return imported in LEAVES[module]
    if imported in LEAVES:
        return True
    if module == "xlstm_jax":
        return True  # it stands above all, and imports when a name is used
    above, below = module.split(".")[1], [*imported.split("."), ""][1]
    if not below:  # the root itself: `from xlstm_jax import __version__`
        return True
    return FLOORS.index(above) <= FLOORS.index(below)


def test_every_part_of_the_package_has_its_floor() -> None:
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    assert parts - {"config", "files"} == set(FLOORS)


def test_contributing_tells_of_each_floor_in_their_order() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    _, _, table = text.partition("## Where things are")
    assert re.findall(r"^\| `(\w+)` \|", table.partition("\n## ")[0], re.MULTILINE) == FLOORS


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    path = MODULES[module]
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {imported}"
        for line, imported in imports(path.read_text(), module, path.name == "__init__.py")
        if not allowed(module, imported)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("module", "source", "fits"),
    [
        ("xlstm_jax.kernels.x", "from xlstm_jax.models.shared import init", False),
        ("xlstm_jax.kernels.x", "def f():\n    import xlstm_jax.distributed", False),
        ("xlstm_jax.data.x", "from ..runs import folder", False),
        ("xlstm_jax.data.x", "from xlstm_jax import training", False),
        ("xlstm_jax.data.x", "from xlstm_jax import train", False),
        ("xlstm_jax.data.x", "from xlstm_jax import __version__, prepare", True),
        ("xlstm_jax.data.x", "import importlib\nimportlib.import_module('xlstm_jax.cli.data')", False),
        ("xlstm_jax.config", "from xlstm_jax.models.configs import ModelConfig", False),
        ("xlstm_jax.files", "from xlstm_jax.config import ConfigError", False),
        ("xlstm_jax.kernels.x", "from xlstm_jax.config import ConfigError", True),
        ("xlstm_jax.kernels.x", "from xlstm_jax.models.configs import ModelConfig", True),
        ("xlstm_jax.runs.x", "from . import folder\nfrom .folder import RunFolder\nfrom ..data import store", True),
        ("xlstm_jax.machine.x", "from xlstm_jax.files import write_atomic", True),
        ("xlstm_jax.cli.x", "from xlstm_jax import training", True),
    ],
)
def test_the_scan_sees_what_it_should(module: str, source: str, fits: bool) -> None:
    assert all(allowed(module, imported) for _, imported in imports(source, module, False)) == fits
