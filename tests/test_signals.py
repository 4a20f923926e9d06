"""Ctrl-C and SIGTERM: in this process through `raise_signal`, and sent to real processes at awkward moments."""

import gc
import io
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from mft_jax import signals
from mft_jax.signals import Terminated, deferred, raising

RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # before a command works; later, SIGTERM gives START_AGAIN


@pytest.fixture(autouse=True)
def _handlers_stay():
    """Whatever a test does, the handlers of before are back after it. Before it they are those of a new process: as a
    background job of a script, the tests themselves would ignore SIGINT."""
    fresh = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGPIPE: signal.SIG_IGN}
    before = {signum: signal.signal(signum, handler) for signum, handler in fresh.items()}
    yield
    after = {signum: signal.getsignal(signum) for signum in before}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert after == fresh


@pytest.mark.parametrize("signum", RAISED)
def test_a_signal_raises_while_a_command_works(signum):
    with pytest.raises(RAISED[signum]), raising():
        signal.raise_signal(signum)


class Hostile:
    """An object in whose destructor a signal arrives."""

    def __init__(self, signum):
        self.signum = signum

    def __del__(self):
        signal.raise_signal(self.signum)


def collect(signum):
    """A run of the garbage collector with a callback, as JAX has one, in which a signal arrives."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signum)

    gc.callbacks.append(callback)
    gc.collect()


class GarbageFile(io.RawIOBase):
    """A file object in whose destructor a signal arrives. Python ignores its exceptions and reports nothing."""

    def __init__(self, signum):
        self.signum, self.circle = signum, self

    def close(self):
        signal.raise_signal(self.signum)


def collect_file(signum):
    """A run of the garbage collector that deletes a file object."""
    GarbageFile(signum)
    gc.collect()


def collect_long(signum):
    """As `collect`, and then the collector deletes a file object, so slowly that a signal that is sent again arrives."""
    slow = GarbageFile(signum)
    slow.close = lambda: [time.sleep(0.001) for _ in range(100)]
    del slow
    collect(signum)


def wait_after(arrive, signum):
    arrive(signum)
    time.sleep(10)


@pytest.mark.parametrize("signum", RAISED)
@pytest.mark.parametrize("arrive", [Hostile, collect, collect_file, collect_long])
@pytest.mark.parametrize("pause", [0, signals._PAUSE])  # 0: as on a machine so busy that the hook takes longer
def test_a_signal_that_arrives_where_python_drops_exceptions_is_not_lost(signum, arrive, pause, monkeypatch, capfd):
    monkeypatch.setattr(signals, "_PAUSE", pause)
    hook = sys.unraisablehook
    with pytest.raises(RAISED[signum]), raising():
        wait_after(arrive, signum)
    assert sys.unraisablehook is hook
    assert capfd.readouterr().err == ""


def test_other_exceptions_that_python_drops_are_reported_as_before(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))

    class Broken:
        def __del__(self):
            raise OSError

    with raising():
        Broken()
    assert reported == [OSError]


def test_terminated_ends_a_process_but_is_no_ordinary_exception():
    terminated = Terminated()
    assert not isinstance(terminated, Exception)  # cleaning up is `except BaseException`
    assert (terminated.code, str(terminated)) == (143, "the process was asked to end (SIGTERM)")


def save(done, *received, error=None):
    """Something that is saved while signals arrive."""
    with deferred():
        for signum in received:
            signal.raise_signal(signum)
        if error:
            raise error
        done.append("saved")
    done.append("returned")


@pytest.mark.parametrize("signum", RAISED)
def test_a_deferred_signal_waits_for_the_end_of_the_block(signum):
    done = []
    with raising():
        with pytest.raises(RAISED[signum]):
            save(done, signum)
        save(done)  # and it is over: nothing is raised again
    assert done == ["saved", "saved", "returned"]


def test_of_several_deferred_signals_the_first_is_raised():
    with raising(), pytest.raises(Terminated):
        save([], signal.SIGTERM, signal.SIGINT)


def test_deferred_blocks_nest():
    done = []
    with raising(), pytest.raises(KeyboardInterrupt), deferred():
        save(done, signal.SIGINT)
    assert done == ["saved", "returned"]


def test_an_error_in_a_deferred_block_is_kept_beside_the_signal():
    with raising(), pytest.raises(KeyboardInterrupt) as raised:
        save([], signal.SIGINT, error=OSError("disk full"))
    assert str(raised.value.__context__) == "disk full"
    with raising(), pytest.raises(OSError, match="disk full"):
        save([], error=OSError("disk full"))


def test_without_the_command_ctrl_c_waits_as_well():
    """In a notebook, with Python's own handlers."""
    done = []
    with pytest.raises(KeyboardInterrupt):
        save(done, signal.SIGINT)
    assert done == ["saved"]


