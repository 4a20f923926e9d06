"""Safetensors files of checkpoints: which file a tensor is in, and whether a tensor is finite."""

import json
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mft_jax.errors import UserError
from mft_jax.models.tensor_files import find_tensors, is_finite, read_headers, read_tensor

TYPES = [np.float64, np.float32, np.float16, jnp.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_single_value_makes_a_tensor_not_finite(dtype, value, monkeypatch):
    monkeypatch.setattr("mft_jax.models.tensor_files._CHUNK", 64)
    for place in (0, 63, 64, 999):
        tensor = np.random.default_rng(0).normal(size=1000).astype(dtype)
        assert is_finite(tensor.reshape(10, 100))
        tensor[place] = value
        assert not is_finite(tensor.reshape(10, 100))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_and_smallest_numbers_are_finite(dtype):
    info = ml_dtypes.finfo(dtype)
    assert is_finite(np.array([info.max, info.min, info.tiny, info.smallest_subnormal, 0.0, -0.0], dtype))
    assert is_finite(np.zeros((0, 3), dtype))
    assert is_finite(np.ones((), dtype))


def test_every_bit_pattern_of_half_precision():
    for dtype in (np.float16, jnp.bfloat16):
        values = np.arange(2**16, dtype=np.uint16).view(dtype)
        found = [is_finite(values[index : index + 1]) for index in range(0, 2**16, 7)]
        assert found == np.isfinite(values[::7].astype(np.float32)).tolist()


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint with a tensor w in a file beside the index, and another file outside the checkpoint directory."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save_file({"w": np.ones(3, np.float32)}, directory / "a.safetensors")
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "secret.safetensors")
    return directory


def write_index(directory, content):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (directory / "model.safetensors.index.json").write_bytes(data)


def test_the_index_names_the_file_of_each_tensor(sharded):
    write_index(sharded, {"weight_map": {"w": "a.safetensors"}})
    assert find_tensors(sharded) == {"w": sharded / "a.safetensors"}
    assert read_headers(sharded / "a.safetensors")["w"].dtype == "F32"
    assert read_tensor(sharded / "a.safetensors", "w").tolist() == [1, 1, 1]


@pytest.mark.parametrize("shard", ["/etc/passwd", "../secret.safetensors", "x/../../secret.safetensors", "OUTSIDE"])
def test_an_index_may_not_name_files_outside_its_directory(sharded, shard):
    shard = str(sharded.parent / "secret.safetensors") if shard == "OUTSIDE" else shard
    write_index(sharded, {"weight_map": {"w": shard}})
    with pytest.raises(UserError, match=r"index\.json names '.*, expected a file in its own directory"):
        find_tensors(sharded)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not a shard index (not valid JSON: "),
        (b"\xff", "is not a shard index (not valid UTF-8: "),
        (b"[" * 100_000, "is not a shard index (not valid JSON: "),
        ([], "is not a shard index (it holds [], expected an object)"),
        ({"weights": {}}, "is not a shard index (its weight_map is None, expected an object)"),
        ({"weight_map": ["a.safetensors"]}, "is not a shard index (its weight_map is ['a.safetensors'], expected an object)"),
        ({"weight_map": {"w": 5}}, "is not a shard index (it names the file 5, expected text)"),
        ({"weight_map": {"w": "b.safetensors"}}, "names b.safetensors, which does not exist"),
        ({"weight_map": {"w": "b" * 5000}}, "which does not exist"),
        ({"weight_map": {"w": "b\0"}}, "which does not exist"),
        ({"weight_map": {"w": "."}}, "which does not exist"),
    ],
)  # fmt: skip
def test_a_broken_index_is_one_sentence(sharded, content, message):
    write_index(sharded, content)
    with pytest.raises(UserError) as caught:
        find_tensors(sharded)
    assert str(caught.value).startswith(str(sharded / "model.safetensors.index.json"))
    assert message in str(caught.value)
    assert str(caught.value).endswith(": download the checkpoint again.")
    assert len(str(caught.value)) < 600


def test_a_directory_without_weights(tmp_path):
    with pytest.raises(UserError, match="only safetensors are read"):
        find_tensors(pathlib.Path(tmp_path))
