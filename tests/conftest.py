"""Settings that every test shares; they must stand before JAX starts its back end."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Simulated devices dead-lock on few cores when several steps are queued; more pool threads cure it.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("MPLBACKEND", "Agg")
if "XLA_FLAGS" not in os.environ:
    # Most of a test's time goes into compiling programs that run once: a third of it without optimisation. As programs
    # are compiled in use: XLA_FLAGS="" pytest.
    quick = ["--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # Later versions do not have the choice, and end at a flag that they do not know.
        quick.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(quick)

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Compiled programs, for all workers, the processes that tests start, and the next run: JAX's key of one has the
    # program, the flags, the version of XLA and the processor.
    programs = Path(__file__).parents[1] / ".cache" / "xla"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    if sum(path.stat().st_size for path in programs.glob("*-cache")) > 2**30:
        # Each change of the code leaves programs that nobody asks for again.
        for path in programs.glob("*-cache"):
            path.unlink(missing_ok=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# A file that another process is writing, or was killed at, is compiled again, and told by a warning.
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache entry:UserWarning")

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

if importlib.util.find_spec("beartype"):
    import beartype.typing  # noqa: F401 the settings name it

    # Where arrays are: annotations are checked at every call, shapes and dtypes with them.
    rooms = ["kernels", "models", "scoring", "data.store", "training.step"]
    # An int does for a float; `Self` cannot be told outside its class.
    any_self = "beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})"
    settings = f"beartype.BeartypeConf(is_pep484_tower=True, hint_overrides={any_self})"
    jaxtyping.Array = jax.Array | np.ndarray  # what JAX takes for an array of its own
    jaxtyping.install_import_hook([f"xlstm_jax.{room}" for room in rooms], f"beartype.beartype(conf={settings})")
    enter, leave = pytest.RaisesExc.__enter__, pytest.RaisesExc.__exit__

    def unchecked(self):
        """`with pytest.raises(...)` may hand on what annotations forbid: what the package says then is tested."""
        jaxtyping.config.update("jaxtyping_disable", True)
        return enter(self)

    def checked(self, *error):
        jaxtyping.config.update("jaxtyping_disable", False)
        return leave(self, *error)

    pytest.RaisesExc.__enter__, pytest.RaisesExc.__exit__ = unchecked, checked

# Devices for meshes; what is laid out over none of them runs on the first alone.
jax.config.update("jax_num_cpu_devices", 8)

# On a busy machine an example may wait for its turn for as long as the usual deadline.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture
def loose_types():
    """No check of annotations for one test: a config makes more into its types than they say."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """Float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs of one module are of no use to the next, and all together fill gigabytes."""
    yield
    jax.clear_caches()
