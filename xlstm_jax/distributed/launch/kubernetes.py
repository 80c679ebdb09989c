"""A command as a JobSet of Kubernetes: the YAML for `kubectl apply`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xlstm_jax.config import Config, ConfigError, NonNegativeInt, PositiveInt

PORT = 8476
WORKERS = "workers"
SECONDS_TO_SAVE = 120
LONGEST_NAME = 40
"""Names of pods, which are longer, have 63 characters at most."""
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@dataclass(frozen=True)
class KubernetesJob(Config):
    """What Kubernetes has to know."""

    command: tuple[str, ...]
    """The verb of `xlstm` and what comes after it."""
    name: str
    """Name of the JobSet."""
    image: str
    """Container image with xlstm in it."""
    nodes: PositiveInt = 1
    """Pods, with a process each."""
    gpus: PositiveInt | None = None
    """GPUs of each pod, all of which its process uses."""
    cpus: PositiveInt | None = None
    """Cores of each pod."""
    memory: str | None = None
    """Memory of each pod, such as 64Gi."""
    volume_claim: str | None = None
    """PersistentVolumeClaim that all pods can write to; runs and stores lie there."""
    mount: str = "/work"
    """Where the volume is in the pods; the command runs in it."""
    namespace: str | None = None
    """Namespace of the JobSet."""
    restarts: NonNegativeInt = 20
    """How often all pods begin anew after one has failed; the run goes on from its last checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = type(self).__name__
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", self.name) or len(self.name) > LONGEST_NAME:
            raise ConfigError(
                f"{kind}.name is {self.name!r}, but must be at most {LONGEST_NAME} small letters, digits and -, "
                "from a letter to a letter or digit"
            )
        if not self.image.strip():
            raise ConfigError(f"{kind}.image is {self.image!r}, but must be the name of a container image")
        if not self.mount.startswith("/"):
            raise ConfigError(f"{kind}.mount is {self.mount!r}, but must be a path from / on")


def jobset(job: KubernetesJob) -> str:
    """The text for `kubectl apply`."""
    return "\n".join(_yaml(_jobset(job))) + "\n"


def _jobset(job: KubernetesJob) -> dict[str, Any]:
    metadata = {"name": job.name} | ({} if job.namespace is None else {"namespace": job.namespace})
    pods = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": 0,  # one pod alone cannot begin anew
        "template": {"spec": _pod(job)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "failurePolicy": {"maxRestarts": job.restarts},
            "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": pods}}],
        },
    }


def _pod(job: KubernetesJob) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "xlstm",
        "image": job.image,
        # Kubernetes puts variables in for $(NAME), and makes one dollar of two.
        "command": [word.replace("$", "$$") for word in ("xlstm", *job.command)],
        "env": [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{job.name}-{WORKERS}-0-0.{job.name}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(job.nodes)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
        ],
    }
    requests = {"cpu": None if job.cpus is None else str(job.cpus), "memory": job.memory}
    limits = {"memory": job.memory, "nvidia.com/gpu": job.gpus}
    resources = {"requests": _given(requests), "limits": _given(limits)}
    if resources := {name: values for name, values in resources.items() if values}:
        container["resources"] = resources
    volumes, mounts = [], []
    if job.volume_claim is not None:
        volumes.append({"name": "work", "persistentVolumeClaim": {"claimName": job.volume_claim}})
        mounts.append({"name": "work", "mountPath": job.mount})
        container["workingDir"] = job.mount
    if job.gpus is not None:
        # NCCL needs more shared memory than the 64 MB that a container has.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": SECONDS_TO_SAVE}
    if volumes:
        container["volumeMounts"], pod["volumes"] = mounts, volumes
    return pod | {"containers": [container]}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _yaml(value: Any) -> Iterator[str]:
    """The lines of a tree of objects and lists, none of them empty; its leaves are JSON, which YAML reads too."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, (dict, list)):
                yield f"{name}:"
                yield from (f"  {line}" for line in _yaml(item))
            else:
                yield f"{name}: {_leaf(item)}"
    elif isinstance(value, list):
        for item in value:
            for number, line in enumerate(_yaml(item)):
                yield f"{'  ' if number else '- '}{line}"
    else:
        yield _leaf(value)


def _leaf(value: Any) -> str:
    # Not all that JSON leaves as it is may stand in YAML.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in text)
