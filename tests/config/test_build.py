"""Plain values into a configuration: what is of the wrong type or name is said in one sentence."""

import pytest

from mft_jax.config import ExperimentConfig, MeshConfig, from_dict, to_dict
from mft_jax.errors import UserError
from mft_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"debat": {}}, "there is no field debat; did you mean debate"),
        ({"debate": {"agent": 3}}, r"no field debate\.agent; did you mean debate\.agents"),
        ({1: 2}, "there is no field 1; did you mean"),
        ({"debate": 3}, "debate is 3, expected a mapping"),
        ([], r"the file is \[\], expected a mapping"),
        ({"seed": 1.5}, r"seed is 1\.5 \(float\), expected int"),
        ({"seed": True}, r"seed is True \(bool\), expected int"),
        ({"seed": None}, r"seed is None \(NoneType\), expected int"),
        ({"run_dir": 3}, r"run_dir is 3 \(int\), expected str"),
        ({"method": ["debate"]}, r"method is \['debate'\] \(list\), expected str"),
        ({"finetuning": {"remat": 1}}, r"remat is 1 \(int\), expected bool"),
        ({"finetuning": {"eps": True}}, r"eps is True \(bool\), expected float"),
        ({"finetuning": {"eps": "small"}}, "eps is 'small', expected a number"),
        (
            {"finetuning": {"critic_rule": "half"}},
            "critic_rule is 'half', expected one of 'all', 'share', 'released_code'",
        ),
        ({"baselines": "base"}, "baselines is 'base', expected a list"),
        ({"baselines": [["base"]]}, r"baselines is \['base'\] \(list\), expected str"),
        ({"model": {"path": 3}}, r"model\.path is 3 \(int\), expected str"),
    ],
)
def test_a_wrong_value_is_named(raw, message):
    with pytest.raises(UserError, match=message):
        from_dict(raw)


HUGE = {
    "text": "x" * 10**6,
    "lists": [[[[["x"] * 100] * 100] * 100] * 100] * 100,
    "mapping": {"a": "y" * 10**6},
    "number": 16**6000,
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_value_makes_a_short_message(kind):
    with pytest.raises(UserError, match=r"debate\.rounds is ") as raised:
        from_dict({"debate": {"rounds": HUGE[kind]}})
    assert len(str(raised.value)) < 400


def test_a_huge_name_makes_a_short_message():
    with pytest.raises(UserError, match=r"there is no field debate\.rrr.*; did you mean debate\.\w+\?") as raised:
        from_dict({"debate": {"r" * 10**6: 1}})
    assert len(str(raised.value)) < 400
    with pytest.raises(UserError, match=r"there is no field debate\.a number of thousands of digits; did you mean"):
        from_dict({"debate": {HUGE["number"]: 1}})


def test_numbers_of_other_types_are_taken_where_they_are_exact():
    config = from_dict({"finetuning": {"eps": "1e-6", "clip_norm": 2}, "lora": {"targets": ("q_proj",)}})
    assert config.finetuning.eps == 1e-6  # YAML reads 1e-6 as text
    assert (config.finetuning.clip_norm, type(config.finetuning.clip_norm)) == (2.0, float)
    assert config.lora.targets == ("q_proj",)


def test_absent_fields_have_their_defaults():
    assert from_dict({}) == ExperimentConfig()
    assert from_dict({"finetuning": {"critic": {"epochs": 5}}}).finetuning.critic.learning_rate == 1e-3


def test_plain_values_are_plain():
    raw = to_dict(ExperimentConfig())
    assert raw["lora"]["targets"][0] == "q_proj"
    assert isinstance(raw["lora"]["targets"], list)
    assert list(raw)[:5] == ["run_dir", "seed", "iterations", "method", "baselines"]


def test_a_mesh_that_is_chosen_later():
    """In a file, `mesh: auto` is short for `mesh: {auto: true}`."""
    assert from_dict({"mesh": "auto"}).mesh == from_dict({"mesh": {"auto": True}}).mesh == MeshConfig(auto=True)
    with pytest.raises(UserError, match=r"mesh is 'all', expected a mapping of fields"):
        from_dict({"mesh": "all"})
    with pytest.raises(UserError, match=r"not chosen yet \(mesh.auto\): choose them with mft_jax.choose_mesh"):
        make_mesh(MeshConfig(auto=True))
