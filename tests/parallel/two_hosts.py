"""Starts two processes that work together, as on two hosts."""

import os
import socket
import subprocess
import sys
import textwrap

PREFIX = """
import os, signal, sys, time
from mft_jax import signals
from mft_jax.config import ExperimentConfig, HostsConfig
from mft_jax.errors import UserError
from mft_jax.parallel import hosts
address, own, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
with signals.raising(), hosts.joined(HostsConfig(coordinator=address, processes=2, process_id=own, **options)):
"""


def free_address():
    """An address on this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(code, **options):
    """Starts two processes that join each other and run `code`, in which `own` is the number of the process, 0 or 1."""
    program = PREFIX + textwrap.indent(textwrap.dedent(code), "    ")
    command = [sys.executable, "-c", program, free_address()]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([*command, str(own), repr(options)], env=environment, **pipes)
        for own in range(2)
    ]  # fmt: skip


def end(processes):
    """(exit codes, outputs, errors) of processes when they have ended."""
    texts = [process.communicate() for process in processes]
    return [process.returncode for process in processes], *zip(*texts, strict=True)
