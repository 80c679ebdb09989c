"""A process finds its group in what a launcher leaves in its environment, or says in a sentence what is wrong there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.distributed.start import Start, found_in

HAND = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "4103",
    "SLURM_STEP_NODELIST": "gpu[001-003,07],cpu1",
    "SLURM_NTASKS": "10",
    "SLURM_PROCID": "7",
    "SLURM_LOCALID": "1",
}
TWO_HERE = {
    **SLURM,
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_GPUS_ON_NODE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.1.0.1,10.2.0.1:34911"}
URI_PORT = 64313


def without(environ: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environ.items() if key != name}


PLACES: dict[str, tuple[dict[str, str], Start | None]] = {
    "alone": ({"HOME": "/root", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}, None),
    "by hand": (HAND, Start("explicit", "a:1", 4, 3)),
    "by hand, IPv6": (HAND | {"JAX_COORDINATOR_ADDRESS": "[::1]:1"}, Start("explicit", "[::1]:1", 4, 3)),
    "some devices": (HAND | {"JAX_LOCAL_DEVICE_IDS": "2, 3"}, Start("explicit", "a:1", 4, 3, (2, 3))),
    "a count of 1": ({"JAX_NUM_PROCESSES": "1"}, None),
    "a count of 1 in SLURM": (SLURM | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
    "empty is not set": (HAND | {"JAX_LOCAL_DEVICE_IDS": "", "SLURM_JOB_ID": ""}, Start("explicit", "a:1", 4, 3)),
    "by hand before SLURM and MPI": (SLURM | MPI | HAND, Start("explicit", "a:1", 4, 3)),
    "a pod": (
        without(HAND, "JAX_PROCESS_ID") | {"JOB_COMPLETION_INDEX": "0"},
        Start("kubernetes", "a:1", 4, 0),
    ),
    "SLURM": (SLURM, Start("slurm", "gpu001:61447", 10, 7)),
    "SLURM, plain host": (SLURM | {"SLURM_STEP_NODELIST": "n-1.x,n2"}, Start("slurm", "n-1.x:61447", 10, 7)),
    "SLURM, two brackets": (
        SLURM | {"SLURM_STEP_NODELIST": "r[09-10]n[2,4]-ib"},
        Start("slurm", "r09n2-ib:61447", 10, 7),
    ),
    "SLURM, coordinator given": (SLURM | {"JAX_COORDINATOR_ADDRESS": "b:2"}, Start("slurm", "b:2", 10, 7)),
    "outside srun": (without(SLURM, "SLURM_STEP_NODELIST"), None),
    "the shell of salloc": (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    "a task a node sees all": (
        SLURM | {"SLURM_NTASKS": "5", "SLURM_PROCID": "2", "SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"},
        Start("slurm", "gpu001:61447", 5, 2),
    ),
    "two tasks share four GPUs": (TWO_HERE, Start("slurm", "n1:61447", 2, 1, (2, 3))),
    "one GPU, not listed": (
        without(TWO_HERE, "CUDA_VISIBLE_DEVICES") | {"SLURM_GPUS_ON_NODE": "1"},
        Start("slurm", "n1:61447", 2, 1),
    ),
    "or have had them dealt out": (
        TWO_HERE | {"CUDA_VISIBLE_DEVICES": "2,3"},
        Start("slurm", "n1:61447", 2, 1),
    ),
    "or are given them": (TWO_HERE | {"SLURM_GPUS_PER_TASK": "4"}, Start("slurm", "n1:61447", 2, 1)),
    "or choose": (TWO_HERE | {"JAX_LOCAL_DEVICE_IDS": "0"}, Start("slurm", "n1:61447", 2, 1, (0,))),
    "what does not divide": (
        TWO_HERE | {"CUDA_VISIBLE_DEVICES": "0,1,2", "SLURM_GPUS_ON_NODE": "3"},
        Start("slurm", "n1:61447", 2, 1),
    ),
    "tasks of this node": (
        TWO_HERE
        | {
            "SLURM_STEP_NODELIST": "n[1-3]",
            "SLURM_NTASKS": "9",
            "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
            "SLURM_NODEID": "1",
        },
        Start("slurm", "n1:61447", 9, 1, (1,)),
    ),
    "Open MPI": (
        MPI | URI,
        Start("mpi", f"10.1.0.1:{URI_PORT}", 4, 2, (0,)),
    ),
    "Open MPI, IPv6": (
        MPI | {"OMPI_MCA_orte_hnp_uri": "7.0;tcp6://[2001:db8::1,fe80::2]:3", "PMIX_NAMESPACE": "a"},
        Start("mpi", "[2001:db8::1]:65091", 4, 2, (0,)),
    ),
    "Open MPI on one machine": (
        MPI | URI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"},
        Start("mpi", f"localhost:{URI_PORT}", 4, 2, (2,)),
    ),
    "Open MPI that tells little": (
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        Start("mpi", "localhost:61440", 2, 1),
    ),
    "Open MPI that tells where it was started": (
        without(MPI, "OMPI_COMM_WORLD_LOCAL_SIZE") | URI,
        Start("mpi", f"10.1.0.1:{URI_PORT}", 4, 2, (0,)),
    ),
    "Open MPI, a process a machine": (
        MPI | URI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
        Start("mpi", f"10.1.0.1:{URI_PORT}", 4, 2),
    ),
    "Open MPI, GPUs listed": (
        MPI | URI | {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
        Start("mpi", f"10.1.0.1:{URI_PORT}", 4, 2, (2, 3)),
    ),
    "Open MPI, a GPU dealt out to each": (
        MPI | URI | {"CUDA_VISIBLE_DEVICES": "1"},
        Start("mpi", f"10.1.0.1:{URI_PORT}", 4, 2),
    ),
    "mpirun in an allocation": (
        SLURM | MPI | {"SLURM_JOB_NODELIST": "n[8-9]"},
        Start("mpi", "n8:61440", 4, 2, (0,)),
    ),
    "Open MPI, coordinator given": (
        MPI | {"JAX_COORDINATOR_ADDRESS": "b:2"},
        Start("mpi", "b:2", 4, 2, (0,)),
    ),
}


@pytest.mark.parametrize(("environ", "start"), PLACES.values(), ids=PLACES)
def test_a_process_finds_its_place(environ: dict[str, str], start: Start | None) -> None:
    assert found_in(environ) == start


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (without(HAND, "JAX_PROCESS_ID"), "JAX_NUM_PROCESSES is '4', but JAX_PROCESS_ID is not set"),
        (without(HAND, "JAX_NUM_PROCESSES"), "JAX_PROCESS_ID is '3', but JAX_NUM_PROCESSES is not set"),
        (without(HAND, "JAX_COORDINATOR_ADDRESS"), "but JAX_COORDINATOR_ADDRESS is not set; it must be HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "but JAX_NUM_PROCESSES and JAX_PROCESS_ID are not set"),
        (HAND | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4, but must be from 0 to 3"),
        (HAND | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1', but must be a whole number"),
        (HAND | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES is 'four', but must be a whole number"),
        (HAND | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is 0, but must be at least 1"),
        *(
            (HAND | {"JAX_COORDINATOR_ADDRESS": word}, f"JAX_COORDINATOR_ADDRESS is {word!r}, but must be HOST:PORT")
            for word in ("node1", "node1:", ":1", "node1:port", "a:99999", "http://a:1", "::1:5")
        ),
        (HAND | {"JAX_LOCAL_DEVICE_IDS": "all"}, "JAX_LOCAL_DEVICE_IDS is 'all', but must be different whole numbers"),
        (HAND | {"JAX_LOCAL_DEVICE_IDS": "0,0"}, "JAX_LOCAL_DEVICE_IDS is '0,0'"),
        (without(SLURM, "SLURM_NTASKS"), "SLURM_NTASKS is not set, but must be a whole number"),
        (SLURM | {"SLURM_PROCID": "10"}, "SLURM_PROCID is 10, but must be from 0 to 9, since SLURM_NTASKS is 10"),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu[1-"}, "SLURM_STEP_NODELIST is 'gpu[1-', but must be a list of hosts"),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu[3-1]"}, "in which '3-1' must be a number or a range"),
        (SLURM | {"SLURM_STEP_NODELIST": "a, b"}, "SLURM_STEP_NODELIST is 'a, b'"),
        (MPI, "set JAX_COORDINATOR_ADDRESS to its HOST:PORT"),
        (MPI | {"OMPI_COMM_WORLD_RANK": "5"}, "OMPI_COMM_WORLD_RANK is 5, but must be from 0 to 3"),
    ],
)
def test_what_cannot_be_is_one_sentence(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        found_in(environ)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_tasks_of_a_job_name_the_same_coordinator() -> None:
    ranks = [MPI | URI | {"OMPI_COMM_WORLD_RANK": str(rank)} for rank in range(4)]
    tasks = [SLURM | {"SLURM_PROCID": str(task)} for task in range(10)]
    for group in (ranks, tasks):
        starts = [found_in(environ) for environ in group]
        assert len({start.coordinator for start in starts if start is not None}) == 1
        assert [start.index for start in starts if start is not None] == list(range(len(group)))


def test_looking_does_not_start_jax() -> None:
    code = "import sys, xlstm_jax.distributed.start as s; s.found_in({}); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
