"""`import xlstm_jax` is light, and hands on its public names when they are used."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import xlstm_jax

LIGHT = """
import sys, xlstm_jax
dir(xlstm_jax), xlstm_jax.load, xlstm_jax.__version__
heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "numpy", "rich", "matplotlib", "tyro", "tokenizers"}
print(sorted(heavy & set(sys.modules)), sum(name.startswith("xlstm_jax.") for name in sys.modules))
"""


def test_importing_the_package_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[] 0\n"


@pytest.mark.parametrize("name", xlstm_jax.__all__)
def test_every_public_name_is_there_and_lives_where_it_is_said_to(name):
    value = getattr(xlstm_jax, name)
    assert name in dir(xlstm_jax)
    if name != "__version__":
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_type_checkers_see_the_same_names_in_the_same_places():
    tree = ast.parse(Path(xlstm_jax.__file__).read_text())
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module.removeprefix("xlstm_jax.")
        for node in seen.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == xlstm_jax.PLACES
    assert {*imported, "load", "__version__"} == set(xlstm_jax.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = xlstm_jax.trian
