"""What Ctrl-C (SIGINT) and SIGTERM do to the `mft` command.

While there is nothing to clean up, at start-up and at shutdown, they end the process at once with one line. While a
command works they raise an exception, so that the run can record why it stopped; while something is saved they wait until
it is.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PAUSE = 0.01  # seconds, in which a destructor or a callback of the garbage collector ends


class Terminated(SystemExit):
    """SIGTERM arrived. Like KeyboardInterrupt it passes by `except Exception`; uncaught it ends the process with code 143."""

    def __init__(self) -> None:
        super().__init__(exit_code(signal.SIGTERM))

    def __str__(self) -> str:
        return "the process was asked to end (SIGTERM)"


def exit_code(signum: int) -> int:
    """As shells report a process that a signal ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + signum


def exit_at_once() -> None:
    """From now on a signal ends the process at once: SIGINT and SIGTERM with one line, a closed output pipe silently.

    An exception would not do at start-up and shutdown: it can be raised within code that prints a traceback for it, or
    that drops it.
    """
    _set_handlers(_exit, _exit, signal.SIG_DFL)


def install() -> None:
    """From now on SIGINT raises KeyboardInterrupt and SIGTERM raises Terminated, in the main thread.

    What is written to a pipe that nobody reads raises BrokenPipeError: it may be a pipe to another of our processes.
    """
    _set_handlers(signal.default_int_handler, _raise_terminated, signal.SIG_IGN)


@contextlib.contextmanager
def raising() -> Generator[None]:
    """A block for which `install` holds; after it the handlers are those of before.

    Python drops an exception that is raised within a destructor or a callback of the garbage collector, where a signal
    can arrive, too. A signal whose exception was dropped is sent again.
    """
    before = {signum: signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGPIPE)}
    report = sys.unraisablehook
    sys.unraisablehook = lambda dropped: _send_again(dropped.exc_value) or report(dropped)
    install()
    try:
        yield
    finally:
        _set_handlers(*before.values())
        sys.unraisablehook = report


@contextlib.contextmanager
def deferred() -> Generator[None]:
    """A block in which either signal is only remembered; at its end the signal is raised again, for the handler before.

    Blocks may be nested. Outside the main thread, which no signal ever interrupts, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    recorder = _Recorder()
    try:
        for signum in recorder.before:
            signal.signal(signum, recorder)
        yield
    finally:
        recorder.is_recording = False
        for signum, handler in recorder.before.items():
            signal.signal(signum, handler)
        for signum in recorder.received:
            signal.raise_signal(signum)


class _Recorder:
    """A signal handler that remembers signals while `is_recording`, and then passes them to the handlers `before` it.

    The latter happens when one signal interrupts `deferred` before it has put back the handler of the other.
    """

    def __init__(self) -> None:
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.before = {signum: handler for signum, handler in handlers.items() if handler is not None}  # not Python's
        self.received: list[int] = []
        self.is_recording = True

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_recording:
            self.received.append(signum)
        else:
            signal.signal(signum, self.before[signal.Signals(signum)])
            signal.raise_signal(signum)


def _set_handlers(on_interrupt: Any, on_terminate: Any, on_closed_pipe: Any) -> None:
    """Does nothing outside the main thread, which alone may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        return
    for signum, handler in zip(SIGNALS, (on_interrupt, on_terminate), strict=True):
        # Ignored: the process was started so, as the background jobs of a script are. None: set by a C library.
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):
            signal.signal(signum, handler)
    if on_closed_pipe is not None:
        signal.signal(signal.SIGPIPE, on_closed_pipe)


def _send_again(dropped: BaseException | None) -> bool:
    """Sends the signal that `dropped` stands for, a moment from now; False if it stands for none."""
    if not isinstance(dropped, KeyboardInterrupt | Terminated):
        return False
    signum = signal.SIGTERM if isinstance(dropped, Terminated) else signal.SIGINT
    sender = threading.Timer(_PAUSE, os.kill, (os.getpid(), signum))
    sender.daemon = True
    sender.start()
    return True


def _raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    word = "interrupted" if signum == signal.SIGINT else "terminated"
    os.write(2, f"mft: {word}.\n".encode())
    os._exit(exit_code(signum))
