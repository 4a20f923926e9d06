"""The processes of a run on several hosts. All run the same program, each on the devices of its own host.

A compiled program on a mesh that spans hosts starts only when all of them call it, so all hosts go through the same
stages in the same order. Whatever depends on anything else - the disk, the grading of answers, a signal - is decided on
host 0, and `decide` returns the same value on every host. Only host 0 writes the run directory. Other modules ask which
host they run on only for the output to the terminal and to trackers. In a process that works alone, these functions only
call what they are given.

Decisions go through the key-value store of JAX's coordination service, not over the devices: they neither wait for what
the devices are computing nor need a compiled program for each length.
"""

import contextlib
import functools
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Generator
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from mft_jax import signals
from mft_jax.config import ExperimentConfig, HostsConfig, compare
from mft_jax.errors import UserError
from mft_jax.parallel.coordination import Group, connect

T = TypeVar("T")
P = ParamSpec("P")

# Of this process. JAX, too, allows only one for each process.
_group: Group | None = None
_has_failed = False  # it has left the others with an exception


@contextlib.contextmanager
def joined(config: HostsConfig) -> Generator[None]:
    """Joins the other hosts for a block, and leaves them at its end. Does nothing for a process that works alone.

    In the block, a signal that arrives at any host takes effect on all of them together: in `stop_if_asked`, or at the
    end of a `deferred` block. An exception that only this host raises ends the other hosts too, with its message.
    Raises UserError for options that do not go together.
    """
    global _group, _has_failed
    config.check()
    if not config.several:
        yield
        return
    with signals.deferred() as arrived:
        _group = connect(config, arrived)
        try:
            yield
            _group.meet("the end")
        except BaseException as error:
            _has_failed = True
            _group.fail(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            if isinstance(error, Exception) and not isinstance(error, UserError):
                traceback.print_exc()
                raise UserError(f"host {_group.index} has failed with the error above.") from error
            raise
        finally:
            _group.leave()
            _group = None


def exit_process(code: int) -> NoReturn:
    """Ends this process with an exit code. After an error on several hosts, JAX must not wait for the others at exit."""
    if _has_failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def count() -> int:
    """The number of hosts."""
    return 1 if _group is None else _group.size


def is_first() -> bool:
    """Whether this is host 0, which shows the progress and writes."""
    return _group is None or _group.index == 0


def decide(make: Callable[[], T]) -> T:
    """`make()` of host 0, on every host. Where it raises an exception, every host raises it.

    All hosts must call this in the same order. The value is pickled. On host 0, `make` may itself call `decide`.
    """
    group = _group
    if group is None or group.is_alone:
        return make()
    name = getattr(make, "__qualname__", str(make))
    if group.index:
        return _open(pickle.loads(group.receive(name)))
    with _alone(group):
        outcome = _outcome(make)
    group.send(name, pickle.dumps(outcome))
    return _open(outcome)


def decided(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with `decide` around each call."""

    @functools.wraps(function)
    def on_host_0(*arguments: P.args, **named: P.kwargs) -> T:
        if _group is None:
            return function(*arguments, **named)
        call = functools.wraps(function)(lambda: function(*arguments, **named))
        return decide(call)

    return on_host_0


def first_only(function: Callable[P, None]) -> Callable[P, None]:
    """The function, which returns nothing, on host 0 only. The other hosts do not wait for it.

    Because it needs no other host, it may also be called while only host 0 handles an error.
    """

    @functools.wraps(function)
    def on_host_0(*arguments: P.args, **named: P.kwargs) -> None:
        if _group is None:
            function(*arguments, **named)
        elif _group.index == 0:
            with _alone(_group):
                function(*arguments, **named)

    return on_host_0


def everywhere(make: Callable[[], T]) -> T:
    """`make()` of each host, on that host. If it fails on some of them, every host raises the exception of the first of these.

    A UserError then names the host. `make` must not need the other hosts.
    """
    group = _group
    if group is None or group.is_alone:
        return make()
    value, error = _outcome(make)
    errors = [pickle.loads(data) for data in group.exchange(getattr(make, "__qualname__", ""), pickle.dumps(error))]
    for host, found in enumerate(errors):
        if isinstance(found, UserError):
            raise UserError(f"host {host}: {found}")
        if found is not None:
            raise found
    return cast("T", value)


def same_config(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration of host 0. Raises UserError on all hosts if a host has other settings; paths may differ."""
    if _group is None:
        return config
    configs = [pickle.loads(data) for data in _group.exchange("the configuration", pickle.dumps(config))]
    for host, other in enumerate(configs):
        for found in compare(configs[0], other):
            raise UserError(
                f"{found.field} is {found.given!r} on host {host}, but {found.stored!r} on host 0: start all hosts with "
                "the same command."
            )
    return configs[0]


def meet(name: str) -> None:
    """Waits for the other hosts, for example after a compilation: a collective operation may not wait that long."""
    if _group is not None and not _group.is_alone:
        _group.meet(name)


def stop_if_asked() -> None:
    """If a signal has arrived at any host, raises its exception on all hosts. Call it often, on all hosts.

    In a process that works alone, a signal raises its exception at once and this does nothing.
    """
    asked = _asked()
    if asked:
        signals.raise_exception(asked)


@contextlib.contextmanager
def deferred() -> Generator[list[int]]:
    """`signals.deferred`, for a block that all hosts run.

    On several hosts, the list has only a signal that had arrived at one of them before the block, and its exception is
    raised at the end of the block. So all hosts go through the block in the same way.
    """
    with signals.deferred() as arrived:
        asked = _asked()
        yield [asked] if asked else arrived if _group is None else []
    if asked:
        signals.raise_exception(asked)


def _asked() -> int | None:
    """The signal that has arrived at a host, the same on all hosts; None if there is none."""
    group = _group
    return None if group is None else decide(group.signal_of_any)


def _outcome(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """(value, exception) of a call, one of which is None. An exception that cannot be pickled is replaced by its text."""
    try:
        return make(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


@contextlib.contextmanager
def _alone(group: Group) -> Generator[None]:
    """In the block, host 0 does what the others do not do, so nothing is shared with them. Blocks may be nested."""
    before, group.is_alone = group.is_alone, True
    try:
        yield
    finally:
        group.is_alone = before


def _open(outcome: tuple[T | None, Exception | None]) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value
