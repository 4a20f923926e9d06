"""The safetensors files of a checkpoint: which file holds which tensor, and one tensor at a time."""

import dataclasses
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mft_jax.errors import UserError
from mft_jax.models.json_files import not_of_kind, read_json_object, shorten

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOAT_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_AGAIN = "download the checkpoint again"
_CHUNK = 1 << 22  # elements whose bits are looked at together: the copies stay small


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # "BF16", for example


def find_tensors(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of each tensor of a checkpoint, from the shard index when there is one.

    Raises UserError when files are missing, and for an index that is broken or names a file outside of `directory`.
    """
    index, single = directory / INDEX, directory / SINGLE
    if not index.is_file():
        if not single.is_file():
            raise UserError(f"{directory} has no {SINGLE} and no {INDEX}: only safetensors are read.")
        return dict.fromkeys(read_headers(single), single)
    weight_map = read_json_object(index, "a shard index", _AGAIN).get("weight_map")
    if not isinstance(weight_map, dict):
        reason = f"its weight_map is {shorten(weight_map)}, expected an object"
        raise not_of_kind(index, "a shard index", reason, _AGAIN)
    files = {name: directory / _check_inside(shard, index) for name, shard in weight_map.items()}
    for path in sorted(set(files.values())):
        if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
            raise UserError(f"{index} names {path.name[:80]}, which does not exist: {_AGAIN}.")
    return files


def _check_inside(shard: object, index: pathlib.Path) -> str:
    """The file name `shard`. Raises UserError if it leaves the index's directory: no download may make other files be read."""
    if not isinstance(shard, str):
        raise not_of_kind(index, "a shard index", f"it names the file {shorten(shard)}, expected text", _AGAIN)
    place = pathlib.PurePosixPath(shard)
    if place.is_absolute() or ".." in place.parts:
        raise UserError(f"{index} names {shorten(shard)}, expected a file in its own directory: {_AGAIN}.")
    return shard


def read_headers(path: pathlib.Path) -> dict[str, TensorHeader]:
    """The header of every tensor in a file. Raises UserError when the file is not complete."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: TensorHeader(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}): download it again.") from error


def read_tensor(path: pathlib.Path, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """One tensor, or the part of it at `index`.

    The file is opened anew for each tensor: pages of an open file stay mapped, and count as memory, until it is closed.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            is_whole = all(part == slice(None) for part in index)
            return file.get_tensor(name) if is_whole else np.ascontiguousarray(file.get_slice(name)[index])
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the tensor {name} cannot be read ({error}): download the file again.") from error


def is_finite(tensor: np.ndarray) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity.

    It compares bits: without the sign, NaN and infinity are the largest ones. numpy's isfinite takes six times as long
    for bfloat16, which it converts first.
    """
    unsigned = np.dtype(f"u{tensor.dtype.itemsize}")
    bits = tensor.reshape(-1).view(unsigned)
    infinity = np.left_shift(np.array([np.inf], tensor.dtype).view(unsigned), 1)[0]  # which drops the sign
    chunks = (bits[start : start + _CHUNK] for start in range(0, bits.size, _CHUNK))
    return all(np.left_shift(chunk, 1).max() < infinity for chunk in chunks)


def check_finite(tensor: np.ndarray, path: pathlib.Path, name: str, remedy: str) -> None:
    """Raises UserError that names the file and the tensor where it holds NaN or infinity; it ends with `remedy`."""
    if not is_finite(tensor):
        raise UserError(f"{path}: the tensor {name} holds NaN or infinity in {tensor.dtype}: {remedy}.")
