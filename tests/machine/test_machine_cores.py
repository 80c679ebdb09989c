"""How many cores a process has: its affinity, and its container's share."""

import os

import pytest

from xlstm_jax.machine import cores


@pytest.mark.parametrize(
    ("content", "usable"),
    [("150000 100000\n", 2), ("20000 100000\n", 1), ("max 100000\n", 8), ("9900000 100000\n", 8), ("nonsense", 8)],
)
def test_a_containers_share_of_the_processor_counts(tmp_path, monkeypatch, content, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text(content)
    assert cores.usable_cores() == usable
    assert cores.allowed_cores() == 8


def test_the_older_control_groups_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    assert cores.usable_cores() == 8
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, usable in (("-1\n", 8), ("300000\n", 3)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert cores.usable_cores() == usable
