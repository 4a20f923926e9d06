"""What is done in another way on one device, or on CPUs, gives the same numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.config import MeshConfig
from mft_jax.models import decoder
from mft_jax.models.attention_backend import XlaAttention, attention_backend
from mft_jax.models.config import parse_model_config
from mft_jax.models.weights import load_base, save_base
from mft_jax.parallel.mesh import base_sharding, make_mesh
from tests.conftest import TINY, random_base
from tests.models.test_fused import PHI


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, 20.0)])
def test_agents_as_rows(window, softcap):
    """Decoding all agents' rows as one batch is decoding them agent by agent, to the last bit."""
    rng, agents, rows, columns = np.random.default_rng(0), 3, 4, 16
    normal = lambda *shape: jnp.asarray(rng.normal(size=(agents, rows, *shape)), jnp.float32)
    q, k, v = normal(1, 6, 8), normal(1, 2, 8), normal(1, 2, 8)
    keys, values = normal(2, 8, columns), normal(2, columns, 8)
    position = jnp.asarray(rng.integers(0, columns, (agents, rows)))
    results = [
        jax.jit(jax.vmap(partial(XlaAttention(merged).decode, window=window, softcap=softcap)))(
            q, k, v, keys, values, position
        )
        for merged in (False, True)
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0][0].shape == (agents, rows, 1, 48)
    assert attention_backend(None) == XlaAttention(merges_agents=True)


@pytest.mark.parametrize("family", [TINY | {"tie_word_embeddings": False}, PHI], ids=["separate head", "fused"])
def test_kernels_and_their_transposes(family, tmp_path, monkeypatch):
    """A checkpoint gives the same logits in both layouts, and is written again as it was read."""
    config = parse_model_config(family)
    graphdef, base = random_base(config)
    save_base(base, tmp_path, config)
    monkeypatch.setattr(decoder, "by_output", lambda mesh: False)
    other, kernels = load_base(tmp_path, config)
    found, transposed = (nnx.to_pure_dict(own)["blocks"][0]["o_proj"] for own in (kernels, base))
    np.testing.assert_array_equal(found["kernel"], transposed["weight"].T)
    tokens = jnp.arange(3, 15)[None]
    logits = [
        jax.jit(lambda base, graph=g: nnx.merge(graph, base)(tokens))(b)
        for g, b in ((graphdef, base), (other, kernels))
    ]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    (tmp_path / "again").mkdir()
    save_base(kernels, tmp_path / "again", config)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_both_layouts_are_split_along_the_same_axis():
    mesh = make_mesh(MeshConfig(model=2))
    spec = lambda name, shape: tuple(base_sharding(mesh, ("blocks", 0, "q_proj", name), shape).spec)
    assert spec("kernel", (32, 64)) == (None, "model")
    assert spec("weight", (64, 32)) == ("model", None)
