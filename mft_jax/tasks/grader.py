"""math-verify in a process of its own, so that a comparison that runs away can be stopped, from any thread.

math-verify's own time limit is a signal: it works in the main thread only, and cannot interrupt 9**9**9. Here the limit
is on the CPU time of the process, so a busy machine grades as an idle one, and a repeated run gets the same grades.
The process starts with the first comparison that needs it. It is a fresh interpreter, not a fork: forking after JAX has
started its threads can deadlock. It ends with its standard input, so it does not outlive this process, even killed.
"""

import atexit
import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time

START_SECONDS = 120.0  # wall time for the imports, on a machine with a slow disk
WALL_FACTOR = 20.0  # wall time for a comparison, as a multiple of its CPU time, in case the process sleeps for ever
LATE = b"late"

_WORKER = pathlib.Path(__file__).with_name("grader_worker.py")


class Grader:
    """Owns the process; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def same_formula(self, a: str, b: str, cpu_seconds: float) -> bool:
        """Whether math-verify finds `a` and `b` equal; False if it takes more than `cpu_seconds`, or crashes on them.

        Raises RuntimeError if the process cannot start, or something outside keeps ending it.
        """
        request = json.dumps([a, b, cpu_seconds]).encode() + b"\n"
        with self._lock:
            answer = self._ask(request, WALL_FACTOR * cpu_seconds) or self._ask(request, WALL_FACTOR * cpu_seconds)
        if not answer:
            raise RuntimeError("The grading process was ended from outside, twice: is the machine short of memory?")
        return answer == b"1"

    def close(self) -> None:
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a forked child: the process is the parent's."""
        self._lock, self._process = threading.Lock(), None

    def _ask(self, request: bytes, wall_seconds: float) -> bytes:
        process = self._running()
        answer = b""
        try:
            _send(process, request)
            answer = _receive(process, wall_seconds)
        finally:
            if answer not in (b"0", b"1"):  # an interrupt, too: its answer must not be taken for the next question's
                self._stop()
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._process = _start()
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _kill(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _start() -> subprocess.Popen[bytes]:
    # By path and with -P, not -m: importing the package would import JAX, and the folder's module names stay its own.
    process = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
    )
    if _receive(process, START_SECONDS) != b"r":
        _kill(process)
        raise RuntimeError(f"The grading process did not start: run `{sys.executable} -P {_WORKER}` to see why.")
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its child too
    process.wait()


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    try:
        while data:
            data = data[process.stdin.write(data) :]
    except BrokenPipeError:
        pass  # it has just died: the answer will be missing


def _receive(process: subprocess.Popen[bytes], wall_seconds: float) -> bytes:
    """One byte, LATE, or nothing if the process has ended."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    deadline = time.monotonic() + wall_seconds
    while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        if time.monotonic() >= deadline:
            return LATE
    return process.stdout.read(1) or b""


_GRADER = Grader()
same_formula = _GRADER.same_formula
close = _GRADER.close

atexit.register(close)
os.register_at_fork(after_in_child=_GRADER.forget)
