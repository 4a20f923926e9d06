"""Adapters in PEFT's format: PEFT computes the same logits, they are read back unchanged, bad files are named."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mft_jax.config import TARGETS, LoraConfig
from mft_jax.errors import UserError
from mft_jax.models import peft
from mft_jax.models.config import read_model_config
from mft_jax.models.lora import Adapter
from mft_jax.models.peft import load_peft, save_peft
from mft_jax.models.weights import load_base, save_base
from tests.conftest import TINY

Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny):
    """A checkpoint directory of the tiny model."""
    directory = tmp_path_factory.mktemp("base")
    (directory / "config.json").write_text(json.dumps(TINY))
    save_base(tiny.base, directory, tiny.config)
    return directory


@pytest.fixture
def saved(tmp_path, tiny):
    """A saved adapter, which tests may damage."""
    save_peft(tiny.agent(1).weights, tmp_path / "adapter", tiny.lora, "org/base")
    return tmp_path / "adapter"


def assert_same(left, right):
    assert {t: set(pair) for t, pair in left.items()} == {t: set(pair) for t, pair in right.items()}
    for target, pair in left.items():
        for part in pair:
            assert np.array_equal(pair[part], right[target][part]), (target, part)


def assert_peft_agrees(checkpoint, directory, lora, adapter):
    """Asserts that PEFT, with the adapter in `directory`, gives the same logits as our decoder with `adapter`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = read_model_config(checkpoint)
    graphdef, base = load_base(checkpoint, config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 24))
    run = jax.jit(lambda base, adapter: nnx.merge(graphdef, base)(tokens, adapter))
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), directory).eval()
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    logits, untuned = run(base, Adapter(adapter, jnp.float32(lora.scale))), run(base, None)
    assert np.abs(logits - expected).max() <= 2e-4 * expected.std()
    assert (
        np.abs(untuned - expected).max() > 0.1 * expected.std()
    )  # otherwise an adapter that is not applied would pass


