"""Parses JSON files of users and downloads. Every error is a UserError that names the file and the line."""

import decimal
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from mft_jax.errors import UserError
from mft_jax.tasks import bucket_files

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_bytes(path: str | pathlib.Path, remedy: str) -> bytes:
    """Reads a file, without its byte order mark. Raises UserError, ending with `remedy`, if it cannot be read."""
    if bucket_files.is_in_bucket(path):
        data = bucket_files.read(str(path))
        if data is None:
            raise UserError(f"Cannot read the questions {path} (no such object): {remedy}.")
        return data.removeprefix(BYTE_ORDER_MARK)
    try:
        # Path.expanduser would raise RuntimeError if the home directory is unknown.
        return pathlib.Path(os.path.expanduser(path)).read_bytes().removeprefix(BYTE_ORDER_MARK)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"Cannot read the questions {path} ({reason}): {remedy}.") from error


def numbered_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) for each line that is not blank."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def parse_object(data: bytes, where: str, remedy: str) -> dict[str, Any]:
    """Parses one JSON object. The message of a UserError begins with `where` and ends with `remedy`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        # Decimal keeps numbers as written: 0.1 stays 0.1.
        record = json.loads(data.decode(), parse_float=decimal.Decimal, parse_constant=refuse)
        json.dumps(record, ensure_ascii=False, default=str).encode()  # raises for a lone surrogate
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise UserError(f"{where}: not valid UTF-8 ({error.reason}): save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        if isinstance(error, json.JSONDecodeError) and error.lineno > 1:  # if the whole file is one object
            reason += f" in line {error.lineno}"
        raise UserError(f"{where}: not valid JSON ({reason}): {remedy}.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: got {json_type(record)}, expected an object: {remedy}.")
    return record


def text_field(record: dict[str, Any], field: str, where: str, remedy: str) -> str:
    """The text in a field, stripped of whitespace. Raises UserError if it is missing, not a string, or empty."""
    if field not in record:
        raise UserError(f'{where}: the field "{field}" is missing: {remedy}.')
    value = record[field]
    if not isinstance(value, str):
        raise UserError(f'{where}: "{field}" is {json_type(value)}, expected a string: {remedy}.')
    if not value.strip():
        raise UserError(f'{where}: "{field}" is empty: {remedy}.')
    return value.strip()


def json_type(value: object) -> str:
    """The JSON name of the type of a value."""
    names = {str: "a string", bool: "a boolean", list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
