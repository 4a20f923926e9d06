"""run.json: the status of a run, what each of its starts ran on, and the settings that were changed between them."""

import json
from collections.abc import Iterable
from typing import Any

from mft_jax.config import Change, Difference, ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.runs.environment import environment, now
from mft_jax.runs.store import Damage

Manifest = dict[str, Any]

FORMAT = 2  # of the files in a run directory; to be raised when older runs can no longer be resumed

_TAKES_EFFECT = {
    Change.ANY_TIME: "at once",
    Change.NEXT_STEP: "from the first optimizer step after the last checkpoint on",
    Change.GROW: "after what is done",
}


def new_manifest(config: ExperimentConfig) -> Manifest:
    """That of a run without a start."""
    return {
        "format": FORMAT,
        "status": "running",
        "seed": config.seed,
        "created": now(),
        "finished": None,
        "error": None,
        "starts": [],
        "changes": [],
    }


def parse_manifest(data: bytes, source: str) -> Manifest:
    """The content of run.json, whose path is `source`.

    Raises Damage for anything else than what this package writes there, UserError for what another version of it wrote.
    """
    try:
        manifest = json.loads(data)
        is_whole = isinstance(manifest["status"], str) and isinstance(manifest["starts"], list)
        if is_whole and manifest.get("format") != FORMAT:
            raise UserError(
                f"{source} was written by another version of mft_jax (format {manifest.get('format', 1)}, expected "
                f"{FORMAT}): use that version, or another --run-dir."
            )
        is_whole = is_whole and isinstance(manifest["changes"], list)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damage(f"{type(error).__name__}: {str(error)[:100]}") from error
    if not is_whole:
        raise Damage("its status, starts or changes are of another type")
    return manifest


def with_start(manifest: Manifest, changes: Iterable[Difference]) -> Manifest:
    """The manifest with one more start, which is of now and here, and with the settings that it changes."""
    starts, recorded = [*manifest["starts"], environment()], list(manifest["changes"])
    for change in changes:
        entry = {"field": change.field, "from": plain(change.stored), "to": plain(change.given)}
        last = next((record for record in reversed(recorded) if record["field"] == change.field), {})
        if {name: last.get(name) for name in entry} != entry:  # else a start that was killed had recorded it
            recorded.append({"time": now()} | entry | {"takes_effect": _TAKES_EFFECT[change.change]})
    return manifest | {"status": "running", "finished": None, "error": None, "starts": starts, "changes": recorded}


def plain(value: Any) -> Any:
    """A setting as YAML and JSON have it."""
    return list(value) if isinstance(value, tuple) else value
