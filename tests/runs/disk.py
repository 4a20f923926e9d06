"""A disk that fails or stops: for tests of what a run keeps."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

import pytest

STEPS = ("open", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "pwrite", "ftruncate")  # of the os module


class Stopped(BaseException):
    """In place of a kill: nothing catches it."""


@contextlib.contextmanager
def stopped_before(step: int) -> Iterator[Callable[[], int]]:
    """The process stops before its disk step number `step`; yields how many steps were made until then.

    Nothing is really synced: after hundreds of such stops a disk would take seconds.
    """
    made = 0

    def wrap(real):
        def call(*arguments, **options):
            nonlocal made
            if made == step:
                raise Stopped
            made += 1
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, wrap((lambda _: None) if name == "fsync" else REAL[name]))
        yield lambda: made


def fail_with(patch: pytest.MonkeyPatch, number: int, functions: tuple[str, ...], only: str = "") -> None:
    """Makes functions of the os module fail with an errno: ENOSPC is met when data are written or made durable, a
    read-only file system at the first try to change anything. `only`: where this is in the path, or no path is given."""

    def wrap(real):
        def call(*arguments, **options):
            named = [str(argument) for argument in arguments if isinstance(argument, str | os.PathLike)]
            is_reading = real is REAL["open"] and arguments[1:2] == (os.O_RDONLY,)
            if is_reading or (named and only not in named[0]):
                return real(*arguments, **options)
            raise OSError(number, os.strerror(number), *named[:1])

        return call

    for name in functions:
        patch.setattr(os, name, wrap(REAL[name]))


REAL = {name: getattr(os, name) for name in STEPS}

# How a disk that is full, broken or read-only shows itself.
FAULTS = {
    "full": (errno.ENOSPC, ("fsync", "pwrite"), "No space left on device", "make room"),
    "broken": (errno.EIO, ("fsync", "pwrite"), "Input/output error", "check that disk"),
    "read-only": (errno.EROFS, ("open", "mkdir", "replace", "rename"), "Read-only file system", "make it writable"),
}
