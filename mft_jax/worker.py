"""Runs a Python script in its own process that answers requests, so that a request that takes too long can be stopped.

A separate process is needed because Python cannot interrupt a computation from another thread, and handles signals in
the main thread only. The script limits its own CPU time, so that results do not depend on the load of the machine. This
process kills it only if it does not answer within a wall time. The script is started as a new interpreter, not forked:
a fork after JAX has started threads can deadlock. It exits at the end of its standard input, so it also exits if this
process is killed.

The script sends one message when it is ready, and then one for each line of its standard input. A message is the length
of its content in 4 bytes, big-endian, followed by the content.
"""

import atexit
import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time

START_SECONDS = 120.0  # wall time for the imports of the script; long enough for a slow disk
END_SECONDS = 5.0  # wall time between the end of the script's output and its exit


class EndedError(Exception):
    """The process ended before it answered."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode  # negative: minus the number of the signal that ended it
        self.by_its_limit = returncode == -signal.SIGPROF  # sent by the timer of its CPU time
        super().__init__(f"its process ended with {'signal' if returncode < 0 else 'exit code'} {abs(returncode)}")


class LateError(Exception):
    """The process did not answer within the wall time, and has been killed."""


class Worker:
    """Starts, asks and stops the process of one script. Thread-safe."""

    def __init__(self, script: pathlib.Path) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._drop_process)

    def start(self) -> None:
        """Starts the process without waiting until it is ready. Optional: the first request starts it too."""
        with self._lock:
            self._running_process()

    def ask(self, request: bytes, wall_seconds: float) -> bytes:
        """Returns the answer to a request, which is one line without its line break.

        Raises EndedError if the process reaches its CPU limit, or ends for another reason in two attempts; LateError if
        it does not answer within `wall_seconds`; and RuntimeError if it cannot be started. After each of these, the
        next request starts a new process.
        """
        with self._lock:
            try:
                return self._ask_once(request, wall_seconds)
            except EndedError as error:
                if error.by_its_limit:
                    raise
            # The process may have been killed from outside, even before this request: try once more.
            return self._ask_once(request, wall_seconds)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _drop_process(self) -> None:
        """Runs in a forked child of this process. The script's process belongs to the parent, so the child drops it."""
        self._lock, self._process = threading.Lock(), None

    def _ask_once(self, request: bytes, wall_seconds: float) -> bytes:
        process = self._running_process()
        answer = None
        try:
            if not self._ready:
                self._wait_until_ready(process)
            _send(process, request + b"\n")
            answer = _receive(process, wall_seconds)
            return answer
        finally:
            if answer is None:  # also after an interrupt: a late answer would be taken as that of the next request
                self._stop()

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._ready = False
            self._process = subprocess.Popen(
                # Started by its path, not with -m, which would import the whole package. With -P, because the names of
                # the modules in its folder would hide other modules.
                [sys.executable, "-P", str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C interrupts this process only, which then stops the script
            )
        return self._process

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        try:
            _receive(process, START_SECONDS)
        except (EndedError, LateError) as error:
            raise RuntimeError(
                f"A helper process did not start: run `{sys.executable} -P {self._script}` to see why."
            ) from error
        self._ready = True

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _kill(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _kill(process: subprocess.Popen[bytes]) -> int:
    """Kills the process and its children. Returns its return code, also if it had already ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    try:
        while data:
            data = data[process.stdin.write(data) :]
    except BrokenPipeError:
        pass  # the process has ended: `_receive` reports it


def _receive(process: subprocess.Popen[bytes], wall_seconds: float) -> bytes:
    """Receives the content of one message."""
    deadline = time.monotonic() + wall_seconds
    size = int.from_bytes(_read_bytes(process, 4, deadline), "big")
    return _read_bytes(process, size, deadline)


def _read_bytes(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    data = bytearray()
    while len(data) < size:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if time.monotonic() >= deadline:
                raise LateError
            continue
        part = os.read(process.stdout.fileno(), size - len(data))
        if not part:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            raise EndedError(_kill(process))
        data += part
    return bytes(data)
