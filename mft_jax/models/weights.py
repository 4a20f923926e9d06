"""Base weights in and out: ordinary Hugging Face checkpoint directories, one tensor at a time."""

import json
import pathlib
from collections.abc import Callable, Sequence

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

_TWO_NORMS = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "input_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "post_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


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
        # Some publish the same weights a second time, for other programs.
        return pathlib.Path(
            snapshot_download(path, allow_patterns=files, ignore_patterns=["consolidated*", "original/*"])
        )
    except Exception as error:  # the hub's client raises many kinds, all of which mean: not to be had
        raise UserError(
            f"{path} is neither a directory nor a model that could be downloaded ({type(error).__name__}): "
            "check the name and the network, or give a checkpoint directory."
        ) from error


def projection_module(layer: int | str, projection: str) -> str:
    """The checkpoint's name of a layer's linear module, model.layers.0.self_attn.q_proj for one; fused ones included."""
    place = "mlp" if projection in ("gate_proj", "up_proj", "gate_up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{place}.{projection}"


def hugging_face_name(path: Path, config: ModelConfig) -> tuple[str, bool]:
    """The checkpoint's name of a base leaf, and whether it is stored transposed ([out, in])."""
    if path[0] == "embedding":
        return "model.embed_tokens.weight", False
    if path[0] == "norm":
        return "model.norm.weight", False
    if path[0] == "lm_head":
        return "lm_head.weight", True
    _, layer, module, kind = path
    if str(module).endswith("_proj"):
        name = projection_module(layer, str(module))
    else:
        # Where there are norms behind attention and MLP too, "post_attention" is the one behind.
        norms = _FOUR_NORMS if config.out_norms else _TWO_NORMS
        name = f"model.layers.{layer}.{norms.get(str(module), f'self_attn.{module}')}"
    return f"{name}.{'bias' if kind == 'bias' else 'weight'}", kind == "kernel"


def load_base(
    directory: pathlib.Path,
    config: ModelConfig,
    *,
    lora_scale: float = 1.0,
    dtype: jnp.dtype | None = jnp.float32,
    compute_dtype: jnp.dtype | None = None,
    place: Callable[[Path, np.ndarray], jax.Array] | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Reads a checkpoint into (graphdef, base), every tensor placed on its devices before the next is read.

    `dtype` is that of the weights; None: each as it is stored. `compute_dtype` is that of activations; None: the same.
    `place(path, tensor)` puts one leaf where the mesh wants it; by default it goes to the default device.
    On the host no more than a tensor and its transposed copy are held besides what was placed there.
    Raises UserError for a missing file or tensor, a wrong shape, and for tensors the decoder has no use for.
    """
    graphdef, abstract = build(config, lora_scale, dtype or jnp.float32, compute_dtype)
    place = place or (lambda _, tensor: jnp.asarray(tensor))
    files = tensor_files(directory)
    flat, treedef = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(abstract))
    wanted = [(tuple(key.key for key in keys), spec.shape) for keys, spec in flat]
    _check_all(files, wanted, config, directory)
    leaves = []
    for path, _ in wanted:
        name, is_transposed = hugging_face_name(path, config)
        tensor = _read(files[name], name)
        tensor = tensor.T if is_transposed else tensor
        leaf = place(path, tensor if dtype is None else tensor.astype(dtype, copy=False))
        leaves.append(jax.block_until_ready(leaf))  # or tensors on their way to a device would pile up on the host
    nnx.replace_by_pure_dict(abstract, jax.tree_util.tree_unflatten(treedef, leaves))
    return graphdef, abstract


def save_base(base: nnx.State, directory: pathlib.Path, config: ModelConfig) -> None:
    """Writes model.safetensors with Hugging Face's names, as transformers loads them."""
    tensors = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(base))[0]:
        name, is_transposed = hugging_face_name(tuple(key.key for key in keys), config)
        tensor = np.asarray(leaf)
        tensors[name] = np.ascontiguousarray(tensor.T if is_transposed else tensor)
    path = pathlib.Path(directory) / "model.safetensors"
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone


def _check_all(
    files: dict[str, pathlib.Path],
    wanted: Sequence[tuple[Path, tuple[int, ...]]],
    config: ModelConfig,
    directory: pathlib.Path,
) -> None:
    """Every tensor is there, has its shape, and none is left over: known from the headers, before minutes of reading."""
    shapes = _shapes(set(files.values()))
    used = set()
    for path, shape in wanted:
        name, is_transposed = hugging_face_name(path, config)
        if name not in files or name not in shapes[files[name]]:
            raise UserError(
                f"{directory}: the tensor {name} is missing: the checkpoint is incomplete or of another architecture."
            )
        expected, found = shape[::-1] if is_transposed else shape, shapes[files[name]][name]
        if found != expected:
            raise UserError(f"{files[name]}: {name} has shape {found}, but config.json asks for {expected}.")
        used.add(name)
    unused = [
        name
        for name in sorted(set(files) - used)
        if not name.endswith("rotary_emb.inv_freq") and not (name == "lm_head.weight" and config.tied_embeddings)
    ]
    if unused:
        raise UserError(
            f"{files[unused[0]]}: the tensor {unused[0]} has no place in this decoder: the architecture differs from config.json."
        )


def tensor_files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Which file holds each tensor, from the shard index when there is one."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index} is not a shard index ({error}): download the checkpoint again.") from error
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
    return list(_shapes({path})[path])


def _shapes(files: set[pathlib.Path]) -> dict[pathlib.Path, dict[str, tuple[int, ...]]]:
    """The shape of every tensor in each file, from its header."""
    shapes = {}
    for path in sorted(files):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes[path] = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a complete safetensors file ({error}): download it again.") from error
    return shapes


def _read(path: pathlib.Path, name: str) -> np.ndarray:
    """One tensor. The file is opened for each, so that its pages do not stay mapped, and count as memory, until the end."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the tensor {name} cannot be read ({error}): download the file again.") from error
