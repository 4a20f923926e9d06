"""config.yaml of a run: every setting, and a checksum of them in a comment on the last line."""

import hashlib

import yaml

from mft_jax.config import (
    ExperimentConfig,
    from_dict,
    from_yaml,
    parse_yaml,
    to_dict,
    to_yaml,
    with_earlier_settings,
)
from mft_jax.errors import UserError
from mft_jax.runs.store import Damage

_CHECKSUM = b"# sha256 of the lines above: "


def encode_config(config: ExperimentConfig) -> bytes:
    """The content of config.yaml."""
    body = to_yaml(config).encode()
    return body + _CHECKSUM + hashlib.sha256(body).hexdigest().encode() + b"\n"


def decode_config(data: bytes, source: str) -> ExperimentConfig:
    """The inverse of `encode_config`. `source` names the file in errors.

    The comment with the checksum may be absent, but then every setting must be there: otherwise the settings that a
    truncated file has lost would get their default values. Raises Damage if the file is not what was written, and
    UserError if its settings are not those of this version of mft_jax.
    """
    body, mark, checksum = data.rpartition(_CHECKSUM)
    if mark and checksum.strip() != hashlib.sha256(body).hexdigest().encode():
        raise Damage("its checksum is wrong")
    if mark:
        return from_dict(with_earlier_settings(parse_yaml(body, source)), source)
    try:
        config = from_yaml(data, source)
    except UserError as error:
        raise Damage(str(error).removeprefix(f"{source} ").removesuffix(".")) from error
    if yaml.safe_load(data) != to_dict(config):
        raise Damage("settings and the checksum are missing")
    return config
