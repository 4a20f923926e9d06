"""The JSON files of checkpoints and adapters, which a download or a person may have broken."""

import json
import pathlib
from typing import Any

from mft_jax.errors import UserError


def read_json_object(path: pathlib.Path, kind: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. `kind` says what the file should be: "a shard index", for example.

    Raises UserError, which ends with `remedy`, when the file cannot be read, or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}.") from error
    except UnicodeDecodeError as error:
        raise not_of_kind(path, kind, f"not valid UTF-8: {error.reason}", remedy) from error
    except (ValueError, RecursionError) as error:
        raise not_of_kind(path, kind, f"not valid JSON: {error}", remedy) from error
    if not isinstance(content, dict):
        raise not_of_kind(path, kind, f"it holds {shorten(content)}, expected an object", remedy)
    return content


def not_of_kind(path: pathlib.Path, kind: str, reason: str, remedy: str) -> UserError:
    return UserError(f"{path} is not {kind} ({reason}): {remedy}.")


def shorten(value: object, width: int = 60) -> str:
    """A value as it is shown in an error message."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
