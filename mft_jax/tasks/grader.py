"""Runs math-verify in separate processes (see mft_jax.worker), so that a comparison that takes too long can be stopped.

math-verify's own time limit uses a signal: it works in the main thread only, and cannot interrupt 9**9**9. Here the CPU
time of the process is limited, so that the grades do not depend on the load of the machine.

Each process compares one pair of formulas at a time. Threads that compare at the same time use different processes.
"""

import json
import os
import pathlib
import queue

from mft_jax.worker import EndedError, LateError, Worker

WALL_FACTOR = 20.0  # limit of the wall time of a comparison, as a multiple of that of its CPU time
PROCESSES = min(os.cpu_count() or 1, 8)  # at most; each needs 150 MB
FORMULAS_PER_PROCESS = 500  # comparing this many takes about as long as starting another process
_EQUAL, _UNFINISHED = b"1", b"-"  # the answers of grader_worker.py
_CRASHED = 3  # the exit code of grader_worker.py after a crash

_SCRIPT = pathlib.Path(__file__).with_name("grader_worker.py")


class Grader:
    """Compares formulas, and counts the comparisons that did not finish. Thread-safe."""

    def __init__(self) -> None:
        self._workers = [Worker(_SCRIPT) for _ in range(PROCESSES)]  # each starts its process at its first request
        self._requests = 0
        self._unfinished: set[tuple[str, ...]] = set()  # `add` and `len` are atomic, so no lock is needed
        self._free_all()
        # The threads that were using workers do not exist in a forked child.
        os.register_at_fork(after_in_child=self._free_all)

    def same_formula(self, a: str, b: str, cpu_seconds: float) -> bool:
        """Whether math-verify finds `a` and `b` equal. False if it needs more than `cpu_seconds`, or crashes twice.

        Raises RuntimeError if the process cannot be started, or is killed from outside twice.
        """
        request = json.dumps([a, b, cpu_seconds]).encode()
        self._requests += 1  # not atomic, but `useful_threads` needs no exact number
        worker = self._free.get()
        try:
            answer = worker.ask(request, WALL_FACTOR * cpu_seconds)
        except LateError:
            answer = _UNFINISHED
        except EndedError as error:
            if error.returncode != _CRASHED:
                raise RuntimeError(
                    "The grading process was killed from outside twice: check that the machine has enough memory."
                ) from error
            answer = _UNFINISHED
        finally:
            self._free.put(worker)
        if answer == _UNFINISHED:
            self._unfinished.add(tuple(sorted((a, b))))
        return answer == _EQUAL

    def timeouts(self) -> int:
        """The number of different comparisons so far that ran out of time or memory, or crashed the grading process.

        Their two answers count as different.
        """
        return len(self._unfinished)

    def useful_threads(self) -> int:
        """The number of threads in which answers should be compared: 1 until many formulas have been compared.

        Before that, starting another process would take longer than it saves. Numbers and words are compared in the
        calling thread without a process, so more threads would only slow them down.
        """
        return min(len(self._workers), 1 + self._requests // FORMULAS_PER_PROCESS)

    def close(self) -> None:
        """Stops the processes. The next comparison starts a new one."""
        for worker in self._workers:
            worker.close()

    def _free_all(self) -> None:
        """Marks all workers as free. The one used last is used next, so that only as many as needed are started."""
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in reversed(self._workers):
            self._free.put(worker)


_GRADER = Grader()
same_formula = _GRADER.same_formula
timeouts = _GRADER.timeouts
useful_threads = _GRADER.useful_threads
