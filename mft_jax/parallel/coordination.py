"""What the hosts tell each other through the key-value store of JAX's coordination service.

mft/step/N/...   the values of step N: each decision, exchange and meeting of the hosts is one step
mft/alive/K      the state of host K, renewed every second by its watchdog
mft/failed/K     why host K has ended before the others
"""

import os
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from mft_jax.config import HostsConfig
from mft_jax.errors import UserError
from mft_jax.parallel.watchdog import Watchdog

_POLL = 1000  # milliseconds; signal handlers run between two attempts to read a key


class Group:
    """The hosts, and this process as one of them. Every host takes the same steps in the same order."""

    def __init__(self, client: Any, index: int, size: int, config: HostsConfig, arrived: Sequence[int]):
        """`client` is JAX's client of the coordination service, `arrived` the signals that have arrived at this host."""
        self.client, self.index, self.size, self.config = client, index, size, config
        self.is_alone = False  # host 0 is doing something that the others do not do
        self._step = 0
        self.watchdog = Watchdog(client, index, size, config, arrived)
        self.watchdog.start()

    def send(self, name: str, value: bytes) -> None:
        """Takes a step in which host 0, this one, tells the others a value."""
        self.client.key_value_set_bytes(f"{self._next(name)}/value", name.encode() + b"\0" + value)

    def receive(self, name: str) -> bytes:
        """Takes a step in which host 0 tells this one a value. Raises RuntimeError if host 0 is doing something else."""
        return self._read(f"{self._next(name)}/value", name)

    def exchange(self, name: str, value: bytes) -> list[bytes]:
        """Takes a step in which every host tells all others a value. Returns the values in the order of the hosts.

        Raises RuntimeError if a host is doing something else.
        """
        step = self._next(name)
        self.client.key_value_set_bytes(f"{step}/{self.index}", name.encode() + b"\0" + value)
        return [self._read(f"{step}/{host}", name) for host in range(self.size)]

    def meet(self, name: str) -> None:
        """Takes a step in which all hosts wait for each other. The watchdog ends this process if one does not come."""
        self.client.wait_at_barrier(self._next(name), 1000 * (self.config.hang_seconds + self.config.lost_seconds))

    def signal_of_any(self) -> int | None:
        """A signal that has arrived at any host, as far as this one knows; None if there is none."""
        return self.watchdog.signal_of_any()

    def fail(self, reason: str) -> None:
        """Ends the watchdog, and tells the others that this host ends, and why."""
        self.watchdog.fail(reason)

    def leave(self) -> None:
        """Ends the watchdog."""
        self.watchdog.stop()

    def _next(self, name: str) -> str:
        """Begins the next step and returns its key."""
        self._step += 1
        self.watchdog.note(self._step, name)
        return f"mft/step/{self._step}"

    def _read(self, key: str, name: str) -> bytes:
        """The value of a key, as soon as there is one. The watchdog ends this process if the other host is gone."""
        data = None
        while data is None:
            try:
                data = self.client.blocking_key_value_get_bytes(key, _POLL)
            except Exception as error:  # JAX has one kind for all errors of the service
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        other, _, value = data.partition(b"\0")
        if other.decode() != name:
            raise RuntimeError(
                f"The hosts have taken different steps: host {self.index} is at {name!r}, another one at {other.decode()!r}. "
                "Start all hosts with the same command and the same version of mft_jax."
            )
        return value


def connect(config: HostsConfig, arrived: Sequence[int]) -> Group:
    """Joins the other processes. `arrived` is the list of the signals that have arrived so far.

    Ends the process with one line if they have not all joined after `connect_seconds`. Raises UserError if the
    environment does not say which processes there are.
    """
    import jax
    from orbax.checkpoint import multihost

    # The signals are this package's: see `mft_jax.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(config.connect_seconds, _give_up, [config])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process_id,
            initialization_timeout=config.connect_seconds + 30,  # later than `_give_up`: JAX aborts the process
            heartbeat_timeout_seconds=2 * config.lost_seconds + 10,  # later than the watchdog ends, for the same reason
            shutdown_timeout_seconds=config.lost_seconds,
        )
    except ValueError as error:
        raise UserError(
            f"The environment does not say which processes belong to this run ({error}): give --coordinator, "
            "--processes and --process-id."
        ) from error
    finally:
        late.cancel()
    return Group(multihost.get_jax_distributed_client(), jax.process_index(), jax.process_count(), config, arrived)


def _give_up(config: HostsConfig) -> NoReturn:
    """Ends the process, whose main thread waits for the others inside JAX and cannot be interrupted."""
    from jax._src import distributed  # the only place that knows an address that JAX has found in the environment

    found = distributed.global_state
    if found.process_id == 0:
        reason = f"not all of the {found.num_processes} processes have connected to {found.coordinator_address}"
        remedy = "start the others, and let them reach this address"
    else:
        reason = f"process {found.process_id} could not join the others at {found.coordinator_address}, process 0,"
        remedy = "start process 0 there, and check the address and the firewall"
    os.write(2, f"mft: {reason} after {config.connect_seconds} s: {remedy}.\n".encode())
    os._exit(1)
