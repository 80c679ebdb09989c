"""The processes that train one model together: who leads, what they agree on, and how all end when one does.

They talk through JAX's coordination service, which the process 0 holds: small JSON values under keys, read by waiting
for them. Nothing waits with a limit of its own: `Watch` ends a process whose others have failed, are silent, or get no
further.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from xlstm_jax.config import ConfigError
from xlstm_jax.distributed.start import Start

T = TypeVar("T")

JOIN_SECONDS = 300
"""So long the processes wait for each other when they start."""
WAIT_SECONDS = 5
"""A wait for a key is renewed after so long; it ends with the process only."""


class Service(Protocol):
    """What is used of JAX's client of the coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...

    def key_value_delete(self, key: str) -> None: ...


class Processes:
    """A group of processes, or one alone, whose calls then do what they say at once.

    Args:
        index: of this process; 0 leads.
        count: how many there are.
        service: None for one alone.
    """

    def __init__(self, index: int = 0, count: int = 1, service: Service | None = None) -> None:
        self.index, self.count, self._service = index, count, service
        self._talk = Talk(self, "all")
        self._talks = 0

    @property
    def leader(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.index == 0

    @property
    def name(self) -> str:
        """This process, for sentences."""
        return f"process {self.index} of {self.count} ({socket.gethostname()})"

    def agree(self, call: Callable[[], T]) -> T:
        """See `Talk.agree`; for the main thread, where all processes make the same calls in the same order."""
        return self._talk.agree(call)

    def gather(self, value: T) -> list[T]:
        """See `Talk.gather`; for the main thread."""
        return self._talk.gather(value)

    def talk(self, name: str) -> Talk:
        """A line of talk for another thread. All processes must begin theirs in the same order."""
        self._talks += 1
        return Talk(self, f"{name}/{self._talks}")

    # -- keys ---------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: Any, *, again: bool = False) -> None:
        """Write a JSON value under a key; `again` if it may be there already."""
        assert self._service is not None
        self._service.key_value_set(f"xlstm/{key}", json.dumps(value), allow_overwrite=again)

    def get(self, key: str) -> Any:
        """Wait for a key's value."""
        while True:
            found = self.look(key, WAIT_SECONDS)
            if found is not None:
                return json.loads(found)

    def look(self, key: str, seconds: float) -> str | None:
        """A key's value as it was written; None if there is none for so long."""
        assert self._service is not None
        try:
            return self._service.blocking_key_value_get(f"xlstm/{key}", int(seconds * 1000))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
                return None
            raise

    def listing(self, folder: str) -> dict[str, Any]:
        """The values under a folder of keys, by the last word of each."""
        assert self._service is not None
        found = self._service.key_value_dir_get(f"xlstm/{folder}/")
        return {key.rpartition("/")[2]: json.loads(value) for key, value in found}

    def forget(self, folder: str) -> None:
        """Delete a folder of keys."""
        assert self._service is not None
        self._service.key_value_delete(f"xlstm/{folder}/")

    def tell_failure(self, sentence: str, code: int = 1) -> None:
        """Let all others know why they end; the first to say so is heard. Never raises."""
        if self._service is not None:
            with contextlib.suppress(Exception):
                self.put("failed", {"who": self.index, "name": self.name, "why": sentence, "code": code})

    def failure(self, seconds: float) -> dict[str, Any] | None:
        """The failure that somebody has told of; None if there is none for so long."""
        found = self.look("failed", seconds)
        return None if found is None else json.loads(found)


class Talk:
    """Values that all processes of a group hand around, in an order that is the same in each.

    Args:
        processes: the group.
        name: of the talk, which no other one has.
    """

    def __init__(self, processes: Processes, name: str) -> None:
        self._all, self._name, self._turn = processes, name, 0

    def agree(self, call: Callable[[], T]) -> T:
        """What `call` returns in the leader, a JSON value; no other process calls it. They wait until it is done."""
        if self._all.count == 1:
            return call()
        key = self._next()
        if self._all.leader:
            value = call()
            self._all.put(key, value)
            return value
        return self._all.get(key)

    def gather(self, value: T) -> list[T]:
        """The JSON values of all processes, in their order; a barrier, too."""
        if self._all.count == 1:
            return [value]
        key = self._next()
        self._all.put(f"{key}/of/{self._all.index}", value)
        if self._all.leader:
            values = [self._all.get(f"{key}/of/{index}") for index in range(self._all.count)]
            self._all.forget(f"{key}/of")
            self._all.put(f"{key}/values", values)
            return values
        return self._all.get(f"{key}/values")

    def _next(self) -> str:
        self._turn += 1
        return f"talk/{self._name}/{self._turn}"


ALONE = Processes()

_joined: Processes | None = None


def current() -> Processes:
    """The group that this process has joined, with `join` or with `jax.distributed.initialize`; else it alone."""
    global _joined
    if _joined is None:
        import jax

        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            return ALONE
        _joined = Processes(jax.process_index(), jax.process_count(), _service())
    return _joined


def join(start: Start | None, silent_seconds: float) -> Processes:
    """Join the group that a start-up was found for; before anything asks JAX for its devices.

    Args:
        start: None for a process that is alone.
        silent_seconds: after which JAX itself gives up on a process that sends no sign of life; a little later than
            `Watch` does, which says so in a sentence.

    Raises:
        ConfigError: if the processes do not find each other.
    """
    global _joined
    if start is None:
        return ALONE
    import jax

    settings: Any = jax.config
    settings.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    settings.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=start.coordinator,
            num_processes=start.count,
            process_id=start.index,
            local_device_ids=start.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=int(2 * silent_seconds) + 5,
            shutdown_timeout_seconds=15,
        )
        jax.devices()  # for this, too, each waits for all the others
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"process {start.index} of {start.count} ({socket.gethostname()}) did not find the others by "
            f"{start.coordinator} within {JOIN_SECONDS} s ({reason})"
        ) from error
    _joined = Processes(start.index, start.count, _service())
    return _joined


def _service() -> Any:
    # The only way to the service; Orbax and others go it too.
    from jax._src import distributed

    return distributed.global_state.client


@contextlib.contextmanager
def one_fails_all_fail(processes: Processes) -> Iterator[None]:
    """What is raised inside is told to the other processes, whose `Watch` then ends them."""
    try:
        yield
    except BaseException as error:
        processes.tell_failure(str(error) or type(error).__name__)
        raise


SHARED_SECONDS = 30


def see_the_same(folder: Path, processes: Processes) -> None:
    """See that all processes have the same folder before them.

    Raises:
        ConfigError: naming one that does not.
    """
    if processes.count == 1:
        return
    token = folder / processes.agree(lambda: f".{secrets.token_hex(8)}.tmp")
    processes.agree(lambda: token.write_text(""))
    deadline = time.monotonic() + SHARED_SECONDS
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [name for name in processes.gather("" if seen else processes.name) if name]
    if processes.leader:
        token.unlink(missing_ok=True)
    if blind:
        raise ConfigError(f"{folder} must be the same folder for all processes, but {blind[0]} does not see it")


def leave() -> None:
    """Part from the group, when all have said that they are done."""
    global _joined
    if _joined is not None:
        import jax

        _joined = None
        jax.distributed.shutdown()
