import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mft_jax.errors import UserError
from mft_jax.models.config import read_model_config
from mft_jax.models.weights import checkpoint_directory, load_base, save_base
from tests.conftest import TINY


@pytest.fixture
def checkpoint(tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    save_base(tiny.base, tmp_path, tiny.config)
    return tmp_path


def test_saved_weights_are_read_back_bitwise_identical(checkpoint, tiny):
    _, base = load_base(checkpoint, read_model_config(checkpoint))
    for left, right in zip(jax.tree.leaves(base), jax.tree.leaves(tiny.base), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_is_loaded_as_stored_or_converted_to_float32(checkpoint, tiny, stored):
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: tensor.astype(jnp.dtype(stored)) for name, tensor in tensors.items()}, checkpoint / "model.safetensors"
    )
    _, as_stored = load_base(checkpoint, tiny.config, dtype=None)
    _, widened = load_base(checkpoint, tiny.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(as_stored)} == {jnp.dtype(stored)}
    for half, wide, exact in zip(*map(jax.tree.leaves, (as_stored, widened, tiny.base)), strict=True):
        assert wide.dtype == jnp.float32
        np.testing.assert_array_equal(half.astype(jnp.float32), wide)
        np.testing.assert_allclose(wide, exact, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, r"down_proj\.weight has shape \(32, 64\), but config\.json asks for \(64, 64\)"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.\S+ is missing"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ has no place"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
    ],
)
def test_weights_that_do_not_match_the_configuration(checkpoint, change, message):
    (checkpoint / "config.json").write_text(json.dumps(TINY | change))
    with pytest.raises(UserError, match=message):
        load_base(checkpoint, read_model_config(checkpoint))


def test_a_truncated_file_is_named(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is not a complete safetensors file"):
        load_base(checkpoint, read_model_config(checkpoint))


def test_shards_are_read_and_a_missing_one_is_named(tmp_path, tiny):
    save_base(tiny.base, tmp_path, tiny.config)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
    weight_map = {name: file for file, own in parts.items() for name in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "model.safetensors").unlink()
    _, base = load_base(tmp_path, tiny.config)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), base, tiny.base)))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors, which does not exist"):
        load_base(tmp_path, tiny.config)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_weights_that_are_not_finite_are_named_by_file_and_tensor(checkpoint, tiny, stored, value, dtype):
    path, name = checkpoint / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = {key: tensor.astype(jnp.dtype(stored)) for key, tensor in load_file(path).items()}
    tensors[name][5, 7] = value
    save_file(tensors, path)
    with pytest.raises(
        UserError, match=rf"model\.safetensors: the tensor {name} holds NaN or infinity in .*: download"
    ):
        load_base(checkpoint, tiny.config, dtype=dtype)


def test_weights_that_overflow_the_dtype_are_rejected(checkpoint, tiny):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = np.finfo(np.float32).max  # rounds to infinity in bfloat16
    save_file(tensors, path)
    load_base(checkpoint, tiny.config)
    with pytest.raises(UserError, match=r"the tensor model\.norm\.weight holds NaN or infinity in bfloat16"):
        load_base(checkpoint, tiny.config, dtype=jnp.bfloat16)


def test_quantized_weights_are_rejected(checkpoint, tiny):
    path = checkpoint / "model.safetensors"
    save_file(load_file(path) | {"model.norm.weight": np.ones(32, np.int8)}, path)
    with pytest.raises(UserError, match=r"model\.norm\.weight is stored as I8, expected one of F64, F32, F16, BF16"):
        load_base(checkpoint, tiny.config)


def test_a_missing_checkpoint_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="give a checkpoint directory or a hub name"):
        checkpoint_directory(str(tmp_path / "nowhere"))
    for path in ("~nobody_of_this_name/model", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="give a checkpoint directory"):
            checkpoint_directory(path)


WRITE = """
import json, pathlib, sys
import ml_dtypes, numpy as np
from safetensors.numpy import save_file
from mft_jax.models.config import parse_model_config
from mft_jax.models.lora import projection_shapes
directory, raw = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
(directory / "config.json").write_text(json.dumps(raw))
config, weight_map = parse_model_config(raw), {}
full = lambda *shape: np.full(shape, 0.5, ml_dtypes.bfloat16)
for layer in range(config.layers):
    name = f"model.layers.{layer}."
    tensors = {name + "input_layernorm.weight": full(config.embed), name + "post_attention_layernorm.weight": full(config.embed)}
    for module, (size_in, size_out) in projection_shapes(config).items():
        part = "mlp." if module in ("gate_proj", "up_proj", "down_proj") else "self_attn."
        tensors[name + part + module + ".weight"] = full(size_out, size_in)
    if layer == 0:
        tensors["model.norm.weight"] = full(config.embed)
        tensors["model.embed_tokens.weight"] = full(config.vocab_size, config.embed)
    save_file(tensors, directory / f"{layer}.safetensors")
    weight_map |= dict.fromkeys(tensors, f"{layer}.safetensors")
(directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
"""
READ = """
import pathlib, re, sys
import jax
from mft_jax.models.config import read_model_config
from mft_jax.models.weights import load_base
directory = pathlib.Path(sys.argv[1])
_, base = load_base(directory, read_model_config(directory), dtype=None)
leaves = jax.tree.leaves(base)
assert all(float(leaf[0].ravel()[0]) == 0.5 for leaf in leaves)
# Not getrusage: its peak includes the memory of the parent process.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
print(sum(leaf.nbytes for leaf in leaves), int(peak) * 1024)
"""


@pytest.mark.slow
def test_peak_memory_of_loading_is_below_the_weights_plus_one_gigabyte(tmp_path):
    """The limit is too low for a second copy of these 1.6 GB."""
    raw = TINY | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 11, "vocab_size": 32000}
    run = lambda *arguments: (
        subprocess.run(
            [sys.executable, "-c", *arguments],
            check=True,
            capture_output=True,
            text=True,
            env=dict(os.environ, JAX_NUM_CPU_DEVICES="1"),
        ).stdout
    )
    run(WRITE, str(tmp_path), json.dumps(raw))
    size, peak = map(int, run(READ, str(tmp_path)).split())
    assert size > 1.5e9
    assert peak < size + 1e9
