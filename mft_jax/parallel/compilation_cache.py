"""Compiled programs are kept between starts, in the user's cache directory, so that only the first start compiles them."""

import hashlib
import os
import pathlib
import platform

MAX_BYTES = 4 << 30  # the least recently used programs are removed beyond that
MIN_SECONDS = 0.1  # what compiles faster is not worth a file


def keep_compiled_programs() -> pathlib.Path | None:
    """Sets JAX's persistent compilation cache up through the environment; returns its directory.

    Must run before JAX is imported. Settings that are in the environment already stay, a directory of the user's
    included. None where the directory cannot be made: then every start compiles.
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
    """One for each kind of processor: programs for CPUs contain its instructions, and home directories may be shared."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = cache if cache.is_absolute() else pathlib.Path.home() / ".cache"
    return root / "mft_jax" / "compiled" / f"{platform.machine()}-{_processor_features()}"


def _processor_features() -> str:
    """A short name for the instructions that this machine's processor has."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(" ".join(sorted(set(features.split()))).encode()).hexdigest()[:12]
