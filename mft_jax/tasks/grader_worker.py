"""The grading process (see grader.py). It is run as a script and never imported by the package.

A request is a line [a, b, cpu_seconds]. The answer is 1 for equal, 0 for different, and - for a comparison that ran out
of time or memory. A forked child does the comparisons. If a comparison exceeds its CPU time, the child is killed by the
timer's signal, and a new child takes over. If the child ends for any other reason, this process exits with CRASHED: the
child may have been killed before it read a request, and an answer sent now would be taken as that of the next request.
"""

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import resource
import signal
import sys

CRASHED = 3  # exit code
MEMORY = 2 << 30  # bytes of address space; 9**9**9 would use all memory


def load_engine():
    """Imports formulas/engine.py without `mft_jax`, whose imports this process does not need.

    The folder of `formulas` cannot be added to the search path, because its other modules would hide modules of Python.
    """
    folder = pathlib.Path(__file__).with_name("formulas")
    spec = importlib.util.spec_from_file_location("formulas", folder / "__init__.py")
    assert spec is not None
    sys.modules["formulas"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("formulas.engine")


def send(answers, content):
    answers.write(len(content).to_bytes(4, "big") + content)
    answers.flush()


def serve(requests, answers, same_formula):
    """Answers all requests. A comparison that exceeds its CPU time ends this process."""
    for line in requests:
        a, b, cpu_seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF: its default action ends the process
        try:
            answer = b"1" if same_formula(a, b) else b"0"
        except MemoryError:
            answer = b"-"
        except Exception:  # e.g. RecursionError
            answer = b"0"
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(answers, answer)


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that output printed by a library is not taken as an answer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    engine = load_engine()
    engine.install()
    engine.warm_up()
    logging.disable(logging.CRITICAL)
    send(answers, b"ready")
    # A fork takes milliseconds, a new interpreter most of a second. There is only one request at a time, so a child
    # that is killed leaves only that one unanswered.
    while (child := os.fork()) != 0:
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGPROF:
            sys.exit(CRASHED)
        send(answers, b"-")
    serve(sys.stdin.buffer, answers, engine.same_formula)


if __name__ == "__main__":
    main()
