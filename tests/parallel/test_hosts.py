"""What two processes do together, in real processes that join each other."""

import re
import signal
import subprocess
import sys
import time

import pytest

from mft_jax.cli import main
from mft_jax.parallel import hosts
from tests.parallel.two_hosts import end, free_address, start


def test_host_0_decides_and_writes(tmp_path):
    code = f"""
    from mft_jax.runs.store import Store

    store = Store({str(tmp_path / "store")!r})
    store.hold()
    print(hosts.decide(lambda: ("decided by", own, hosts.decide(lambda: own))))
    store.write("name", f"written by {{own}}".encode())
    print(store.read("name"), store.names(), store.exists("other"))
    for work in (lambda: store.read("other"), lambda: hosts.everywhere(lambda: [1][own])):
        try:
            print(work())
        except (UserError, IndexError) as error:
            print(type(error).__name__, str(error)[-27:])
    def check():
        if own == 1:
            raise UserError("my disk is missing")
    try:
        hosts.everywhere(check)
    except UserError as error:
        print(error)
    try:
        hosts.same_config(ExperimentConfig(seed=own, run_dir=f"runs/{{own}}"))
    except UserError as error:
        print(error)
    print(hosts.same_config(ExperimentConfig(run_dir=f"runs/{{own}}")).run_dir)
    """
    codes, outputs, errors = end(start(code))
    assert codes == [0, 0], errors
    assert outputs[0] == outputs[1]
    assert outputs[0].splitlines() == [
        "('decided by', 0, 0)",
        "b'written by 0' ['name', 'run.lock'] False",
        "UserError path of a file that exists.",
        "IndexError list index out of range",
        "host 1: my disk is missing",
        "seed is 1 on host 1, but 0 on host 0: start all hosts with the same command.",
        "runs/0",
    ]  # fmt: skip


def test_a_host_reads_only_what_its_devices_hold(tmp_path):
    """And arrays come back whole, whichever host they are on."""
    code = f"""
    import jax, numpy as np
    told = open({str(tmp_path)!r} + "/" + str(own), "w")  # Gloo writes to the standard output at any moment
    from mft_jax.config import MeshConfig
    from mft_jax.parallel.mesh import make_mesh, sharding
    from mft_jax.parallel.placement import place_parts, to_devices, to_host

    mesh, whole, read = make_mesh(MeshConfig(agent=2, model=2)), np.arange(32.0).reshape(4, 8), []
    part = lambda index: read.append(index) or whole[index]
    placed = place_parts(whole.shape, sharding(mesh, "embed", "heads"), part)
    assert (to_host(placed) == whole).all() and placed.sum() == whole.sum()
    print(sorted(index[1].indices(8)[:2] for index in read), file=told)
    placed = place_parts(whole.shape, sharding(mesh, "agent", None), lambda index: read.append(index) or whole[index])
    print(read[-1][0].indices(4)[:2], len(read), file=told)
    copied = to_devices({{"a": placed, "b": whole[0]}}, sharding(mesh, "agent"), copy=True)
    assert (to_host(copied["a"]) == whole).all() and (to_host(copied["b"]) == whole[0]).all()
    try:
        make_mesh(MeshConfig(model=2))
    except UserError as error:
        print(error, file=told, flush=True)
    """
    codes, _, errors = end(start(code))
    assert codes == [0, 0], errors
    for own in range(2):
        assert (tmp_path / str(own)).read_text().splitlines() == [
            "[(0, 4), (4, 8)]",  # the same on both hosts: each holds all columns, once for each agent
            f"({2 * own}, {2 * own + 2}) 3",  # one read for the two devices that hold the same rows
            "The mesh 1x1x2 (agent x data x model) has 2 devices, but the 2 hosts have 4: use all of them.",
        ]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_at_one_host_stops_both_at_the_same_step(signum, code):
    work = f"""
    if own == 1:
        os.kill(os.getpid(), {int(signum)})
    for step in range(10**6):
        try:
            with hosts.deferred() as arrived:
                time.sleep(0.01)
                if arrived:
                    print("saved step", step, flush=True)
        except BaseException as error:
            print(type(error).__name__, "after step", step, flush=True)
            raise
    """
    codes, outputs, _ = end(start(work))
    assert codes == [code, code]
    assert outputs[0] == outputs[1]
    assert re.fullmatch(r"saved step (\d+)\n(Terminated|KeyboardInterrupt) after step \1\n", outputs[0])


def test_an_error_of_one_host_ends_the_other_with_its_reason():
    codes, _, errors = end(start("if own == 1: raise KeyError('lost')\nhosts.meet('the next step')"))
    assert codes[0] == 1
    assert "mft: host 0 ends: host 1 has ended: KeyError: 'lost'.\nWhat it was doing:\n" in errors[0]
    assert "in meet" in errors[0]
    assert codes[1] != 0
    assert "KeyError: 'lost'" in errors[1]


def test_a_host_that_makes_no_progress_is_named_with_all_stacks():
    work = "def stuck(): time.sleep(1000)\nif own == 1: stuck()\nhosts.meet('the next step')"
    codes, _, errors = end(start(work, hang_seconds=3))
    assert codes == [1, 1]
    assert "have made no progress for 3 s: host 0 is at step 1 (the next step); host 1 is at step 0" in errors[0]
    assert "in stuck" in errors[1]


def test_a_host_that_gives_no_sign_of_life_is_named():
    processes = start("print('begun', flush=True)\nwhile True: hosts.decide(lambda: time.sleep(0.01))", lost_seconds=3)
    for process in processes:
        assert process.stdout.readline() == "begun\n"
    time.sleep(1.5)  # until it has given a sign
    processes[1].send_signal(signal.SIGSTOP)
    _, error = processes[0].communicate()
    processes[1].kill()
    end(processes[1:])
    assert processes[0].returncode == 1
    assert "mft: host 0 ends: host 1 has given no sign of life for 3 s: it has died.\nWhat it was doing:\n" in error


@pytest.mark.parametrize(("own", "message"), [
    (1, "process 1 could not join the others at {}, process 0, after 2 s: start process 0 there, and check"),
    (0, "not all of the 2 processes have connected to {} after 2 s: start the others, and let them reach"),
])  # fmt: skip
def test_a_coordinator_that_cannot_be_reached(own, message):
    address = free_address()
    code = (
        "from mft_jax.config import HostsConfig\nfrom mft_jax.parallel.hosts import joined\n"
        f"with joined(HostsConfig(coordinator={address!r}, processes=2, process_id={own}, connect_seconds=2)): 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"mft: {message.format(address)}" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "--coordinator, --process-id are missing: give --coordinator, --processes and"),
        (["--coordinator", "here", "--processes", "2", "--process-id", "0"], "expected HOST:PORT, such as"),
        (["--coordinator", "here:1", "--processes", "2", "--process-id", "2"], "--process-id is 2, expected 0 to 1"),
        (["--hang-seconds", "0"], "--hang-seconds is 0, expected at least 1"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mft", "run", "configs/quickstart.yaml", "--run-dir", str(tmp_path), *options])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert message in capsys.readouterr().err


def test_a_process_that_works_alone_calls_what_it_is_given():
    assert (hosts.count(), hosts.is_first(), hosts.decide(lambda: 3), hosts.everywhere(lambda: 4)) == (1, True, 3, 4)
    with hosts.deferred() as arrived:
        hosts.stop_if_asked()
        signal.raise_signal(signal.SIGINT) if arrived else None
    assert arrived == []
