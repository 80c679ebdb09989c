"""What a process that trains does with freed memory."""

import os
import platform
import subprocess
import sys

import pytest

from xlstm_jax.machine import malloc
from xlstm_jax.machine.malloc import keep_freed_memory

CALLS = 12
# A program with at least one temporary array of 64 MB, which no fusion can do without: a product reads it as a whole.
PROGRAM = f"""
import resource, sys
from xlstm_jax.machine.malloc import keep_freed_memory
print(keep_freed_memory())
import jax, jax.numpy as jnp
x = jnp.ones((4096, 256))
run = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x.T) @ jnp.cos(x @ x.T)[:, :8])).lower(x).compile()
print(run.memory_analysis().temp_size_in_bytes)
for _ in range(4):
    run(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({CALLS}):
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | environment, capture_output=True, text=True, check=True
    )
    told, temporary, faults = done.stdout.split()
    return told == "True", int(temporary), int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_temporary_arrays_are_not_asked_for_anew():
    told, temporary, faults = run()
    assert told
    assert temporary >= 64 << 20
    # The heap may still grow now and then; asked for anew, each call would meet all of its pages.
    assert faults < CALLS * temporary // os.sysconf("SC_PAGE_SIZE") * 3 // 4


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_users_own_settings_stand(variable, monkeypatch):
    monkeypatch.setenv(variable, "")
    assert not keep_freed_memory()


@pytest.mark.parametrize("platforms", ["cuda", "cuda,cpu", "tpu"])
def test_other_devices_change_nothing(platforms, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert not keep_freed_memory()


@pytest.mark.parametrize("package", ["jax_plugins", "libtpu"])
def test_a_device_that_jax_may_find_changes_nothing(package, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(malloc.importlib.util, "find_spec", lambda name: name if name == package else None)
    assert not keep_freed_memory()


def test_another_c_library_changes_nothing(monkeypatch):
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
