"""Fused projections: the order of their outputs, from files to devices, and what a split over devices moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from mft_jax.config import LoraConfig, MeshConfig
from mft_jax.models import weights as weights_module
from mft_jax.models.config import parse_model_config
from mft_jax.models.decoder import build
from mft_jax.models.fused import Groups, fused_groups
from mft_jax.models.lora import Adapter, Grouped, init_weights
from mft_jax.models.weights import load_base, save_base
from mft_jax.parallel.mesh import base_sharding, make_mesh
from tests.conftest import TINY, place_base, random_base

PHI = {**TINY, "model_type": "phi3", "num_hidden_layers": 1, "tie_word_embeddings": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def phi():
    """(configuration, graphdef, base) of a random model with two kv heads of two query heads each."""
    config = parse_model_config(PHI)
    return config, *random_base(config)


def test_groups_by_hand():
    """Two groups of two queries, a key and a value."""
    groups = Groups(2, (2, 1, 1))
    stored = np.array([["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1"]])
    ordered = [["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"]]
    assert np.array(groups.stored_places()).tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    assert stored[:, groups.stored_places()].tolist() == ordered
    numbers = np.arange(8)[None]
    np.testing.assert_array_equal(groups.from_stored(numbers), numbers[:, groups.stored_places()])
    parts = groups.split(numbers[:, groups.stored_places()])
    assert [part.tolist() for part in parts] == [[[0, 1, 2, 3]], [[4, 5]], [[6, 7]]]


def test_the_groups_of_a_model(phi):
    """A group of the attention is a kv head with its queries; one of the MLP has as many features as fit."""
    assert fused_groups(phi[0]) == {"qkv_proj": Groups(2, (16, 8, 8)), "gate_up_proj": Groups(2, (32, 32))}
    wide = parse_model_config({**PHI, "intermediate_size": 8192})
    assert fused_groups(wide)["gate_up_proj"] == Groups(64, (128, 128))
    assert fused_groups(parse_model_config(TINY)) == {}


def test_a_checkpoint_keeps_its_order(phi, tmp_path):
    """Queries, keys and values one after the other, as transformers has them; reading and writing are inverse."""
    config, _, base = phi
    save_base(base, tmp_path, config)
    stored = load_file(tmp_path / "model.safetensors")["model.layers.0.self_attn.qkv_proj.weight"]
    weight = np.asarray(nnx.to_pure_dict(base)["blocks"][0]["qkv_proj"]["weight"])
    np.testing.assert_array_equal(stored[:16], weight[:16])  # the queries of the first group
    np.testing.assert_array_equal(stored[16:32], weight[32:48])  # those of the second
    np.testing.assert_array_equal(stored[32:40], weight[16:24])  # the first key
    _, back = load_base(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(back), nnx.to_pure_dict(base))


def test_a_device_reads_the_rows_of_its_own_heads(phi, tmp_path, monkeypatch):
    config, _, base = phi
    save_base(base, tmp_path, config)
    mesh = make_mesh(MeshConfig(model=2))
    read, original = [], weights_module.read_tensor

    def note(path, name, index=()):
        if "qkv_proj" in name:
            read.append((index[0].start, index[0].stop))
        return original(path, name, index)

    monkeypatch.setattr(weights_module, "read_tensor", note)
    _, placed = load_base(tmp_path, config, mesh=mesh, shardings=lambda path, shape: base_sharding(mesh, path, shape))
    assert sorted(read) == [(0, 16), (16, 32), (32, 40), (40, 48), (48, 56), (56, 64)]
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(placed), nnx.to_pure_dict(base))


def test_layers_split_over_devices_move_only_sums(phi):
    """Two devices: the values of one, and as collectives the all-reduces after attention and MLP, and of the embedding."""
    config, graphdef, base = phi
    mesh = make_mesh(MeshConfig(model=2))
    lora = LoraConfig(rank=2)
    weights = jax.tree.map(lambda leaf: leaf + 0.1, init_weights(config, lora, jax.random.key(0)))
    adapter, tokens = Adapter(weights, jnp.float32(0.5)), jnp.arange(24).reshape(2, 12)

    def logits(graphdef):
        return jax.jit(lambda base, adapter, tokens: nnx.merge(graphdef, base)(tokens, adapter))

    expected = logits(graphdef)(base, adapter, tokens)
    ordered = jax.jit(lambda adapter: adapter.grouped(config))(adapter)
    assert isinstance(ordered, Grouped)
    compiled = logits(build(config, mesh=mesh)[0]).lower(place_base(mesh, base), ordered, tokens).compile()
    np.testing.assert_allclose(compiled(place_base(mesh, base), ordered, tokens), expected, atol=1e-4)
    found = re.findall(r" (all-\w+|collective-permute|reduce-scatter)(?:-start)?\(", compiled.as_text())
    assert set(found) == {"all-reduce"}, found
