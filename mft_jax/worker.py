"""A Python script in a process of its own that answers requests, so that work which never ends can be stopped.

Python cannot interrupt a computation from another thread, and handles signals in the main thread only. Here the script
limits its own CPU time, so that a busy machine gives the same answers as an idle one, and is ended from outside only
when it sleeps. It is a fresh interpreter, not a fork: forking after JAX has started its threads can deadlock. It ends
with its standard input, so it does not outlive this process, even a killed one.

The script sends a message once it is ready, then one for each line of its standard input. A message is its length in
4 bytes, big-endian, and its content.
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

START_SECONDS = 120.0  # wall time for the script's imports, on a machine with a slow disk
END_SECONDS = 5.0  # wall time between closing its output and ending


class EndedError(Exception):
    """The process ended before it answered."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode  # below 0: minus the signal that ended it
        self.by_its_limit = returncode == -signal.SIGPROF  # the timer of its own CPU time
        super().__init__(f"its process ended with {'signal' if returncode < 0 else 'exit code'} {abs(returncode)}")


class LateError(Exception):
    """The process did not answer within the wall time it was given, and has been ended."""


class Worker:
    """Owns the process of a script; thread-safe."""

    def __init__(self, script: pathlib.Path) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        """Starts the process, without waiting until it is ready; a request starts it too."""
        with self._lock:
            self._launch()

    def ask(self, request: bytes, wall_seconds: float) -> bytes:
        """The answer to a request of one line, without its line break.

        Raises EndedError when the process ends by its own CPU limit, or twice by something else; LateError when it has
        not answered in `wall_seconds`; RuntimeError when it cannot start. The next request starts a new process.
        """
        with self._lock:
            try:
                return self._ask(request, wall_seconds)
            except EndedError as error:
                if error.by_its_limit:
                    raise
            return self._ask(request, wall_seconds)  # it may have been ended from outside, even before this request

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _forget(self) -> None:
        """In a forked child: the process is the parent's."""
        self._lock, self._process = threading.Lock(), None

    def _ask(self, request: bytes, wall_seconds: float) -> bytes:
        process = self._launch()
        answer = None
        try:
            if not self._ready:
                self._wait_until_ready(process)
            _send(process, request + b"\n")
            answer = _receive(process, wall_seconds)
            return answer
        finally:
            if answer is None:  # an interrupt, too: its answer must not be taken for that to the next request
                self._stop()

    def _launch(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._ready = False
            self._process = subprocess.Popen(
                # By path and with -P, not -m: importing the package imports more than the script needs, and the folder's
                # module names must not hide others.
                [sys.executable, "-P", str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
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
    """The return code, which stays what it was where the process had ended before."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its children too
    return process.wait()


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    try:
        while data:
            data = data[process.stdin.write(data) :]
    except BrokenPipeError:
        pass  # it has just ended: the answer will be missing


def _receive(process: subprocess.Popen[bytes], wall_seconds: float) -> bytes:
    """One message."""
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
