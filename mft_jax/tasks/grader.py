"""math-verify in a process of its own (see mft_jax.worker), so that a comparison that never ends can be stopped.

math-verify's own time limit is a signal: it works in the main thread only, and cannot interrupt 9**9**9. Here the limit
is on the CPU time of the process, so that a repeated run gets the same grades, whatever else the machine does.
"""

import json
import pathlib

from mft_jax.worker import EndedError, LateError, Worker

WALL_FACTOR = 20.0  # wall time for a comparison, as a multiple of its CPU time, in case the process sleeps for ever
_EQUAL, _UNFINISHED = b"1", b"-"  # answers of grader_worker.py
_CRASHED = 3  # its exit code

_SCRIPT = pathlib.Path(__file__).with_name("grader_worker.py")


class Grader:
    """Compares formulas, and counts the comparisons that could not be finished; thread-safe."""

    def __init__(self) -> None:
        self._worker = Worker(_SCRIPT)
        self._unfinished: set[tuple[str, ...]] = set()  # adding to a set, and its length, need no lock

    def same_formula(self, a: str, b: str, cpu_seconds: float) -> bool:
        """Whether math-verify finds `a` and `b` equal; False if it needs more than `cpu_seconds`, or crashes, twice.

        Raises RuntimeError if the process cannot start, or something outside keeps ending it.
        """
        request = json.dumps([a, b, cpu_seconds]).encode()
        try:
            answer = self._worker.ask(request, WALL_FACTOR * cpu_seconds)
        except LateError:
            answer = _UNFINISHED
        except EndedError as error:
            if error.returncode != _CRASHED:
                raise RuntimeError(
                    "The grading process was ended from outside, twice: is the machine short of memory?"
                ) from error
            answer = _UNFINISHED
        if answer == _UNFINISHED:
            self._unfinished.add(tuple(sorted((a, b))))
        return answer == _EQUAL

    def timeouts(self) -> int:
        """How many different comparisons so far ran out of time or memory, or crashed the grading process.

        Their answers count as different, whether they are or not.
        """
        return len(self._unfinished)

    def close(self) -> None:
        self._worker.close()


_GRADER = Grader()
same_formula = _GRADER.same_formula
timeouts = _GRADER.timeouts
