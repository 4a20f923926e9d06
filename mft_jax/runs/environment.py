"""The environment of a run: package versions, the git revision of this package's checkout, and devices."""

import collections
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import mft_jax

PACKAGES = {  # name in run.json -> distribution
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "transformers": "transformers",
    "mft_jax": "mft_jax",
}


def environment() -> dict[str, Any]:
    """{"time", "pid", "versions", "git_revision", "devices"}. Listing the devices initializes JAX."""
    return {
        "time": now(),
        "pid": os.getpid(),
        "versions": {"python": platform.python_version()} | {name: _version(dist) for name, dist in PACKAGES.items()},
        "git_revision": git_revision(pathlib.Path(mft_jax.__file__).parent.parent),
        "devices": _devices(),
    }


def now() -> str:
    """The current time in UTC, as ISO 8601 with seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def git_revision(checkout: pathlib.Path) -> str | None:
    """The current commit of `checkout`, with "+changes" if tracked files differ from it; None if it is no checkout.

    Only the root of a checkout counts, because an installed package may lie inside a checkout of another project.
    """
    if not (checkout / ".git").exists():
        return None
    try:
        revision = _git(checkout, "rev-parse", "HEAD")
        return revision + ("+changes" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no commit yet, or a checkout that belongs to another user


def _git(checkout: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import jax  # imported here, so that commands that only read a run do not load it

    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return {"platform": jax.default_backend(), "kinds": dict(kinds), "processes": jax.process_count()}
