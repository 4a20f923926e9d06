"""Merges one agent's adapter into its base, as an ordinary Hugging Face checkpoint.

Tensors are copied from the source's files to the new ones one at a time, byte for byte, but for those of adapted
projections. So the largest tensor determines how much memory a merge needs, and of the architecture only the names
of its projections matter.
"""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from mft_jax.config import LoraConfig
from mft_jax.errors import UserError
from mft_jax.files import new_directory
from mft_jax.models.peft import Weights
from mft_jax.models.tensor_files import FLOAT_TYPES, check_finite, find_tensors, read_headers
from mft_jax.models.weights import projection_module

# What is copied besides the weights: configuration, tokenizer, chat template, terms of use.
_COPIED = ("config.json", "generation_config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.jinja",
           "LICENSE*", "NOTICE*", "USE_POLICY*")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in a safetensors file."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning
    size: int  # bytes

    def read(self) -> bytes:
        try:
            with open(self.file, "rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise UserError(f"{self.file} cannot be read ({error.strerror}): download it again.") from error


def merge_checkpoint(
    source: pathlib.Path,
    directory: pathlib.Path,
    adapter: Weights,
    lora: LoraConfig,
    *,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes `source` with W + scale * B A in place of every adapted W, computed in float32, stored in W's own type.

    `adapter` holds one agent's weights, {target: {"a": [L, in, R], "b": [L, R, out]}}. The tensors are written into one
    file, or several of at most `max_shard_size` (bytes, or "5GB") with an index. Raises UserError when the adapter does not
    fit the source, when the sum is not finite in W's type, for a `max_shard_size` that is no size, and when `directory` is
    not empty or cannot be written; an error leaves nothing behind.
    """
    source = pathlib.Path(source)
    tensors = _locate_tensors(source)
    deltas = {
        f"{projection_module(layer, target)}.weight": (target, layer)
        for target, pair in adapter.items()
        for layer in range(len(pair["a"]))
    }
    for name, (target, _) in deltas.items():
        _check_fits(name, tensors.get(name), (adapter[target]["b"].shape[2], adapter[target]["a"].shape[1]), source)

    def content(name: str) -> bytes:
        stored = tensors[name]
        if name not in deltas:
            return stored.read()
        target, layer = deltas[name]
        a, b = (np.asarray(adapter[target][part][layer], np.float32) for part in "ab")
        weight = np.frombuffer(stored.read(), FLOAT_TYPES[stored.dtype]).reshape(stored.shape)
        with np.errstate(over="ignore"):  # it is checked next
            merged = (weight.astype(np.float32) + np.float32(lora.scale) * (a @ b).T).astype(weight.dtype)
        remedy = "take a base that is finite and stored in a wider type, or export the adapter with --to peft"
        check_finite(merged, stored.file, name, remedy)
        return merged.tobytes()

    try:
        split = split_state_dict_into_shards_factory(
            tensors,
            get_storage_size=lambda stored: stored.size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise UserError(f"The size of shards is {max_shard_size!r}, expected one such as 5GB or 500MB.") from error
    with new_directory(directory) as temporary:
        for pattern in _COPIED:
            for file in source.glob(pattern):
                shutil.copyfile(file, temporary / file.name)
        for file, names in split.filename_to_tensors.items():
            _write_safetensors(temporary / file, {name: tensors[name] for name in names}, content)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _locate_tensors(source: pathlib.Path) -> dict[str, _Stored]:
    """The place of every tensor of a checkpoint, in the order of its files."""
    stored = {}
    for path in sorted(set(find_tensors(source).values())):
        read_headers(path)  # raises UserError unless the file is complete and its header makes sense
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            stored[name] = _Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start)
    return stored


def _check_fits(name: str, stored: _Stored | None, expected: tuple[int, int], source: pathlib.Path) -> None:
    if stored is None:
        raise UserError(f"{source} has no tensor {name}, which the adapter changes: it is an adapter of another base.")
    if stored.shape != expected:
        raise UserError(
            f"{stored.file}: {name} has shape {stored.shape}, but the adapter's update {expected}: it is an adapter of "
            "another base."
        )
    if stored.dtype not in FLOAT_TYPES:
        raise UserError(
            f"{stored.file}: {name} is stored as {stored.dtype}, expected one of {', '.join(FLOAT_TYPES)}: an adapter cannot "
            "be merged into quantized weights; export it with --to peft."
        )


def _write_safetensors(path: pathlib.Path, tensors: Mapping[str, _Stored], content: Callable[[str], bytes]) -> None:
    """Writes the header's length, the header, and the tensors. The library's own writer needs them all in memory."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    # Wide types first, as the library does: then every tensor is aligned for programs that map the file into memory.
    names = sorted(tensors, key=lambda name: -tensors[name].size // max(1, math.prod(tensors[name].shape)))
    offset = 0
    for name in names:
        stored = tensors[name]
        end = offset + stored.size
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            file.write(content(name))
