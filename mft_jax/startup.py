"""What the `mft` command does first: a signal ends it at once, memory comes in huge pages, and modules are imported quickly.

It imports little, because Python shows a traceback for a Ctrl-C that arrives before.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys

TYPE_CHECKING = False  # as in mft_jax/__init__.py
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

COMPUTING = ("run", "eval", "ask", "bench")  # the commands that sample or train
_HUGE_PAGES = "glibc.malloc.hugetlb"  # a tunable of glibc; 1: ask the kernel for huge pages (madvise)
_HUGE_PAGES_MODE = "/sys/kernel/mm/transparent_hugepage/enabled"
_STARTED_AGAIN = "MFT_JAX_STARTED_AGAIN"


def exit_at_once() -> None:
    """From now on signals end the process at once: SIGINT and SIGTERM with one line, and SIGPIPE without output.

    During start-up and shutdown, an exception would not work: it can be raised inside code that prints its traceback or
    ignores it. To be called in the main thread.
    """
    for signum in SIGNALS:
        set_handler(signum, _exit)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def use_huge_pages() -> None:
    """Starts a computing command again, as the same process, with memory in huge pages (2 MB instead of 4 KB).

    Training steps on a virtual machine took up to twice as long with small pages: docs/performance.md. glibc reads this
    setting once, from the environment, before a program starts. Does nothing if the user has set it, where the kernel does
    not give huge pages on request, and with a C library that does not know the setting.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    computes = sys.argv[1:2] and sys.argv[1] in COMPUTING and not {"-h", "--help"} & set(sys.argv)
    if not computes or _HUGE_PAGES in tunables or _STARTED_AGAIN in os.environ or not _huge_pages_on_request():
        return
    # Some programs are started without the variables that glibc reads. Without the second one they would start for ever.
    chosen = {"GLIBC_TUNABLES": f"{tunables}:{_HUGE_PAGES}=1".lstrip(":"), _STARTED_AGAIN: "1"}
    with contextlib.suppress(OSError):
        os.execve(sys.executable, sys.orig_argv, os.environ | chosen)


def _huge_pages_on_request() -> bool:
    """Whether the kernel gives huge pages to those who ask, and the C library (glibc 2.35 or newer) can ask."""
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""  # "glibc 2.36"
        with open(_HUGE_PAGES_MODE) as file:
            mode = file.read()
        version = tuple(int(part) for part in library.split()[1].split(".")[:2])
    except (OSError, ValueError, IndexError, AttributeError):  # another system or library
        return False
    return version >= (2, 35) and "[madvise]" in mode


@contextlib.contextmanager
def quick_imports() -> Generator[None]:
    """Imports modules without searching them for garbage: they make half a million objects that stay.

    The first time, what there is afterwards is left out of all later searches too.
    """
    first = "jax" not in sys.modules
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
        if first:
            gc.freeze()
    finally:
        if collected:
            gc.enable()


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
