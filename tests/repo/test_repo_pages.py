"""What the documentation's longer examples print is what their pages say."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from xlstm_jax.models.kinds import KINDS

DOCS = Path(__file__).parents[2] / "docs"
ROUNDINGS = 32 * np.finfo(np.float32).eps
"""Of the largest entry: what two blocks add up in another order, in pieces, may differ by."""


def run_page(name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module that a page's blocks of Python make, in their order."""
    module = types.ModuleType(name.replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{name}.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile("\n".join(blocks), f"docs/{name}.md", "exec"), vars(module))
    return module


@pytest.mark.long
@pytest.mark.slow
def test_a_regression_learns_and_reads_a_series_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    page = run_page("time-series", monkeypatch)
    assert page.losses[-1] < page.losses[0] / 10
    pieces = np.concatenate([page.first, page.rest], axis=1)
    assert np.max(np.abs(pieces - page.whole)) <= ROUNDINGS * np.max(np.abs(page.whole))


@pytest.mark.slow
def test_a_cell_of_ones_own_stands_in_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "average", None)  # so that the row that the page adds is taken away again
    page = run_page("extend", monkeypatch)
    assert page.config.block_kinds == ("mlstm", "average")
    assert page.error <= ROUNDINGS * np.max(np.abs(page.whole))
    assert set(page.params["xlstm_block_stack"]["blocks_1"]) == {"v", "proj_down"}
