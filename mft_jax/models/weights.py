"""Reads and writes base weights, one tensor at a time, as ordinary Hugging Face checkpoint directories."""

import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding
from safetensors.numpy import save_file

from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig
from mft_jax.models.decoder import build
from mft_jax.models.fused import fused_groups
from mft_jax.models.tensor_files import FLOAT_TYPES, SINGLE, check_finite, find_tensors, read_headers, read_tensor
from mft_jax.parallel.placement import place_parts

Path = tuple[str | int, ...]

_TWO_NORMS = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "input_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "post_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


def checkpoint_directory(path: str) -> pathlib.Path:
    """`path` itself when it is a directory, else the local copy of the hub's model of that name, downloaded when needed.

    Raises UserError when there is neither.
    """
    directory = pathlib.Path(os.path.expanduser(path))  # Path.expanduser raises where a user's home is not known
    if os.path.isdir(directory):  # as Path.is_dir does for a name that is too long
        return directory
    if directory.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise UserError(
            f"There is no checkpoint at {path}: give a checkpoint directory or a hub name such as org/model."
        )
    from huggingface_hub import snapshot_download

    try:
        files = ["*.json", "*.safetensors", "*.jinja", "*.model"]
        # Some repositories hold the same weights a second time, in the format of other programs.
        return pathlib.Path(
            snapshot_download(path, allow_patterns=files, ignore_patterns=["consolidated*", "original/*"])
        )
    except Exception as error:  # the hub's client raises many kinds, all of which mean that there is no download
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is neither a directory nor a model that could be downloaded ({type(error).__name__}: {reason}): "
            "check the name and the network, or give a checkpoint directory."
        ) from error


