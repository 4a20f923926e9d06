"""What the `mft` command does first: from then on a signal ends it at once, with one line instead of a traceback.

It imports little, because Python shows a traceback for a Ctrl-C that arrives before.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # as in mft_jax/__init__.py
if TYPE_CHECKING:
    from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_at_once() -> None:
    """From now on signals end the process at once: SIGINT and SIGTERM with one line, and SIGPIPE without output.

    During start-up and shutdown, an exception would not work: it can be raised inside code that prints its traceback or
    ignores it. To be called in the main thread.
    """
    for signum in SIGNALS:
        set_handler(signum, _exit)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def set_handler(signum: int, handler: Any) -> None:
    """Sets the handler of a signal, unless the signal is ignored or handled by a C library."""
    # SIG_IGN: the process was started with the signal ignored, e.g. as a background job of a script.
    if signal.getsignal(signum) not in (signal.SIG_IGN, None):
        signal.signal(signum, handler)


def exit_code(signum: int) -> int:
    """The exit code that shells report for a process ended by a signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + signum


def _exit(signum: int, frame: object) -> None:
    word = "interrupted" if signum == signal.SIGINT else "terminated"
    os.write(2, f"mft: {word}.\n".encode())
    os._exit(exit_code(signum))
