"""Compiled programs are stored in the user's cache directory and reused by the next process."""

import os
import subprocess
import sys

import filelock
import pytest

from mft_jax.parallel.compilation_cache import MAX_BYTES, default_directory, keep_compiled_programs

NAMES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An environment without any setting of the cache."""
    for name in NAMES:
        monkeypatch.setenv(name, "x")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return monkeypatch


def test_the_directory_is_in_the_users_cache_and_bounded(fresh, tmp_path):
    directory = keep_compiled_programs()
    assert directory == default_directory()
    assert directory.is_dir()
    assert directory.is_relative_to(tmp_path / "mft_jax" / "compiled")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(directory)
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(MAX_BYTES)


def test_a_cache_that_the_user_has_set_is_used_as_it_is(fresh, tmp_path):
    """It is not bounded, and nothing in it is deleted: other programs write entries without an access time there."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "other-cache").write_bytes(b"program")
    fresh.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    fresh.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    assert keep_compiled_programs() == str(tmp_path / "mine")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "mine")
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "5"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["other-cache"]


def test_no_cache_if_its_directory_cannot_be_created(fresh, tmp_path):
    (tmp_path / "mft_jax").write_text("a file in the way")
    assert keep_compiled_programs() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


USES_A_PROGRAM = """
from mft_jax.parallel.compilation_cache import keep_compiled_programs
keep_compiled_programs()
import jax, jax.numpy as jnp, numpy as np
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
def wide(x):
    for _ in range(60):
        x = jnp.sin(x @ x) + jnp.cumsum(x, axis=0)
    return x
jax.block_until_ready(jax.jit(wide)(np.ones((64, 64), np.float32)))  # jnp.ones would be another program
print(len(hits))
"""


def start_twice():
    """The numbers of programs that two processes, one after the other, found in the cache."""
    run = lambda: subprocess.run([sys.executable, "-c", USES_A_PROGRAM], capture_output=True, text=True, check=True)
    done = run(), run()
    said = "".join(each.stderr for each in done)
    assert "warn" not in said.lower(), said
    return [each.stdout for each in done]


def test_a_second_process_compiles_nothing(fresh, tmp_path):
    """JAX reports a hit for the program that the first process has compiled."""
    assert start_twice() == ["0\n", "1\n"]


@pytest.mark.gcs
def test_programs_in_a_bucket(fresh, bucket):
    """As several hosts have them, which share no directory."""
    fresh.setenv("JAX_COMPILATION_CACHE_DIR", f"{bucket}/compiled")
    fresh.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert start_twice() == ["0\n", "1\n"]


def start_anew(environment):
    """As another process does, which has none of the variables that this one has set."""
    environment.delenv("JAX_COMPILATION_CACHE_DIR")
    keep_compiled_programs()


def test_programs_that_a_killed_process_was_storing_are_deleted(fresh, tmp_path):
    """Without this, JAX warns at every start and stores nothing: it reads the access time of every program."""
    directory = keep_compiled_programs()
    (directory / "whole-cache").write_bytes(b"program")
    (directory / "whole-atime").write_bytes(b"\0" * 8)
    (directory / "torn-cache").write_bytes(b"prog")
    with filelock.FileLock(directory / ".lockfile"):  # while another process is storing, nothing is deleted
        start_anew(fresh)
    assert (directory / "torn-cache").exists()
    start_anew(fresh)
    assert sorted(path.name for path in directory.glob("*-*")) == ["whole-atime", "whole-cache"]
