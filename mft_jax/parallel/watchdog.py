"""Notices that a host has died, hangs or has failed, and ends the others, which would wait for it without end.

A thread of every process renews the state of its host every second, and looks at the states of the others.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from mft_jax.config import HostsConfig

_PERIOD = 1.0  # seconds
# Seconds that a host has to end by itself after another one has failed: often it raises the same error, with its message.
_GRACE = 5.0


class Watchdog(threading.Thread):
    """The watchdog of one host. `signal_of_any` and the states that it publishes are at most a few seconds old."""

    def __init__(self, client: Any, index: int, size: int, config: HostsConfig, arrived: Sequence[int]):
        """`client` is JAX's client of the coordination service, `arrived` the signals that have arrived at this host."""
        super().__init__(name="watchdog", daemon=True)
        self.client, self.index, self.size, self.config = client, index, size, config
        self._arrived = arrived
        self._place = (0, "the start")  # the last step of this host and its name
        self._signals: set[int] = set()  # that have arrived at other hosts
        self._done = threading.Event()
        now = time.monotonic()
        self._seen = dict.fromkeys(range(size), (now, ""))  # when the state of a host last changed, and the state
        self._progress = (now, -1)  # when the slowest host last took a step, and which
        self._failure: tuple[float, str] | None = None  # when another host was seen to have failed, and why
        self._forgotten = 0  # the steps up to this one have been deleted

    def note(self, step: int, name: str) -> None:
        """Records that this host is at a step."""
        self._place = (step, name)

    def signal_of_any(self) -> int | None:
        """A signal that has arrived at any host, as far as this one knows; None if there is none."""
        return next(iter([*self._arrived, *self._signals]), None)

    def stop(self) -> None:
        """Ends the thread."""
        self._done.set()
        self.join()

    def fail(self, reason: str) -> None:
        """Tells the others that this host ends, and why. Host 0, which keeps the states, first waits for the others."""
        self.stop()
        try:
            self.client.key_value_set(f"mft/failed/{self.index}", reason, allow_overwrite=True)
            deadline = time.monotonic() + 2 * _GRACE
            while self.index == 0 and len(self._failed()) < self.size and time.monotonic() < deadline:
                time.sleep(0.1)
            if self.index == 0:
                time.sleep(_PERIOD)  # until the others have ended: JAX aborts a process that cannot reach host 0
        except Exception as error:
            print(f"mft: the other hosts could not be told that this one ends ({error}).", file=sys.stderr)

    def run(self) -> None:
        beat = 0
        while not self._done.wait(_PERIOD):
            beat += 1
            try:
                self._publish(beat)
                problem = self._find_problem()
            except Exception as error:  # JAX raises several kinds
                problem = f"host 0, which keeps the states of all hosts, cannot be reached ({error})"
            if problem and not self._done.is_set():
                self._end(problem)

    def _publish(self, beat: int) -> None:
        step, name = self._place
        state = {"beat": beat, "step": step, "name": name, "signals": list(self._arrived)}
        self.client.key_value_set(f"mft/alive/{self.index}", json.dumps(state), allow_overwrite=True)

    def _find_problem(self) -> str | None:
        """Why this process must end; None if all hosts are well."""
        now, states, failed = time.monotonic(), self._read_states(), self._failed()
        for host, (since, _) in self._seen.items():
            if host not in (self.index, *failed) and now - since > self.config.lost_seconds:
                return f"host {host} has given no sign of life for {self.config.lost_seconds} s: it has died"
        if len(states) == self.size:
            slowest = min(state["step"] for state in states.values())
            if slowest != self._progress[1]:
                self._progress = now, slowest
            self._forget(slowest)
        if now - self._progress[0] > self.config.hang_seconds:
            places = "; ".join(f"host {host} is at step {s['step']} ({s['name']})" for host, s in states.items())
            return f"the hosts have made no progress for {self.config.hang_seconds} s: {places}"
        if failed and self._failure is None:
            self._failure = now, "; ".join(f"host {host} has ended: {reason}" for host, reason in failed.items())
        return self._failure[1] if self._failure and now - self._failure[0] > _GRACE else None

    def _read_states(self) -> dict[int, dict[str, Any]]:
        """The states of the hosts that have published one."""
        now, states = time.monotonic(), {}
        for key, text in self.client.key_value_dir_get("mft/alive/"):
            host = int(key.rsplit("/", 1)[-1])
            if self._seen[host][1] != text:
                self._seen[host] = now, text
            states[host] = json.loads(text)
            self._signals.update(states[host]["signals"])
        return states

    def _failed(self) -> dict[int, str]:
        found = self.client.key_value_dir_get("mft/failed/")
        return {int(key.rsplit("/", 1)[-1]): reason for key, reason in found}

    def _forget(self, step: int) -> None:
        """Deletes what was told in the steps that all hosts have left."""
        while self.index == 0 and self._forgotten < step - 1:
            self._forgotten += 1
            self.client.key_value_delete(f"mft/step/{self._forgotten}")

    def _end(self, problem: str) -> NoReturn:
        """Reports a problem with the stacks of all threads, and ends the process, whose main thread may be blocked."""
        sys.stdout.flush()
        os.write(2, f"mft: host {self.index} ends: {problem.rstrip('.')}.\nWhat it was doing:\n".encode())
        faulthandler.dump_traceback(2, all_threads=True)
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"mft/failed/{self.index}", problem, allow_overwrite=True)
        if self.index == 0:
            time.sleep(2 * _PERIOD)  # until the others have ended: JAX aborts a process that cannot reach host 0
        os._exit(1)
