"""Times every call of the programs of a sampler."""

import copy
import time
from typing import Any

import jax

from mft_jax.programs import Programs
from mft_jax.programs.program import Program


class TimedProgram(Program):
    """A program that waits for its result and counts its calls and their seconds.

    Only for shapes that the program has been compiled for: a compilation here is not added to its `compile_seconds`.
    """

    def __init__(self, program: Program):
        self.__dict__.update(program.__dict__)  # shares the executables
        self.seconds, self.calls = 0.0, 0

    def __call__(self, *arguments: Any) -> Any:
        compiled = self.compile(*arguments)
        started = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        self.seconds += time.perf_counter() - started
        self.calls += 1
        return result


def timed(programs: Programs) -> tuple[Programs, list[TimedProgram], TimedProgram]:
    """A copy of the programs that times prefill and decode: (the copy, its programs that read prompts, its decode)."""
    own = copy.copy(programs)
    prefix, prefill, decode = map(TimedProgram, (programs.read_prefix, programs.prefill, programs.decode))
    own.read_prefix, own.prefill, own.decode = prefix, prefill, decode
    return own, [prefill, prefix], decode
