"""Base weights in and out: ordinary Hugging Face checkpoint directories, one tensor at a time."""

import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig
from mft_jax.models.decoder import build

Path = tuple[str | int, ...]


def checkpoint_directory(path: str) -> pathlib.Path:
    """`path` itself when it is a directory, else the local copy of the hub's model of that name, downloaded when needed."""
    directory = pathlib.Path(path).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise UserError(
            f"There is no checkpoint at {path}: give a checkpoint directory or a hub name such as org/model."
        )
    from huggingface_hub import snapshot_download

    try:
        files = ["*.json", "*.safetensors", "*.jinja", "*.model"]
        return pathlib.Path(snapshot_download(path, allow_patterns=files))
    except Exception as error:  # the hub's client raises many kinds, all of which mean: not to be had
        raise UserError(
            f"{path} is neither a directory nor a model that could be downloaded ({type(error).__name__}): "
            "check the name and the network, or give a checkpoint directory."
        ) from error


def projection_module(layer: int | str, projection: str) -> str:
    """The checkpoint's name of a layer's linear module, model.layers.0.self_attn.q_proj for one; fused ones included."""
    place = "mlp" if projection in ("gate_proj", "up_proj", "gate_up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{place}.{projection}"


def hugging_face_name(path: Path) -> tuple[str, bool]:
    """The checkpoint's name of a base leaf, and whether it is stored transposed ([out, in])."""
    if path[0] == "embedding":
        return "model.embed_tokens.weight", False
    if path[0] == "norm":
        return "model.norm.weight", False
    if path[0] == "lm_head":
        return "lm_head.weight", True
    _, layer, module, kind = path
    name = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}.get(str(module), str(module))
    name = projection_module(layer, name) if name.endswith("_proj") else f"model.layers.{layer}.{name}"
    return f"{name}.{'bias' if kind == 'bias' else 'weight'}", kind == "kernel"


def load_base(
    directory: pathlib.Path,
    config: ModelConfig,
    *,
    lora_scale: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
    place: Callable[[Path, np.ndarray], jax.Array] | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Reads a checkpoint into (graphdef, base), every tensor placed on its devices before the next is read.

    `place(path, tensor)` puts one leaf where the mesh wants it; by default it goes to the default device.
    Raises UserError for a missing file or tensor, a wrong shape, and for tensors the decoder has no use for.
    """
    graphdef, abstract = build(config, lora_scale, dtype)
    place = place or (lambda _, tensor: jnp.asarray(tensor))
    files = tensor_files(directory)
    leaves, used = [], set()
    flat, treedef = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(abstract))
    for keys, spec in flat:
        path = tuple(key.key for key in keys)
        name, is_transposed = hugging_face_name(path)
        if name not in files:
            raise UserError(
                f"{directory}: the tensor {name} is missing: the checkpoint is incomplete or of another architecture."
            )
        tensor = _read(files[name], name)
        expected = spec.shape[::-1] if is_transposed else spec.shape
        if tensor.shape != expected:
            raise UserError(f"{files[name]}: {name} has shape {tensor.shape}, but config.json asks for {expected}.")
        leaves.append(place(path, (tensor.T if is_transposed else tensor).astype(dtype)))
        used.add(name)
    unused = [
        n
        for n in sorted(set(files) - used)
        if not n.endswith("rotary_emb.inv_freq") and not (n == "lm_head.weight" and config.tied_embeddings)
    ]
    if unused:
        raise UserError(
            f"{files[unused[0]]}: the tensor {unused[0]} has no place in this decoder: the architecture differs from config.json."
        )
    nnx.replace_by_pure_dict(abstract, jax.tree_util.tree_unflatten(treedef, leaves))
    return graphdef, abstract


def save_base(base: nnx.State, directory: pathlib.Path) -> None:
    """Writes model.safetensors with Hugging Face's names, as transformers loads them."""
    tensors = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(base))[0]:
        name, is_transposed = hugging_face_name(tuple(key.key for key in keys))
        tensor = np.asarray(leaf)
        tensors[name] = np.ascontiguousarray(tensor.T if is_transposed else tensor)
    path = pathlib.Path(directory) / "model.safetensors"
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone


def tensor_files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Which file holds each tensor, from the shard index when there is one."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text())["weight_map"]
        files = {name: directory / shard for name, shard in weight_map.items()}
        absent = sorted({str(f) for f in files.values() if not f.is_file()})
        if absent:
            raise UserError(f"{index} names {absent[0]}, which does not exist: download the checkpoint again.")
        return files
    single = directory / "model.safetensors"
    if not single.is_file():
        raise UserError(
            f"{directory} has no model.safetensors and no model.safetensors.index.json: only safetensors are read."
        )
    return dict.fromkeys(_names(single), single)


def _names(path: pathlib.Path) -> list[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}): download it again.") from error


def _read(path: pathlib.Path, name: str) -> np.ndarray:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"{path}: the tensor {name} cannot be read ({error}): download the file again.") from error