def test_an_ignored_signal_stays_ignored():
    """A script's background jobs do not hear Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    done = []
    with raising():
        save(done, signal.SIGINT)
    assert done == ["saved", "returned"]
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


def test_a_signal_while_handlers_are_put_back_is_not_lost():
    """A recorder that could not be replaced passes signals on to the handler that it stands for."""
    with raising():
        recorder = signals._Recorder()
        signal.signal(signal.SIGTERM, recorder)
        recorder.is_recording = False
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signals._raise
        assert recorder.received == []


def test_other_threads_are_left_alone():
    found = []

    def work():
        signals.install()
        with raising(), deferred():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


# Real processes


def start(*command, **options):
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process):
    """(exit code, what it printed, its complaint)."""
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in out + err, err
    assert "Exception ignored" not in err, err
    return process.returncode, out, err


def wait_for_handlers(process):
    """Until the process itself decides about SIGTERM: before that, Python is still starting."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.0005)


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1, 0.15])
@pytest.mark.parametrize("arguments", [("run", "--help"), ("status", "nowhere")], ids=lambda words: words[0])
def test_ctrl_c_just_after_the_start_is_one_line(tmp_path, arguments, delay):
    process = start("-m", "mft_jax", *arguments, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})
    wait_for_handlers(process)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    if code == 130:
        assert err == "mft: interrupted.\n"
    else:  # it was done before, or Python had already put the system's own handler back
        assert code in (0, 1, -signal.SIGINT)


def program(tmp_path, text):
    """A Python file to run; `mft_jax` is found from it."""
    path = tmp_path / "program.py"
    path.write_text(f"import sys; sys.path.insert(0, {os.getcwd()!r})\n" + textwrap.dedent(text))
    return str(path)


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_during_an_import_is_one_line(tmp_path, signum):
    """Even where the import is within code that drops whatever is raised."""
    (tmp_path / "tyro.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal({int(signum)})\nexcept BaseException:\n    pass\n"
    )
    process = start(program(tmp_path, "from mft_jax.__main__ import main\nmain()"))
    word = "interrupted" if signum == signal.SIGINT else "terminated"
    assert finish(process) == (CODES[signum], "", f"mft: {word}.\n")


def test_ctrl_c_during_shutdown_is_one_line_and_loses_no_output(tmp_path):
    process = start(
        program(
            tmp_path,
            """
            import atexit, signal
            atexit.register(signal.raise_signal, signal.SIGINT)
            sys.argv = ["mft", "--version"]
            from mft_jax.__main__ import main
            main()
            """,
        )
    )
    code, out, err = finish(process)
    assert (code, err) == (130, "mft: interrupted.\n")
    assert out.startswith("mft ")


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_while_a_run_saves(tmp_path, signum):
    """The save is completed, the run cleans up, and the command ends with one line and its exit code."""
    (tmp_path / "c.yaml").touch()
    process = start(
        program(
            tmp_path,
            f"""
            import os, types
            def run(config, reporter):
                from mft_jax.signals import deferred
                try:
                    with deferred():
                        os.kill(os.getpid(), {int(signum)})
                        print("saved", flush=True)
                    print("never")
                except BaseException as error:
                    print("cleaned up after", type(error).__name__)
                    raise
            sys.modules["mft_jax.experiment"] = types.SimpleNamespace(run=run)
            sys.argv = ["mft", "run", {str(tmp_path / "c.yaml")!r}]
            from mft_jax.__main__ import main
            main()
            """,
        )
    )
    word = "interrupted" if signum == signal.SIGINT else "terminated"
    assert finish(process) == (
        75 if signum == signal.SIGTERM else 130,
        f"saved\ncleaned up after {RAISED[signum].__name__}\n",
        f"mft: {word}; run the same command again to continue.\n",
    )


def test_a_reader_that_leaves_early_is_no_error():
    """As in `mft run --help | head -1`."""
    process = start("-m", "mft_jax", "run", "--help")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGPIPE, "")
