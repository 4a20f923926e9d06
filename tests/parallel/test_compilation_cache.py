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


def test_existing_variables_are_not_changed(fresh, tmp_path):
    fresh.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    fresh.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "5")
    assert keep_compiled_programs() == tmp_path / "mine"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "mine")
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == "5"


def test_no_cache_if_its_directory_cannot_be_created(fresh, tmp_path):
    (tmp_path / "mft_jax").write_text("a file in the way")
    assert keep_compiled_programs() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_second_process_compiles_nothing(fresh, tmp_path):
    """JAX reports a hit for the program that the first process has compiled."""
    script = """
from mft_jax.parallel.compilation_cache import keep_compiled_programs
keep_compiled_programs()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
def wide(x):
    for _ in range(60):
        x = jnp.sin(x @ x) + jnp.cumsum(x, axis=0)
    return x
jax.block_until_ready(jax.jit(wide)(jnp.ones((64, 64))))
print(len(hits))
"""
    run = lambda: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = run(), run()
    assert (first.stdout, second.stdout) == ("0\n", "1\n"), first.stderr + second.stderr
    assert "warn" not in (first.stderr + second.stderr).lower()


def test_programs_that_a_killed_process_was_storing_are_deleted(fresh, tmp_path):
    """Without this, JAX warns at every start and stores nothing: it reads the access time of every program."""
    directory = keep_compiled_programs()
    (directory / "whole-cache").write_bytes(b"program")
    (directory / "whole-atime").write_bytes(b"\0" * 8)
    (directory / "torn-cache").write_bytes(b"prog")
    with filelock.FileLock(directory / ".lockfile"):  # while another process is storing, nothing is deleted
        keep_compiled_programs()
    assert (directory / "torn-cache").exists()
    keep_compiled_programs()
    assert sorted(path.name for path in directory.glob("*-*")) == ["whole-atime", "whole-cache"]