def projection_module(layer: int | str, projection: str) -> str:
    """The checkpoint's name of a layer's linear module, fused ones included: model.layers.0.self_attn.q_proj, say."""
    place = "mlp" if projection in ("gate_proj", "up_proj", "gate_up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{place}.{projection}"


def hugging_face_name(path: Path, config: ModelConfig) -> tuple[str, bool]:
    """The checkpoint's name of a base leaf, and whether it is the transpose of the stored tensor ([out, in])."""
    if path[0] == "embedding":
        return "model.embed_tokens.weight", False
    if path[0] == "norm":
        return "model.norm.weight", False
    if path[0] == "lm_head":
        return "lm_head.weight", path[-1] == "kernel"
    _, layer, module, kind = path
    if str(module).endswith("_proj"):
        name = projection_module(layer, str(module))
    else:
        # In families with norms after attention and MLP too, "post_attention" means the one after attention.
        norms = _FOUR_NORMS if config.out_norms else _TWO_NORMS
        name = f"model.layers.{layer}.{norms.get(str(module), f'self_attn.{module}')}"
    return f"{name}.{'bias' if kind == 'bias' else 'weight'}", kind == "kernel"


def load_base(
    directory: pathlib.Path,
    config: ModelConfig,
    *,
    dtype: jnp.dtype | None = jnp.float32,
    compute_dtype: jnp.dtype | None = None,
    mesh: Mesh | None = None,
    shardings: Callable[[Path, tuple[int, ...]], Sharding] | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Reads a checkpoint into (graphdef, base), every tensor placed on its devices before the next is read.

    `dtype` is that of the weights; None: each as it is stored. `compute_dtype` is that of activations; None: the same.
    `mesh` is that of the activations.
    `shardings(path, shape)` is the sharding of a leaf; by default it goes to the default device. Only the parts of a
    tensor that the devices of this host hold are read.
    On the host no more than a tensor and its transposed copy are held besides what was placed there.
    Raises UserError for a missing file or tensor, a wrong shape, a tensor that holds NaN or infinity, and a tensor that
    the decoder does not use.
    """
    graphdef, abstract = build(config, dtype or jnp.float32, compute_dtype, mesh)
    files = find_tensors(directory)
    flat, treedef = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(abstract))
    wanted = [(tuple(key.key for key in keys), spec.shape) for keys, spec in flat]
    _check_headers(files, wanted, config, directory)
    leaves = []
    for path, shape in wanted:
        name, is_transposed = hugging_face_name(path, config)

        def read(
            index: tuple[slice, ...], path: Path = path, name: str = name, is_transposed: bool = is_transposed
        ) -> np.ndarray:
            part = _read_part(files[name], name, index[::-1] if is_transposed else index, _stored_places(path, config))
            part = part if dtype is None else part.astype(dtype, copy=False)
            check_finite(part, files[name], name, "download it again, or give another checkpoint")
            return part.T if is_transposed else part

        everything = (slice(None),) * len(shape)
        leaf = place_parts(shape, shardings(path, shape), read) if shardings else jnp.asarray(read(everything))
        leaves.append(jax.block_until_ready(leaf))  # else tensors that are being transferred pile up on the host
    nnx.replace_by_pure_dict(abstract, jax.tree_util.tree_unflatten(treedef, leaves))
    return graphdef, abstract


def save_base(base: nnx.State, directory: pathlib.Path, config: ModelConfig) -> None:
    """Writes model.safetensors into `directory`, with Hugging Face's tensor names, so that transformers can load it."""
    tensors = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(base))[0]:
        path = tuple(key.key for key in keys)
        name, is_transposed = hugging_face_name(path, config)
        tensor = np.asarray(leaf).T if is_transposed else np.asarray(leaf)
        if (places := _stored_places(path, config)) is not None:
            tensor = tensor[np.argsort(places)]
        tensors[name] = np.ascontiguousarray(tensor)
    file = pathlib.Path(directory) / SINGLE
    save_file(tensors, str(file), metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes it readable by its owner alone


def _stored_places(path: Path, config: ModelConfig) -> np.ndarray | None:
    """The index in the checkpoint of each output of a base leaf; None if they are in the same order."""
    groups = fused_groups(config).get(str(path[2])) if len(path) == 4 else None
    return None if groups is None else groups.stored_places()


def _read_part(file: pathlib.Path, name: str, index: tuple[slice, ...], places: np.ndarray | None) -> np.ndarray:
    """The part of a tensor at `index`, whose first axis is that of the outputs: output i is stored at `places[i]`.

    Only the rows of these outputs are read, in as few pieces as they have in the file.
    """
    if places is None:
        return read_tensor(file, name, index)
    wanted = places[index[0]]
    rows = np.sort(wanted)
    pieces = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    read = [read_tensor(file, name, (slice(int(own[0]), int(own[-1]) + 1), *index[1:])) for own in pieces]
    return np.concatenate(read)[np.searchsorted(rows, wanted)]


def _check_headers(
    files: dict[str, pathlib.Path],
    wanted: Sequence[tuple[Path, tuple[int, ...]]],
    config: ModelConfig,
    directory: pathlib.Path,
) -> None:
    """Every tensor is there, with its shape and a type that can be read, and none is left over.

    The files' headers tell, so that a checkpoint that does not fit is refused before its weights are read.
    """
    remedy = "download the checkpoint again, or give another"
    headers = {path: read_headers(path) for path in sorted(set(files.values()))}
    used = set()
    for path, shape in wanted:
        name, is_transposed = hugging_face_name(path, config)
        header = headers[files[name]].get(name) if name in files else None
        if header is None:
            raise UserError(
                f"{directory}: the tensor {name} is missing, so the checkpoint is incomplete or of another "
                f"architecture: {remedy}."
            )
        expected = shape[::-1] if is_transposed else shape
        if header.shape != expected:
            raise UserError(
                f"{files[name]}: {name} has shape {header.shape}, but config.json asks for {expected}: {remedy}."
            )
        if header.dtype not in FLOAT_TYPES:
            raise UserError(
                f"{files[name]}: {name} is stored as {header.dtype}, expected one of {', '.join(FLOAT_TYPES)}: give a "
                "checkpoint whose weights are not quantized."
            )
        used.add(name)
    unused = [
        name
        for name in sorted(set(files) - used)
        if not name.endswith("rotary_emb.inv_freq") and not (name == "lm_head.weight" and config.tied_embeddings)
    ]
    if unused:
        raise UserError(
            f"{files[unused[0]]}: the tensor {unused[0]} has no place in this decoder, so its architecture is not that of "
            f"config.json: {remedy}."
        )
