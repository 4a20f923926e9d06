"""run.json: the status of a run, the environment of each of its starts, and the settings changed between them."""

import json
from collections.abc import Iterable
from typing import Any

from mft_jax.config import Change, Difference, ExperimentConfig, to_dict
from mft_jax.errors import UserError
from mft_jax.runs.environment import environment, now
from mft_jax.runs.store import Damage

Manifest = dict[str, Any]

FORMAT = 2  # version of the files in a run directory; increase it if older runs cannot be resumed any more

_TAKES_EFFECT = {
    Change.ANY_TIME: "at once",
    Change.NEXT_STEP: "from the first optimizer step after the last checkpoint on",
    Change.NEXT_ITERATION: "from the next iteration on whose training sets are not selected yet",
    Change.GROW: "after what is done",
}


def new_manifest(config: ExperimentConfig) -> Manifest:
    """The manifest of a run that has not started yet."""
    return {
        "format": FORMAT,
        "status": "running",
        "seed": config.seed,
        "config": to_dict(config),  # a copy, to restore a damaged config.yaml
        "created": now(),
        "finished": None,
        "error": None,
        "starts": [],
        "changes": [],
    }


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Parses the content of run.json, whose path is `source`.

    Raises Damage if it is damaged, and UserError if another version of this package wrote it.
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
        raise Damage("its status, starts or changes have a wrong type")
    return manifest


def with_start(manifest: Manifest, changes: Iterable[Difference]) -> Manifest:
    """The manifest with one more start (the current time and environment), and with the settings that it changes."""
    starts, recorded = [*manifest["starts"], environment()], list(manifest["changes"])
    for change in changes:
        entry = {"field": change.field, "from": plain(change.stored), "to": plain(change.given)}
        last = next((record for record in reversed(recorded) if record["field"] == change.field), {})
        if {name: last.get(name) for name in entry} != entry:  # else a killed start has already recorded it
            recorded.append({"time": now()} | entry | {"takes_effect": _TAKES_EFFECT[change.change]})
    return manifest | {"status": "running", "finished": None, "error": None, "starts": starts, "changes": recorded}


def plain(value: Any) -> Any:
    """A setting as in YAML and JSON: a tuple becomes a list."""
    return list(value) if isinstance(value, tuple) else value
