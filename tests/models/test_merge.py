"""Merged checkpoints: transformers loads them, and they compute the same as the base with the adapter in PEFT."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mft_jax.config import LoraConfig
from mft_jax.errors import UserError
from mft_jax.models.config import read_model_config
from mft_jax.models.merge import merge_checkpoint
from mft_jax.models.peft import save_peft
from mft_jax.models.weights import load_base, save_base
from tests.conftest import TINY

FAMILIES = {
    "llama": (TINY, {"q_proj": (32, 32), "up_proj": (32, 64)}),
    "phi3": (TINY | {"pad_token_id": 0}, {"qkv_proj": (32, 64), "gate_up_proj": (32, 128), "down_proj": (64, 32)}),
    "qwen2": (TINY, {"v_proj": (32, 16), "o_proj": (32, 32)}),
}
LORA = LoraConfig(rank=4, alpha=8.0)


def random_adapter(shapes, layers=2, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
    return {t: {"a": draw(layers, i, LORA.rank), "b": draw(layers, LORA.rank, o)} for t, (i, o) in shapes.items()}


@pytest.fixture
def source(tmp_path, tiny):
    """A checkpoint with all files that a tokenizer may have, and some files that are not needed."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(TINY))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                 "chat_template.jinja", "tokenizer.model", "trainer_state.json", "consolidated.safetensors"):  # fmt: skip
        (directory / name).write_text(f'{{"this is": "{name}"}}')
    save_base(tiny.base, directory, tiny.config)
    return directory


