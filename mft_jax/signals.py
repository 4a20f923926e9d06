"""Handles Ctrl-C (SIGINT) and SIGTERM in the `mft` command.

During start-up and shutdown, when there is nothing to clean up, a signal ends the process at once with one line. While
a command runs, a signal raises an exception, so that the run can record why it stopped. While something is being saved,
the exception is delayed until it is saved.
"""

import _thread  # threading.Thread takes a lock in its start, which the interrupted code may hold
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from types import FrameType
from typing import Any, NoReturn

from mft_jax.startup import SIGNALS, exit_code, set_handler

# The exit code of a command that SIGTERM stopped after it had saved its work, as when a cloud takes a machine back: the
# same command continues. It is EX_TEMPFAIL of sysexits.h; no shell and no other error of `mft` uses it.
START_AGAIN = 75
_PAUSE = 0.01  # seconds; long enough for a destructor or a callback of the garbage collector to end
_collection_runs = [False]  # whether Python collects garbage just now; noted while `raising`


class Terminated(SystemExit):
    """SIGTERM arrived. Like KeyboardInterrupt it is no Exception. If it is not caught, the exit code is 143.

    The `mft` command catches it, and exits with START_AGAIN.
    """

    def __init__(self) -> None:
        super().__init__(exit_code(signal.SIGTERM))

    def __str__(self) -> str:
        return "the process was asked to end (SIGTERM)"


def install() -> None:
    """From now on SIGINT raises KeyboardInterrupt and SIGTERM raises Terminated, in the main thread.

    A write to a closed pipe raises BrokenPipeError instead of ending the process, because the pipe may be one to a
    child process.
    """
    _set_handlers(_raise, _raise, signal.SIG_IGN)


def raise_exception(signum: int) -> NoReturn:
    """Raises the exception that `install` raises for a signal."""
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


@contextlib.contextmanager
def raising() -> Generator[None]:
    """Installs the handlers of `install` for a block, and restores the previous handlers after it.

    Python ignores an exception that is raised in a destructor or in a callback of the garbage collector, and does not even
    report it if the destructor is that of a file object. A signal that arrives there would be lost. So a signal that
    arrives during a garbage collection is sent again after it, and so is one whose exception Python reports as ignored.
    """
    before = {signum: signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGPIPE)}
    report = sys.unraisablehook

    def send_again_or_report(dropped: "sys.UnraisableHookArgs") -> None:
        signum = _signal_of(dropped.exc_value)
        if signum is None:
            return report(dropped)
        hook_runs = [True]
        _thread.start_new_thread(_send_later, (signum, hook_runs))
        hook_runs[0] = False  # the last statement, and no call: Python runs signal handlers at calls

    sys.unraisablehook = send_again_or_report
    gc.callbacks.append(_note_collection)
    install()
    try:
        yield
    finally:
        _set_handlers(*before.values())
        gc.callbacks.remove(_note_collection)
        _collection_runs[0] = False  # this block may end within a collection, whose end is then not noted
        sys.unraisablehook = report


@contextlib.contextmanager
def deferred() -> Generator[list[int]]:
    """Delays SIGINT and SIGTERM that arrive in a block until its end. Then the previous handlers receive them.

    Yields the list of the signals that have arrived so far. Blocks may be nested. Outside the main thread this does
    nothing, because Python runs handlers only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    recorder = _Recorder()
    try:
        for signum in recorder.before:
            signal.signal(signum, recorder)
        yield recorder.received
    finally:
        recorder.is_recording = False
        for signum, handler in recorder.before.items():
            signal.signal(signum, handler)
        for signum in recorder.received:
            signal.raise_signal(signum)


class _Recorder:
    """A signal handler that records signals while `is_recording`, and afterwards passes them to `before`.

    A signal arrives afterwards if it interrupts `deferred` before its previous handler has been restored.
    """

    def __init__(self) -> None:
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        # None: the handler was set by a C library, and Python cannot restore it.
        self.before = {signum: handler for signum, handler in handlers.items() if handler is not None}
        self.received: list[int] = []
        self.is_recording = True

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_recording:
            self.received.append(signum)
        else:
            signal.signal(signum, self.before[signal.Signals(signum)])
            signal.raise_signal(signum)


def _set_handlers(on_interrupt: Any, on_terminate: Any, on_closed_pipe: Any) -> None:
    """Sets the handlers. Does nothing outside the main thread, because Python allows it only there."""
    if threading.current_thread() is not threading.main_thread():
        return
    for signum, handler in zip(SIGNALS, (on_interrupt, on_terminate), strict=True):
        set_handler(signum, handler)
    if on_closed_pipe is not None:
        signal.signal(signal.SIGPIPE, on_closed_pipe)


def _signal_of(dropped: BaseException | None) -> int | None:
    """The signal that raised an ignored exception; None if no signal did."""
    if isinstance(dropped, Terminated):
        return signal.SIGTERM
    return signal.SIGINT if isinstance(dropped, KeyboardInterrupt) else None


def _note_collection(phase: str, info: dict[str, int]) -> None:
    _collection_runs[0] = phase == "start"


def _send_later(signum: int, hook_runs: Sequence[bool]) -> None:
    """Sends a signal to this process once the hook that asks for it and garbage collections have ended, because its
    exception would be ignored there."""
    time.sleep(_PAUSE)
    while hook_runs[0] or _collection_runs[0]:
        time.sleep(_PAUSE)
    os.kill(os.getpid(), signum)


def _raise(signum: int, frame: FrameType | None) -> None:
    """The handler of signals while a command runs."""
    if _collection_runs[0]:
        _thread.start_new_thread(_send_later, (signum, (False,)))
    else:
        raise_exception(signum)
