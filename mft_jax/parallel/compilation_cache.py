"""Configures JAX's persistent compilation cache in the user's cache directory, so that only the first start compiles."""

import hashlib
import os
import pathlib
import platform

MAX_BYTES = 4 << 30  # when the cache is larger, JAX removes the least recently used programs
MIN_SECONDS = 0.1  # programs that compile faster are not stored


def keep_compiled_programs() -> pathlib.Path | None:
    """Enables JAX's persistent compilation cache through environment variables, and returns its directory.

    Call it before JAX is imported. Variables that are already set are not changed. Returns None if the directory cannot
    be created; then every start compiles.
    """
    directory = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default_directory())
    if "://" not in str(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_SECONDS))
    return directory


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
