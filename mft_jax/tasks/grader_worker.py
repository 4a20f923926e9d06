"""The grading process (see grader.py): run as a script, never imported by the package.

Its requests are lines [a, b, cpu_seconds], its answers 1 for equal, 0 for different, and - where the comparison ran out
of time or memory. A child does the comparing; when a comparison uses up its CPU time, it ends the child, and the next
child takes over. Anything else that ends the child ends the process with CRASHED: a child that was killed from outside
may not have read a request yet, and an answer to none would be taken for that to the next.
"""

import contextlib
import functools
import json
import logging
import os
import resource
import signal
import sys

CRASHED = 3  # exit code
MEMORY = 2 << 30  # bytes of address space: 9**9**9 asks for all there is


@functools.lru_cache(maxsize=1024)
def parse_formula(text):
    from math_verify import parse

    # The box tells the parser that all of the text is the answer. No time limit of its own: see `main`.
    return parse(rf"\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=0)


def same_formula(a, b):
    from math_verify import verify

    # verify is not symmetric: it reads an assignment differently as the right answer and as the candidate.
    left, right = parse_formula(a), parse_formula(b)
    return any(verify(gold, target, timeout_seconds=None) for gold, target in ((left, right), (right, left)))


def send(answers, content):
    answers.write(len(content).to_bytes(4, "big") + content)
    answers.flush()


def serve(requests, answers):
    """Answers until the requests end, or a comparison uses up its CPU time, which ends this process."""
    for line in requests:
        a, b, cpu_seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF, whose default action no computation can hold up
        try:
            answer = b"1" if same_formula(a, b) else b"0"
        except MemoryError:
            answer = b"-"
        except Exception:  # RecursionError among them
            answer = b"0"
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(answers, answer)


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's print must not look like an answer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    same_formula("x+1", "1+x")  # imports math-verify and builds its grammar, which takes longer than a comparison may
    logging.disable(logging.CRITICAL)
    send(answers, b"ready")
    # A fork takes milliseconds where a new start takes most of a second. There is only one request at a time, so a child
    # that ends leaves no other unanswered.
    while (child := os.fork()) != 0:
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGPROF:
            sys.exit(CRASHED)
        send(answers, b"-")
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
