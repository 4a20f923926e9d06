"""The grading process (see grader.py): run as a script, never imported by the package.

It writes an r once it is ready, then answers each line [a, b, cpu_seconds] of its standard input with one byte, 1 for
equal and 0 for not. A child does the comparing; where that takes more than its CPU time, or crashes, the answer is 0,
and the next child takes over.
"""

import contextlib
import functools
import json
import logging
import os
import resource
import signal
import sys

MEMORY = 2 << 30  # bytes of address space: 9**9**9 asks for all there is


@functools.lru_cache(maxsize=1024)
def parsed(text):
    from math_verify import parse

    # The box tells the parser that all of the text is the answer. No time limit of its own: see `main`.
    return parse(rf"\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=0)


def same(a, b):
    from math_verify import verify

    # verify is not symmetric: it reads an assignment differently as the right answer and as the candidate.
    left, right = parsed(a), parsed(b)
    return any(verify(gold, target, timeout_seconds=None) for gold, target in ((left, right), (right, left)))


def serve(requests, answers):
    """Answers until the requests end, or a comparison uses up its CPU time and with it this process."""
    for line in requests:
        a, b, cpu_seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF, whose default action no computation can hold up
        try:
            equal = same(a, b)
        except Exception:  # RecursionError and MemoryError among them
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(b"1" if equal else b"0")


def main():
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's print must not look like an answer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    same("x+1", "1+x")  # imports math-verify and builds its grammar, which takes longer than a comparison may
    logging.disable(logging.CRITICAL)
    answers.write(b"r")
    # A fork takes milliseconds where a new start takes most of a second. Only one request is ever under way, so a child
    # that ends takes no other with it.
    while (child := os.fork()) != 0:
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        answers.write(b"0")
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
