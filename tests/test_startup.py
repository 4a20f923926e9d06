"""What the `mft` command does before it works: huge pages, and imports without the garbage collector."""

import gc
import os
import re
import subprocess
import sys

import pytest

from mft_jax import startup

OWN = "glibc.malloc.hugetlb=1"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Calls `use_huge_pages` on a system of this kind; gives the variables that it starts the process with, or None."""

    def start(*arguments, library="glibc 2.36", mode="always [madvise] never", fails=False, **variables):
        found = []

        def execve(program, command, environment):
            found.append((program, command, environment))
            if fails:
                raise OSError("Argument list too long")

        pages = tmp_path / "enabled"
        pages.write_text(mode)
        monkeypatch.setattr(startup, "_HUGE_PAGES_MODE", str(pages))
        monkeypatch.setattr(os, "confstr", lambda name: library)
        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(sys, "argv", ["mft", *arguments])
        monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "mft", *arguments])
        for name in ("GLIBC_TUNABLES", startup._STARTED_AGAIN):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        startup.use_huge_pages()
        if not found:
            return None
        [(program, command, environment)] = found
        assert program == sys.executable
        assert command == ["python", "-X", "dev", "mft", *arguments]
        assert {name: environment[name] for name in os.environ if name != "GLIBC_TUNABLES"} == {
            name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"
        }
        return environment

    return start


@pytest.mark.parametrize("command", ["run", "eval", "ask", "bench"])
def test_a_command_that_computes_starts_again_with_huge_pages(started, command):
    environment = started(command, "x.yaml", "--seed", "1")
    assert environment["GLIBC_TUNABLES"] == OWN


def test_other_tunables_of_the_user_stay(started):
    environment = started("run", "x.yaml", GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert environment["GLIBC_TUNABLES"] == f"glibc.malloc.arena_max=2:{OWN}"


@pytest.mark.parametrize(
    ("arguments", "system"),
    [
        ((), {}),
        (("--version",), {}),
        (("report", "runs/x"), {}),
        (("run", "--help"), {}),
        (("run", "x.yaml", "-h"), {}),
        (("run", "x.yaml"), {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}),
        (("run", "x.yaml"), {"mode": "always madvise [never]"}),
        (("run", "x.yaml"), {"mode": "[always] madvise never"}),
        (("run", "x.yaml"), {"library": "glibc 2.34"}),
        (("run", "x.yaml"), {"library": None}),
        (("run", "x.yaml"), {"library": "musl"}),
    ],
)
def test_nothing_is_started_again_where_it_does_not_help_or_is_not_wanted(started, arguments, system):
    assert started(*arguments, **system) is None


def test_a_process_is_started_again_once(started):
    """Also if its environment has lost the tunable on the way."""
    environment = started("run", "x.yaml")
    again = {name: value for name, value in environment.items() if name == startup._STARTED_AGAIN}
    assert len(again) == 1
    assert started("run", "x.yaml", **again) is None


def test_the_command_goes_on_if_it_cannot_be_started_again(started):
    assert started("run", "x.yaml", fails=True)["GLIBC_TUNABLES"] == OWN


def test_the_same_process_goes_on_and_its_memory_is_in_huge_pages():
    code = (
        "import ctypes, os, sys\nfrom mft_jax.startup import use_huge_pages\n"
        "print(os.getpid(), flush=True)\nuse_huge_pages()\n"
        "memory = ctypes.create_string_buffer(2**27)\n"
        "ctypes.memset(memory, 1, 2**27)\n"
        "print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))\n"
        "print(open('/proc/self/smaps_rollup').read())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "a b"], capture_output=True, text=True, check=True, env=environment
    )
    lines = done.stdout.splitlines()
    if not startup._huge_pages_on_request():
        assert lines[1] == "['run', 'a b'] None"
        return
    assert lines[0] == lines[1]  # the same process, a second time
    assert lines[2] == f"['run', 'a b'] {OWN}"
    assert int(re.search(r"AnonHugePages:\s+(\d+) kB", done.stdout)[1]) >= 2**27 / 1024 / 2


def test_imports_are_made_without_the_garbage_collector():
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    with startup.quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), startup.quick_imports():
        import mft_jax.there_is_no_such_module  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    try:
        with startup.quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == frozen  # JAX was imported before


def test_what_the_first_imports_made_is_not_searched_again():
    code = (
        "import gc\nfrom mft_jax.startup import quick_imports\nbefore = gc.get_freeze_count()\n"
        "with quick_imports():\n    import jax\n"
        "print(before, gc.get_freeze_count(), gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, enabled = done.stdout.split()
    assert int(after) - int(before) > 50_000
    assert enabled == "True"
