"""Compiles programs for devices that need not be present, and keeps what the compiler says in the user's cache directory."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time

import jax

from mft_jax.errors import UserError
from mft_jax.parallel.compilation_cache import default_directory
from mft_jax.plan.topology import silent_stderr

KEPT = 300  # programs; the oldest are deleted


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program. Sizes are bytes on one device."""

    arguments: int
    outputs: int  # those that do not replace an argument
    temporaries: int
    code: int
    seconds: float  # that compilation took
    text: str  # the optimized program


class DoesNotFit(UserError):
    """A program needs more memory than a device has, in bytes."""

    def __init__(self, needed: float, available: float, program: str = "a program"):
        super().__init__(
            f"The compiler refuses {program}: it needs {needed / 1e9:.1f} GB of the memory of a device, "
            f"{(needed - available) / 1e9:.1f} GB more than there are. Use fewer rows (sampling.rows, finetuning.batch_rows), "
            "finetuning.remat, a smaller finetuning.agents_at_once, or more devices; --fit searches for what fits."
        )
        self.needed, self.available = needed, available


def compile_program(lowered: jax.stages.Lowered, topology: str) -> Compiled:
    """Compiles a program for the devices of its shardings, unless the result has been kept from an earlier plan.

    Raises DoesNotFit if the compiler refuses it for its memory; that is kept too.
    """
    path = _directory() / f"{_key(lowered, topology)}.json.gz"
    found = _read(path)
    if found is None:
        found = _compile(lowered)
        _write(path, found)
    if "needed" in found:
        raise DoesNotFit(found["needed"], found["available"])
    return Compiled(**found)


def _compile(lowered: jax.stages.Lowered) -> dict:
    started, worked = time.perf_counter(), time.process_time()
    try:
        with silent_stderr():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = _sizes_in(str(error))
        if sizes is None:
            raise
        return {"needed": sizes[0], "available": sizes[1]}
    # On a machine that is busy with other work, the CPU time of the process is closer than the clock.
    seconds = min(time.perf_counter() - started, time.process_time() - worked)
    stats, text = compiled.memory_analysis(), compiled.as_text()
    if stats is None or text is None:
        raise UserError(
            "The compiler of these devices says nothing of its programs: plan for a TPU slice, or on a CPU."
        )
    return dataclasses.asdict(
        Compiled(
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            code=stats.generated_code_size_in_bytes,
            seconds=seconds,
            text=text,
        )
    )


def _sizes_in(message: str) -> tuple[float, float] | None:
    """(bytes needed, bytes available) in the compiler's refusal of a program; None in any other message."""
    sizes = re.search(r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)", message) or re.search(
        r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", message
    )
    return (_bytes(sizes[1]), _bytes(sizes[2])) if sizes and "RESOURCE_EXHAUSTED" in message else None


def _bytes(text: str) -> float:
    """The bytes of a size as XLA prints it: 15.75G is 15.75 * 2^30."""
    unit = "KMGT".find(text[-1]) + 1
    return float(text[:-1] if unit else text) * 1024**unit


def _directory() -> pathlib.Path:
    return default_directory().parent.parent / "plans"


def _key(lowered: jax.stages.Lowered, topology: str) -> str:
    """A checksum of everything that determines the compiled program."""
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    try:
        versions.append(importlib.metadata.version("libtpu"))
    except importlib.metadata.PackageNotFoundError:
        versions.append("no libtpu")
    return hashlib.sha256("\n".join([*versions, topology, lowered.as_text()]).encode()).hexdigest()[:32]


def _read(path: pathlib.Path) -> dict | None:
    """What was kept in a file; None if it is missing or damaged, and the program is compiled again."""
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        expected = {"needed", "available"} if "needed" in found else {own.name for own in dataclasses.fields(Compiled)}
        return found if set(found) == expected else None
    except (OSError, EOFError, ValueError, TypeError):
        return None


def _write(path: pathlib.Path, found: dict) -> None:
    """Keeps a result. A cache that cannot be written costs time, but is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(gzip.compress(json.dumps(found).encode(), 6))
        os.replace(temporary, path)
        for old in sorted(path.parent.glob("*.json.gz"), key=lambda own: own.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        pass
