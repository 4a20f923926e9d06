"""The process that renders chat templates (see template.py): run as a script, never imported by the package.

Its requests are JSON objects, its answers {"texts": [...]} or {"error": ...}. A rendering that uses up its CPU time ends
the process.
"""

import contextlib
import datetime
import json
import os
import pathlib
import resource
import signal
import sys

from transformers.utils import chat_template_utils

MEMORY = 1 << 30  # bytes that a rendering may take


class FixedDay(datetime.datetime):
    """The clock of templates that write today's date: a run must not change overnight."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, tzinfo=tz)


def answer(dialogues, cpu_seconds, **options):
    """The answer to a request: the texts of all dialogues, or the error of the first that has one."""
    texts = []
    try:
        for messages, opened in dialogues:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            texts.append(render(messages, opened, **options))
            signal.setitimer(signal.ITIMER_PROF, 0)
        return json.dumps({"texts": texts}).encode()
    except MemoryError:
        error = "it takes more than 1 GB of memory"
    except Exception as raised:  # whatever a template raises
        error = " ".join(str(raised).split())[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return json.dumps({"error": error}).encode()


def render(messages, opened, template, variables, longest):
    rendered, _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=opened, **variables
    )
    if len(rendered[0]) > longest:
        raise ValueError(f"it makes {len(rendered[0]):,} characters, more than {longest:,}")
    return rendered[0]


def limit_memory():
    """Limits the address space to its present size, much of which libraries may have reserved without use, plus MEMORY."""
    with contextlib.suppress(ValueError, OSError):  # systems without /proc have no limit
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's print must not look like an answer
    chat_template_utils.datetime = FixedDay  # ty: ignore[invalid-assignment]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limit_memory()

    def send(content):
        answers.write(len(content).to_bytes(4, "big") + content)
        answers.flush()

    send(b"ready")
    for line in sys.stdin.buffer:
        send(answer(**json.loads(line)))


if __name__ == "__main__":
    main()
