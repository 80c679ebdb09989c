"""How a process finds the group that it belongs to, by what those who started it have put into its environment."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xlstm_jax.config import ConfigError

COORDINATOR, COUNT, INDEX, DEVICES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
)
PORTS = range(61440, 65536)
"""Where no port is given, one of these, which follows from the job."""


@dataclass(frozen=True)
class Start:
    """The group of this process, and its place there."""

    kind: str
    """What has told it: `explicit`, `slurm`, `mpi` or `kubernetes`."""
    coordinator: str
    """`host:port` where the process 0 will be listening."""
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    """Which of the devices that the process sees are its own; all of them if None."""


def found_in(environ: Mapping[str, str]) -> Start | None:
    """The group that an environment speaks of; None for a process that is alone.

    The variables of JAX win over those of a launcher, and those of Open MPI over those of SLURM, of which `mpirun`
    leaves to its processes what was meant for its own daemons. An empty variable is one that is not set.

    Raises:
        ConfigError: for values that say it by halves, or that cannot be.
    """
    given = {name: word.strip() for name, word in environ.items() if word.strip()}
    for find in (_explicit, _open_mpi, _slurm):
        if (start := find(given)) is not None:
            return start if start.count > 1 else None
    if COORDINATOR in given:
        raise ConfigError(
            f"{COORDINATOR} is {given[COORDINATOR]!r}, but {COUNT} and {INDEX} are not set; a group needs all three"
        )
    return None


# -- the three variables, by hand or in a pod --------------------------------------------------------------------------


def _explicit(given: Mapping[str, str]) -> Start | None:
    if COUNT not in given:
        if INDEX in given:
            raise ConfigError(f"{INDEX} is {given[INDEX]!r}, but {COUNT} is not set; a group needs both")
        return None
    # The index that Kubernetes gives to each pod of an Indexed Job.
    name = next((name for name in (INDEX, "JOB_COMPLETION_INDEX") if name in given), None)
    if name is None:
        if given[COUNT] == "1":
            return Start("explicit", "", 1, 0)
        raise ConfigError(
            f"{COUNT} is {given[COUNT]!r}, but {INDEX} is not set; it must be the number of this process, from 0"
        )
    count, index = _place(given, COUNT, name)
    if count > 1 and COORDINATOR not in given:
        raise ConfigError(
            f"{COUNT} is {count}, but {COORDINATOR} is not set; it must be HOST:PORT, with the host of the process 0"
        )
    kind = "explicit" if name == INDEX else "kubernetes"
    return Start(kind, _coordinator(given) or "", count, index, _told_devices(given))


# -- Open MPI ----------------------------------------------------------------------------------------------------------

_MPI = "OMPI_COMM_WORLD_"
_MPIRUN = "OMPI_MCA_orte_hnp_uri"


def _open_mpi(given: Mapping[str, str]) -> Start | None:
    if f"{_MPI}SIZE" not in given or f"{_MPI}RANK" not in given:
        return None
    count, index = _place(given, f"{_MPI}SIZE", f"{_MPI}RANK")
    here, devices = _number(given, f"{_MPI}LOCAL_SIZE", count), _told_devices(given)
    if devices is None and here > 1 and f"{_MPI}LOCAL_RANK" in given:
        local, seen = _number(given, f"{_MPI}LOCAL_RANK"), _seen(given)
        # Where nobody has dealt out the GPUs, a process has one, as usual with MPI.
        devices = _share(seen, local, here) if seen else (local,)
    job = given.get("PMIX_NAMESPACE") or given.get(_MPIRUN, "")
    port = PORTS[zlib.crc32(job.encode(errors="replace")) % len(PORTS)]
    return Start("mpi", _coordinator(given) or f"{_first_of_mpi(given, count)}:{port}", count, index, devices)


def _first_of_mpi(given: Mapping[str, str], count: int) -> str:
    """The host of the process 0, which is that of `mpirun`, or the first of an allocation."""
    here = _number(given, f"{_MPI}LOCAL_SIZE", 0)
    if here == count:
        return "localhost"
    if (address := re.search(r"tcp://([^,:]+)|tcp6://(\[)([^],]+)", given.get(_MPIRUN, ""))) is not None:
        return address[1] or f"[{address[3]}]"
    if "SLURM_JOB_NODELIST" in given:
        return _hosts(given, "SLURM_JOB_NODELIST")[0]
    if not here:
        return "localhost"
    raise ConfigError(
        f"Open MPI runs {count} processes, {here} of them on this machine, and does not say where the process 0 is; "
        f"set {COORDINATOR} to its HOST:PORT, as by `mpirun -x {COORDINATOR}=HOST:PORT`"
    )


# -- SLURM -------------------------------------------------------------------------------------------------------------


def _slurm(given: Mapping[str, str]) -> Start | None:
    # In a job but outside `srun` there is no list of the step's nodes.
    if "SLURM_JOB_ID" not in given or "SLURM_STEP_NODELIST" not in given:
        return None
    # The tasks of the step: those of the job may be more, as in the shell that `salloc` opens.
    count_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in given else "SLURM_NTASKS"
    count, index = _place(given, count_name, "SLURM_PROCID")
    nodes, local = _hosts(given, "SLURM_STEP_NODELIST"), _number(given, "SLURM_LOCALID")
    devices, seen = _told_devices(given), _seen(given)
    # JAX by itself would take one device for each task, also where a task has its node for itself.
    if devices is None and "SLURM_GPUS_PER_TASK" not in given and given.get("SLURM_GPUS_ON_NODE") == str(seen):
        devices = _share(seen, local, _tasks_here(given, count, len(nodes)))
    port = PORTS[_number(given, "SLURM_JOB_ID") % len(PORTS)]
    return Start("slurm", _coordinator(given) or f"{nodes[0]}:{port}", count, index, devices)


def _tasks_here(given: Mapping[str, str], count: int, nodes: int) -> int:
    """The tasks on this node, by a list such as `2(x3),1`."""
    counts: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", given.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(tasks)] * int(times or 1)
    node = _number(given, "SLURM_NODEID", len(counts))
    return counts[node] if node < len(counts) else -(-count // nodes)


def _hosts(given: Mapping[str, str], name: str) -> list[str]:
    """The hosts of a list such as `gpu[001-003,07],cpu1`."""
    words = re.findall(r"(?:[^\s,\[\]]|\[[\d,-]+\])+", given[name])
    if ",".join(words) != given[name]:
        raise ConfigError(f"{name} is {given[name]!r}, but must be a list of hosts such as gpu[001-003,07],cpu1")
    return [host for word in words for host in _expanded(word, name)]


def _expanded(word: str, name: str) -> Iterator[str]:
    head, bracket, rest = word.partition("[")
    if not bracket:
        yield word
        return
    numbers, _, tail = rest.partition("]")
    for item in numbers.split(","):
        first, _, last = item.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or int(last or first) < int(first):
            raise ConfigError(
                f"{name} has the hosts {word!r}, in which {item!r} must be a number or a range as 001-003"
            )
        for number in range(int(first), int(last or first) + 1):
            for end in _expanded(tail, name):
                yield f"{head}{number:0{len(first)}}{end}"


# -- values ------------------------------------------------------------------------------------------------------------


def _number(given: Mapping[str, str], name: str, default: int | None = None) -> int:
    word = given.get(name)
    if word is None and default is not None:
        return default
    if word is None or not (word.isascii() and word.isdecimal()):
        raise ConfigError(f"{name} is {'not set' if word is None else repr(word)}, but must be a whole number")
    return int(word)


def _place(given: Mapping[str, str], count_name: str, index_name: str) -> tuple[int, int]:
    """How many processes there are, and which of them this is."""
    count, index = _number(given, count_name), _number(given, index_name)
    if count < 1:
        raise ConfigError(f"{count_name} is {count}, but must be at least 1")
    if index >= count:
        raise ConfigError(f"{index_name} is {index}, but must be from 0 to {count - 1}, since {count_name} is {count}")
    return count, index


def _coordinator(given: Mapping[str, str]) -> str | None:
    if (word := given.get(COORDINATOR)) is None:
        return None
    host, _, port = word.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", " ")
    if not bare or re.search(r"[\s/]", bare) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{COORDINATOR} is {word!r}, but must be HOST:PORT, such as node001:1234")
    return word


def _told_devices(given: Mapping[str, str]) -> tuple[int, ...] | None:
    if (word := given.get(DEVICES)) is None:
        return None
    numbers = [number.strip() for number in word.split(",")]
    if not all(number.isascii() and number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
        raise ConfigError(f"{DEVICES} is {word!r}, but must be different whole numbers, such as 0,1")
    return tuple(map(int, numbers))


def _seen(given: Mapping[str, str]) -> int:
    """How many GPUs this process is told to see; 0 if it is not told."""
    return len(given["CUDA_VISIBLE_DEVICES"].split(",")) if "CUDA_VISIBLE_DEVICES" in given else 0


def _share(seen: int, local: int, tasks: int) -> tuple[int, ...] | None:
    """What one of the tasks that see the same GPUs gets; None if it is alone, or they do not divide them."""
    if tasks < 2 or local >= tasks or not seen or seen % tasks:
        return None
    each = seen // tasks
    return tuple(range(local * each, (local + 1) * each))
