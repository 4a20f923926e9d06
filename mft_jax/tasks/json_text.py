"""JSON that people or downloads may have broken: every mistake is a UserError that names the file and the line."""

import decimal
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from mft_jax.errors import UserError


def read_bytes(path: str | pathlib.Path, remedy: str) -> bytes:
    """The file without a byte order mark."""
    try:
        return pathlib.Path(path).expanduser().read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"Cannot read the questions {path} ({error.strerror}): {remedy}.") from error


def numbered_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def parse_object(data: bytes, where: str, remedy: str) -> dict[str, Any]:
    """One JSON object. `where` starts the complaint, `remedy` ends it."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        # Decimal keeps a number as it is written: 0.1 stays 0.1.
        record = json.loads(data.decode(), parse_float=decimal.Decimal, parse_constant=refuse)
        json.dumps(record, ensure_ascii=False, default=str).encode()  # a lone surrogate could not be written out again
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise UserError(f"{where}: not valid UTF-8 ({error.reason}): save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        if isinstance(error, json.JSONDecodeError) and error.lineno > 1:  # of a file that is one object
            reason += f" in line {error.lineno}"
        raise UserError(f"{where}: not valid JSON ({reason}): {remedy}.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: got {kind(record)}, expected an object: {remedy}.")
    return record


def text_field(record: dict[str, Any], field: str, where: str, remedy: str) -> str:
    """A field that must hold text, without the spaces around it."""
    check_field(record, field, where, remedy)
    value = record[field]
    if not isinstance(value, str):
        raise UserError(f'{where}: "{field}" is {kind(value)}, expected a string: {remedy}.')
    if not value.strip():
        raise UserError(f'{where}: "{field}" is empty: {remedy}.')
    return value.strip()


def check_field(record: dict[str, Any], field: str, where: str, remedy: str) -> None:
    if field not in record:
        raise UserError(f'{where}: the field "{field}" is missing: {remedy}.')


def kind(value: object) -> str:
    """The type of a JSON value, as JSON calls it."""
    names = {str: "a string", bool: "a boolean", list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")