@pytest.mark.torch
@pytest.mark.parametrize("agent", range(3))
def test_peft_computes_the_same_logits(checkpoint, tmp_path, tiny, agent):
    adapter = tiny.agent(agent).weights
    save_peft(adapter, tmp_path / "adapter", tiny.lora, str(checkpoint))
    assert_peft_agrees(checkpoint, tmp_path / "adapter", tiny.lora, adapter)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "targets", "alpha"),
    [
        ({"target_modules": "all-linear", "lora_alpha": 12}, TARGETS, 12),
        (
            {"target_modules": r".*\.(down_proj|k_proj)", "lora_alpha": 8, "use_rslora": True},
            ("k_proj", "down_proj"),
            16,
        ),
        ({"target_modules": ["o_proj"], "lora_alpha": 2, "init_lora_weights": "gaussian"}, ("o_proj",), 2),
    ],
)
def test_adapters_created_by_peft(checkpoint, tmp_path, options, targets, alpha):
    """With targets in any spelling. Rank-stabilized adapters get the alpha that gives the same scale."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = get_peft_model(base, PeftConfig(r=4, lora_dropout=0.1, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    lora, adapter = load_peft(tmp_path, read_model_config(checkpoint))
    assert lora == LoraConfig(rank=4, alpha=alpha, targets=targets)
    assert_peft_agrees(checkpoint, tmp_path, lora, adapter)


def test_a_saved_adapter_is_read_back_bitwise_identical(saved, tmp_path, tiny):
    lora, adapter = load_peft(saved, tiny.config)
    assert lora == tiny.lora
    assert_same(adapter, tiny.agent(1).weights)
    some = {target: tiny.agent(2).weights[target] for target in ("down_proj", "q_proj")}
    save_peft(some, tmp_path / "some", LoraConfig(rank=4, alpha=2.5), None)
    lora, adapter = load_peft(tmp_path / "some", tiny.config)
    assert lora == LoraConfig(rank=4, alpha=2.5, targets=("q_proj", "down_proj"))
    assert_same(adapter, some)
    settings = json.loads((tmp_path / "some" / "adapter_config.json").read_text())
    assert set(settings["target_modules"]) == {"q_proj", "down_proj"}


def test_the_saved_files_have_the_format_of_peft(saved):
    tensors = load_file(saved / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    assert (tensors[Q0].shape, tensors[Q0].dtype) == ((4, 32), np.float32)
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (32, 4)
    settings = json.loads((saved / "adapter_config.json").read_text())
    found = [settings[name] for name in ("peft_type", "r", "lora_alpha", "base_model_name_or_path")]
    assert found == ["LORA", 4, 8, "org/base"]


def test_bfloat16_tensors_are_converted_to_float32(saved, tiny):
    path = saved / "adapter_model.safetensors"
    save_file({name: tensor.astype(jnp.bfloat16) for name, tensor in load_file(path).items()}, path)
    _, adapter = load_peft(saved, tiny.config)
    expected = jax.tree.map(
        lambda leaf: np.asarray(leaf.astype(jnp.bfloat16).astype(jnp.float32)), tiny.agent(1).weights
    )
    assert adapter["q_proj"]["a"].dtype == np.float32
    assert_same(adapter, expected)


@pytest.mark.torch
def test_fused_projections(tmp_path, tiny, monkeypatch):
    """PEFT loads every tensor of a Phi-3 adapter, and the adapter is read back bitwise identical."""
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import Phi3Config, Phi3ForCausalLM

    shapes = {"qkv_proj": (32, 64), "gate_up_proj": (32, 128), "o_proj": (32, 32), "down_proj": (64, 32)}
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    adapter = {t: {"a": draw(2, size_in, 4), "b": draw(2, 4, size_out)} for t, (size_in, size_out) in shapes.items()}
    lora = LoraConfig(rank=4, alpha=8.0, targets=tuple(shapes))
    save_peft(adapter, tmp_path / "adapter", lora, None)
    fields = {k: v for k, v in TINY.items() if k != "model_type"} | {"pad_token_id": 0}
    model = PeftModel.from_pretrained(Phi3ForCausalLM(Phi3Config(**fields)), tmp_path / "adapter")
    loaded = get_peft_model_state_dict(model)
    assert loaded["base_model.model.model.layers.1.mlp.gate_up_proj.lora_B.weight"].shape == (128, 4)
    for name, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items():
        assert np.array_equal(tensor, loaded.pop(name).numpy()), name
    assert not loaded
    monkeypatch.setattr(peft, "projection_shapes", lambda config: shapes)
    found, back = load_peft(tmp_path / "adapter", tiny.config)
    assert found == lora
    assert_same(back, adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', expected 'CAUSAL_LM'"),
        ({"r": 0}, "r is 0, expected a whole number"),
        ({"r": True}, "r is True, expected a whole number"),
        ({"r": 10**400}, "r is 10000.*, expected a whole number of at least 1 and at most 65,536"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', expected a number above 0"),
        ({"lora_alpha": True}, "lora_alpha is True, expected a number above 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0, expected a number above 0"),
        ({"lora_alpha": -8.0}, "lora_alpha is -8.0, expected a number above 0"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan, expected a number above 0"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf, expected a number above 0 and at most 1e.30"),
        ({"lora_alpha": 10**400}, "lora_alpha is 10000.*, expected a number above 0 and at most 1e.30"),
        ({"base_model_name_or_path": ["org/base"]}, r"base_model_name_or_path is \['org/base'\], expected text"),
        ({"rank_pattern": [2]}, "is not a PEFT configuration .AttributeError: 'list' object has no attribute 'values'"),
        ({"use_dora": True}, "use_dora = True is not implemented"),
        ({"bias": "lora_only"}, "bias = 'lora_only' is not implemented"),
        ({"lora_bias": True}, "lora_bias = True is not implemented"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not implemented"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank_pattern = \{'q_proj': 2\} is not implemented"),
        ({"alpha_pattern": {"q_proj": 16}}, "alpha_pattern = .* is not implemented"),
        ({"layers_to_transform": [0]}, r"layers_to_transform = \[0\] is not implemented"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices = .* is not implemented"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True is not implemented"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not implemented"),
        ({"an_option_of_tomorrow": "on"}, "an_option_of_tomorrow = 'on' is not implemented"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_implemented_is_named(saved, tiny, change, message):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_peft(saved, tiny.config)


def test_patterns_that_change_nothing_are_accepted(saved, tiny):
    path = saved / "adapter_config.json"
    uniform = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 8}}
    path.write_text(json.dumps(json.loads(path.read_text()) | uniform))
    assert load_peft(saved, tiny.config)[0] == tiny.lora


def drop(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def add(name, *shape):
    return lambda tensors: tensors | {name: np.zeros(shape, np.float32)}


def with_non_finite(value, dtype):
    """Converts Q0 to `dtype` and sets one value that is not finite in float32."""

    def change(tensors):
        tensor = tensors[Q0].astype(dtype)
        tensor[3, 17] = value
        return tensors | {Q0: tensor}

    return change


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add(Q0, 4, 48), rf"{Q0} has shape \(4, 48\), expected \(4, 32\): it is an adapter of another base"),
        (add(Q0, 2, 32), rf"{Q0} has shape \(2, 32\), expected \(4, 32\)"),
        (drop(Q0), f"the tensor {Q0} is missing, expected q_proj of every layer"),
        (add(Q0.replace("layers.0", "layers.2"), 4, 32), r"layers\.2\.\S+ has no place in this model"),
        (add("base_model.model.model.embed_tokens.lora_embedding_A", 4, 300), r"lora_embedding_A has no place"),
        (add("base_model.model.lm_head.lora_A.weight", 4, 32), r"lm_head\.lora_A\.weight has no place"),
        (lambda tensors: {}, "holds no tensors"),
        (
            lambda tensors: tensors | {Q0: np.ones((4, 32), np.int8)},
            rf"{Q0} is stored as int8, expected floating-point",
        ),
        (with_non_finite(np.nan, np.float32), rf"adapter_model\.safetensors: the tensor {Q0} holds NaN or infinity"),
        (with_non_finite(-np.inf, np.float16), rf"the tensor {Q0} holds NaN or infinity"),
        (with_non_finite(np.nan, jnp.bfloat16), rf"the tensor {Q0} holds NaN or infinity"),
        (with_non_finite(1e300, np.float64), rf"the tensor {Q0} holds NaN or infinity in float32"),
    ],
)
def test_tensors_that_do_not_match_the_model(saved, tiny, change, message):
    path = saved / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UserError, match=message):
        load_peft(saved, tiny.config)


def test_a_model_of_another_width_is_rejected(saved, tiny):
    with pytest.raises(UserError, match=r"lora_A\.weight has shape \(4, 32\), expected \(4, 64\)"):
        load_peft(saved, dataclasses.replace(tiny.config, embed=64))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", None, r"adapter_config\.json does not exist"),
        ("adapter_config.json", b"{", "is not a PEFT configuration"),
        ("adapter_config.json", b"[]", "is not a PEFT configuration"),
        ("adapter_config.json", b"\xff", "is not a PEFT configuration .not valid UTF-8"),
        ("adapter_config.json", b"[" * 100_000, "is not a PEFT configuration .not valid JSON"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', "is not a PEFT configuration .*'r'"),
        ("adapter_model.safetensors", None, "save the adapter as safetensors"),
        ("adapter_model.safetensors", -100, "is not a complete safetensors file"),
        ("adapter_model.safetensors", b"", "is not a complete safetensors file"),
    ],
)
def test_missing_and_broken_files_are_named(saved, tiny, file, content, message):
    path = saved / file
    data = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(data[:content] if isinstance(content, int) else content)
    with pytest.raises(UserError, match=message):
        load_peft(saved, tiny.config)


def test_existing_files_are_not_overwritten(saved, tiny):
    before = (saved / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is not empty: give a new directory"):
        save_peft(tiny.agent(0).weights, saved, tiny.lora, None)
    assert (saved / "adapter_model.safetensors").read_bytes() == before
