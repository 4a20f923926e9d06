"""math-verify in processes of its own (see mft_jax.worker), so that a comparison that never ends can be stopped.

math-verify's own time limit is a signal: it works in the main thread only, and cannot interrupt 9**9**9. Here the limit
is on the CPU time of the process, so that a repeated run gets the same grades, whatever else the machine does.

Comparisons asked for in several threads at once run in as many processes, at most PROCESSES; one thread uses only one.
"""

import json
import os
import pathlib
import queue

from mft_jax.worker import EndedError, LateError, Worker

WALL_FACTOR = 20.0  # wall time for a comparison, as a multiple of its CPU time, in case the process sleeps for ever
PROCESSES = min(os.cpu_count() or 1, 8)  # each takes 150 MB
_EQUAL, _UNFINISHED = b"1", b"-"  # answers of grader_worker.py
_CRASHED = 3  # its exit code

_SCRIPT = pathlib.Path(__file__).with_name("grader_worker.py")


class Grader:
    """Compares formulas, and counts the comparisons that could not be finished; thread-safe."""

    def __init__(self) -> None:
        self._workers = [Worker(_SCRIPT) for _ in range(PROCESSES)]  # a process starts with its first request
        self._unfinished: set[tuple[str, ...]] = set()  # adding to a set, and its length, need no lock
        self._free_all()
        os.register_at_fork(after_in_child=self._free_all)

    def _free_all(self) -> None:
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in reversed(self._workers):
            self._free.put(worker)

    def same_formula(self, a: str, b: str, cpu_seconds: float) -> bool:
        """Whether math-verify finds `a` and `b` equal; False if it needs more than `cpu_seconds`, or crashes, twice.

        Raises RuntimeError if the process cannot start, or something outside keeps ending it.
        """
        request = json.dumps([a, b, cpu_seconds]).encode()
        worker = self._free.get()
        try:
            answer = worker.ask(request, WALL_FACTOR * cpu_seconds)
        except LateError:
            answer = _UNFINISHED
        except EndedError as error:
            if error.returncode != _CRASHED:
                raise RuntimeError(
                    "The grading process was ended from outside, twice: is the machine short of memory?"
                ) from error
            answer = _UNFINISHED
        finally:
            self._free.put(worker)
        if answer == _UNFINISHED:
            self._unfinished.add(tuple(sorted((a, b))))
        return answer == _EQUAL

    def timeouts(self) -> int:
        """How many different comparisons so far ran out of time or memory, or crashed the grading process.

        Their answers count as different, whether they are or not.
        """
        return len(self._unfinished)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


_GRADER = Grader()
same_formula = _GRADER.same_formula
timeouts = _GRADER.timeouts
