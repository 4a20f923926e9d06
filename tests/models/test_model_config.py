"""config.json: fields that are not implemented, damaged files, and invalid values."""

import json
import math
import time

import pytest

from mft_jax.errors import UserError
from mft_jax.models.config import parse_model_config, read_model_config
from tests.conftest import TINY
from tests.models.families import FAMILIES, LLAMA3, LONG, SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "field 'quantization_config'"),
        ({"sliding_window": 4096}, "field 'sliding_window' = 4096"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "high_freq_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_a_field_that_is_not_implemented_is_named(change, message):
    with pytest.raises(UserError, match=message):
        parse_model_config(TINY | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "is not a model configuration (it holds [], expected an object)"),
        (b"5", "is not a model configuration (it holds 5, expected an object)"),
        (b"{", "is not a model configuration (not valid JSON: "),
        (b"", "is not a model configuration (not valid JSON: "),
        (b'{"model_type": "\xff"}', "is not a model configuration (not valid UTF-8: "),
        (b'{"model_type": ' + b"[" * 100_000, "is not a model configuration (not valid JSON: "),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "is not a model configuration (not valid JSON: "),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_model_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} {message}")
    assert str(caught.value).endswith(": download the checkpoint again.")


def test_a_missing_config_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist: give a Hugging Face checkpoint directory"):
        read_model_config(tmp_path)


SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings"]  # fmt: skip
NUMBERS = ["rms_norm_eps", "rope_theta", "initializer_range"]


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", ["64", "many", -1, 0, 1.5, 64.0, True, 10**9, 10**400, math.nan, [64], {}])
def test_a_size_must_be_an_integer_within_its_limits(field, value):
    with pytest.raises(UserError, match=rf"config\.json: {field} is .*, expected a whole number from \d to [\d,]+: "):
        parse_model_config(TINY | {field: value})


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", ["1e4", "", -1.0, 0, math.nan, math.inf, True, 1e300, 10**400, [1.0]])
def test_a_number_must_be_above_0_and_finite(field, value):
    with pytest.raises(
        UserError, match=rf"config\.json: {field} is .*, expected a number above 0 and at most 1e\+15: "
    ):
        parse_model_config(TINY | {field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', expected true or false"),
        ({"attention_bias": 1}, "attention_bias is 1, expected true or false"),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\], expected text"),
        ({"rope_scaling": ["llama3"]}, r"rope_scaling is \['llama3'\], expected an object"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type is 3, expected text"),
        ({"rope_scaling": LLAMA3 | {"factor": "8"}}, "factor is '8', expected a number above 0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": math.nan}}, "low_freq_factor is nan, expected a number above 0"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings is 0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor is 4.0, expected less than the high"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}}, "rope_theta is '10000', expected a number"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "lack rope_type or rope_theta"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None, expected a whole number"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None, expected a number above 0"),
        ({"hidden_size": None}, "hidden_size is None, expected a whole number"),
        ({"hidden_size": 30}, r"idden.size \(?(is )?30\)?.* a multiple of the (4|number of) attention heads"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, expected a multiple of num_key_value_heads, 3"),
        ({"head_dim": 7}, "even (number|rotary dimension)"),
    ],
)  # fmt: skip
def test_invalid_values_are_named(change, message):
    """Newer versions of transformers reject some of them first, with other messages."""
    with pytest.raises(UserError, match=message):
        parse_model_config(TINY | change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mistral v0.1", {"sliding_window": 0}, "sliding_window is 0, expected a whole number"),
        ("mistral v0.1", {"sliding_window": "4096"}, "sliding_window is '4096', expected a whole number"),
        ("gemma 2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1, expected a number above 0"),
        ("gemma 2", {"final_logit_softcapping": "30"}, "final_logit_softcapping is '30', expected a number above 0"),
        ("gemma 2", {"layer_types": [["full_attention"]] * 2}, "layer_types is .*, expected a list of texts"),
        ("gemma 2", {"layer_types": "full_attention"}, "layer_types is 'full_attention', expected a list of texts"),
        ("gemma 3", {"rope_local_base_freq": math.inf}, "rope_local_base_freq is inf, expected a number above 0"),
        ("phi-3 128k", {"rope_scaling": LONG | {"long_factor": [1.0, 2.0, 5.0, "20"]}}, "long_factor is .*, expected a list"),
        ("phi-3 128k", {"rope_scaling": LONG | {"long_factor": 5.0}}, "long_factor is 5.0, expected a list of numbers"),
        ("phi-3 128k", {"rope_scaling": LONG | {"long_factor": [1.0]}}, "long_factor.*(expected 4|length 4, got 1)"),
        ("phi-3, partial", {"partial_rotary_factor": 1.5}, "12 of the 8 dimensions of a head are rotated|length 6, got 2"),
        ("phi-3, partial", {"partial_rotary_factor": 0.01}, "0 of the 8 dimensions of a head are rotated|length 0, got 2"),
    ],
)  # fmt: skip
def test_invalid_values_of_family_specific_fields_are_named(name, change, message):
    family, fields = FAMILIES[name]
    raw = SMALL | {"model_type": family} | fields
    parse_model_config(raw)
    with pytest.raises(UserError, match=message):
        parse_model_config(raw | change)


def test_a_billion_layers_are_rejected_immediately(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": 10**9}))
    start = time.perf_counter()
    with pytest.raises(UserError, match="num_hidden_layers is 1000000000, expected a whole number from 1 to 512"):
        read_model_config(tmp_path)
    assert time.perf_counter() - start < 1
