"""Processes that answer requests: large messages, limits, kills, threads."""

import os
import signal
import threading
import time

import pytest

from mft_jax.worker import EndedError, LateError, Worker

SCRIPT = """
import os, signal, sys, time
def send(content):
    sys.stdout.buffer.write(len(content).to_bytes(4, "big") + content)
    sys.stdout.buffer.flush()
def loop():
    signal.setitimer(signal.ITIMER_PROF, 0.1)
    while True:
        pass
send(b"ready")
for line in sys.stdin.buffer:
    match line.split()[0]:
        case b"echo":
            send(line[5:-1])
        case b"process":
            send(str(os.getpid()).encode())
        case b"sleep":
            time.sleep(60)
        case b"exit":
            sys.exit(7)
        case b"loop":
            loop()
"""


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = Worker(tmp_path / "script.py")
    yield found
    found.close()


def test_messages_of_any_size_come_back(worker):
    for message in (b"", b"x", b"y" * 3_000_000):
        assert worker.ask(b"echo " + message, 10) == message


def test_requests_of_several_threads_do_not_mix(worker):
    found = {}

    def ask(index):
        found[index] = [worker.ask(b"echo %d" % index, 10) for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {index: [b"%d" % index] * 20 for index in range(4)}


@pytest.mark.parametrize(
    ("request_line", "seconds", "error"),
    [(b"loop", 30, EndedError), (b"exit", 30, EndedError), (b"sleep", 0.1, LateError)],
)
def test_a_request_that_never_ends_is_stopped_and_the_next_is_answered(worker, request_line, seconds, error):
    first = worker.ask(b"process", 10)
    started = time.monotonic()
    with pytest.raises(error) as caught:
        worker.ask(request_line, seconds)
    assert time.monotonic() - started < 10
    if error is EndedError:
        assert caught.value.returncode == {b"loop": -signal.SIGPROF, b"exit": 7}[request_line]
    assert worker.ask(b"process", 10) != first


def test_a_process_that_was_killed_between_two_requests_is_replaced(worker):
    first = int(worker.ask(b"process", 10))
    os.kill(first, signal.SIGKILL)
    assert int(worker.ask(b"process", 10)) != first


def test_starting_early_does_not_wait_and_serves_the_first_request(worker):
    worker.start()
    process = worker._process
    worker.start()
    assert int(worker.ask(b"process", 10)) == process.pid


def test_a_script_that_cannot_start_says_how_to_see_why(tmp_path):
    (tmp_path / "script.py").write_text("import nothing_of_this_name")
    with pytest.raises(RuntimeError, match=r"did not start: run `\S+ -P \S+script\.py` to see why"):
        Worker(tmp_path / "script.py").ask(b"echo", 10)
