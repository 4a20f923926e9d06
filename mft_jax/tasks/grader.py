"""Runs math-verify in a separate process (see mft_jax.worker), so that a comparison that takes too long can be stopped.

math-verify's own time limit uses a signal: it works in the main thread only, and cannot interrupt 9**9**9. Here the CPU
time of the process is limited, so that the grades do not depend on the load of the machine.
"""

import json
import pathlib

from mft_jax.worker import EndedError, LateError, Worker

WALL_FACTOR = 20.0  # limit of the wall time of a comparison, as a multiple of that of its CPU time
_EQUAL, _UNFINISHED = b"1", b"-"  # the answers of grader_worker.py
_CRASHED = 3  # the exit code of grader_worker.py after a crash

_SCRIPT = pathlib.Path(__file__).with_name("grader_worker.py")


class Grader:
    """Compares formulas, and counts the comparisons that did not finish. Thread-safe."""

    def __init__(self) -> None:
        self._worker = Worker(_SCRIPT)
        self._unfinished: set[tuple[str, ...]] = set()  # `add` and `len` are atomic, so no lock is needed

    def same_formula(self, a: str, b: str, cpu_seconds: float) -> bool:
        """Whether math-verify finds `a` and `b` equal. False if it needs more than `cpu_seconds`, or crashes twice.

        Raises RuntimeError if the process cannot be started, or is killed from outside twice.
        """
        request = json.dumps([a, b, cpu_seconds]).encode()
        try:
            answer = self._worker.ask(request, WALL_FACTOR * cpu_seconds)
        except LateError:
            answer = _UNFINISHED
        except EndedError as error:
            if error.returncode != _CRASHED:
                raise RuntimeError(
                    "The grading process was killed from outside twice: check that the machine has enough memory."
                ) from error
            answer = _UNFINISHED
        if answer == _UNFINISHED:
            self._unfinished.add(tuple(sorted((a, b))))
        return answer == _EQUAL

    def timeouts(self) -> int:
        """The number of different comparisons so far that ran out of time or memory, or crashed the grading process.

        Their two answers count as different.
        """
        return len(self._unfinished)

    def close(self) -> None:
        self._worker.close()


_GRADER = Grader()
same_formula = _GRADER.same_formula
timeouts = _GRADER.timeouts
