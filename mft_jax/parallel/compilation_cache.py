"""Configures JAX's persistent compilation cache, so that later starts load the compiled programs from disk."""

import hashlib
import os
import pathlib
import platform

import filelock

MAX_BYTES = 4 << 30  # if the cache is larger, JAX removes the least recently used programs
MIN_SECONDS = 0.1  # programs that compile faster are not stored


def keep_compiled_programs() -> pathlib.Path | str | None:
    """Enables JAX's persistent compilation cache through environment variables, and returns its directory.

    Call it before JAX is imported. A cache that the user has set with JAX_COMPILATION_CACHE_DIR is used as it is. Our own
    directory holds at most MAX_BYTES. Returns None if it cannot be created; then every start compiles.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_SECONDS))
    if chosen := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return chosen
    directory = default_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _delete_unfinished(directory)
    except OSError:
        return None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))
    return directory


def _delete_unfinished(directory: pathlib.Path) -> None:
    """Deletes the programs that a killed process was storing, which make JAX warn and store nothing more.

    In a bounded cache, JAX writes KEY-cache, then KEY-atime, while it holds the lock .lockfile.
    """
    unfinished = [path for path in directory.glob("*-cache") if not _access_time(path).exists()]
    if not unfinished:
        return
    try:
        with filelock.FileLock(directory / ".lockfile", timeout=0):
            for path in unfinished:
                if not _access_time(path).exists():
                    path.unlink(missing_ok=True)
    except filelock.Timeout:
        pass  # another process is storing a program at this moment


def _access_time(path: pathlib.Path) -> pathlib.Path:
    """The file that JAX keeps beside each stored program."""
    return path.with_name(f"{path.name.removesuffix('-cache')}-atime")


def default_directory() -> pathlib.Path:
    """The cache directory for this kind of processor.

    Programs for CPUs contain processor-specific instructions, and machines may share a home directory.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = cache if cache.is_absolute() else pathlib.Path.home() / ".cache"
    return root / "mft_jax" / "compiled" / f"{platform.machine()}-{_processor_features()}"


def _processor_features() -> str:
    """A hash of the instruction set extensions of this machine's processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(" ".join(sorted(set(features.split()))).encode()).hexdigest()[:12]