def transformers_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_transformers_computes_the_same_logits(source, tmp_path, tiny, shard):
    from transformers import AutoModelForCausalLM

    merge_checkpoint(source, tmp_path / "merged", tiny.agent(2).weights, tiny.lora, max_shard_size=shard)
    files = sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors*"))
    if shard == "5GB":
        assert files == ["model.safetensors"]
    else:
        assert len(files) > 3
        assert files[0] == f"model-00001-of-{len(files) - 1:05d}.safetensors"
        assert files[-1] == "model.safetensors.index.json"
    tokens = np.random.default_rng(0).integers(0, 300, (2, 24))
    expected = jax.jit(lambda base: nnx.merge(tiny.graphdef, base)(tokens, tiny.agent(2)))(tiny.base)
    logits = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), tokens)
    assert np.abs(logits - expected).max() <= 2e-4 * expected.std()
    _, base = load_base(tmp_path / "merged", read_model_config(tmp_path / "merged"))
    own = jax.jit(lambda base: nnx.merge(tiny.graphdef, base)(tokens))(base)
    assert np.abs(own - expected).max() <= 2e-4 * expected.std()


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_equal_the_adapter_in_peft(tmp_path, family):
    """Without our decoder: compares the merged checkpoint in transformers with the base and the adapter in PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    fields, shapes = FAMILIES[family]
    adapter = random_adapter(shapes)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(fields | {"model_type": family, "initializer_range": 0.3}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base", max_shard_size="30KB")
    merge_checkpoint(tmp_path / "base", tmp_path / "merged", adapter, LORA)
    save_peft(adapter, tmp_path / "adapter", LORA, str(tmp_path / "base"))
    base, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "merged"))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 24))
    untuned = transformers_logits(base, tokens)
    expected = transformers_logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), tokens)
    assert np.abs(transformers_logits(merged, tokens) - expected).max() <= 2e-4 * expected.std()
    assert np.abs(untuned - expected).max() > 0.1 * expected.std()


def test_only_adapted_tensors_change_and_dtypes_are_kept(source, tmp_path):
    """The sum is computed in float32 and rounded once to the stored dtype. Everything else is copied."""
    path = source / "model.safetensors"
    tensors = load_file(path)
    half = {name: t.astype(np.float16 if "norm" in name else jnp.bfloat16) for name, t in tensors.items()}
    half["model.norm.weight"] = tensors["model.norm.weight"]
    half["a.module.of.three"] = np.ones(3, np.float16)
    save_file(half, path)
    adapter = random_adapter({"k_proj": (32, 16), "down_proj": (64, 32)})
    merge_checkpoint(source, tmp_path / "merged", adapter, LORA)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == half.keys()
    changed = 0
    for name, before in half.items():
        assert merged[name].dtype == before.dtype
        target = name.split(".")[-2]
        if target in adapter:
            a, b = (adapter[target][part][int(name.split(".")[2])] for part in "ab")
            after = (before.astype(np.float32) + np.float32(2.0) * (a @ b).T).astype(before.dtype)
            assert (after != before).mean() > 0.9
            changed += 1
        else:
            after = before
        assert np.array_equal(merged[name], after), name
    assert changed == 4
    data = (tmp_path / "merged" / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    starts = {name: entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    assert all(start % merged[name].itemsize == 0 for name, start in starts.items())  # for those that map the file


def test_a_sharded_source_gives_the_same_tensors(source, tmp_path, tiny):
    nothing = jax.tree.map(np.zeros_like, tiny.agent(0).weights)
    merge_checkpoint(source, tmp_path / "shards", nothing, tiny.lora, max_shard_size=20_000)
    merge_checkpoint(source, tmp_path / "unsharded", tiny.agent(0).weights, tiny.lora)
    merge_checkpoint(tmp_path / "shards", tmp_path / "again", tiny.agent(0).weights, tiny.lora)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    sizes = {name: tensor.nbytes for name, tensor in load_file(source / "model.safetensors").items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    for file in set(index["weight_map"].values()):
        inside = [name for name, home in index["weight_map"].items() if home == file]
        assert sorted(load_file(tmp_path / "shards" / file)) == sorted(inside)
        assert len(inside) == 1 or sum(sizes[name] for name in inside) <= 20_000
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("unsharded", "again"))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def test_the_tokenizer_files_are_copied(source, tmp_path, tiny):
    merge_checkpoint(source, tmp_path / "merged", tiny.agent(0).weights, tiny.lora)
    expected = {path.name: path.read_bytes() for path in source.iterdir()}
    for foreign in ("model.safetensors", "trainer_state.json", "consolidated.safetensors"):
        del expected[foreign]
    copied = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    assert copied.pop("model.safetensors") != (source / "model.safetensors").read_bytes()
    assert copied == expected


def quantize(tensors):
    return {n: t.astype(np.int8) if n.endswith("1.self_attn.q_proj.weight") else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("shapes", "damage", "message"),
    [
        ({"q_proj": (32, 48)}, None, r"q_proj\.weight has shape \(32, 32\), but the adapter's update \(48, 32\)"),
        ({"qkv_proj": (32, 64)}, None, r"no tensor model\.layers\.0\.self_attn\.qkv_proj\.weight"),
        ({"q_proj": (32, 32)}, quantize, r"1\.self_attn\.q_proj\.weight is stored as I8, .* export it with --to peft"),
        ({"q_proj": (32, 32)}, "truncate", r"model\.safetensors is not a complete safetensors file"),
    ],
)
def test_a_checkpoint_that_cannot_be_merged_is_named_and_nothing_is_written(source, tmp_path, shapes, damage, message):
    path = source / "model.safetensors"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage:
        save_file(damage(load_file(path)), path)
    with pytest.raises(UserError, match=message):
        merge_checkpoint(source, tmp_path / "merged", random_adapter(shapes), LORA)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_weights_that_would_overflow_are_named(source, tmp_path):
    path = source / "model.safetensors"
    save_file({name: np.full(t.shape, 65504, np.float16) for name, t in load_file(path).items()}, path)
    large = jax.tree.map(lambda leaf: 100 * leaf, random_adapter({"q_proj": (32, 32)}))
    with pytest.raises(
        UserError, match=r"q_proj\.weight holds NaN or infinity in float16: .*the adapter with --to peft"
    ):
        merge_checkpoint(source, tmp_path / "merged", large, LORA)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_adapter_with_too_many_layers_and_an_invalid_size_are_named(source, tmp_path, tiny):
    with pytest.raises(UserError, match=r"no tensor model\.layers\.2\."):
        merge_checkpoint(source, tmp_path / "merged", random_adapter({"q_proj": (32, 32)}, layers=3), LORA)
    with pytest.raises(UserError, match="The size of shards is '5 apples', expected one such as 5GB"):
        merge_checkpoint(source, tmp_path / "merged", tiny.agent(0).weights, tiny.lora, max_shard_size="5 apples")
