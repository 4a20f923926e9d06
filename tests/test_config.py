import pathlib

import pytest

from mft_jax.config import ExperimentConfig, from_dict, load_config, to_dict, to_yaml
from mft_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_yaml_round_trip(tmp_path):
    config = from_dict(
        {"seed": 3, "lora": {"targets": ["q_proj"]}, "finetuning": {"critic": {"learning_rate": "1e-3"}}}
    )
    assert config.finetuning.critic.learning_rate == 1e-3  # YAML reads 1e-3 as text
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert from_dict(to_dict(ExperimentConfig())) == ExperimentConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path):
    """Each is named after its model and task, and makes its run under that name."""
    config = load_config(path)
    model, _, task = path.stem.rpartition("_")
    expected = "arithmetic" if path.stem in ("quickstart", "arithmetic") else task
    assert config.task.name == expected
    assert config.run_dir == f"runs/{path.stem}"
    if expected != "arithmetic":
        assert model.rstrip("0123456789") in (config.model.path or "").lower()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"debat": {}}, "there is no field debat; did you mean debate"),
        ({"debate": {"agent": 3}}, r"no field debate\.agent; did you mean debate\.agents"),
        ({"debate": 3}, "debate is 3, expected a mapping"),
        ({"seed": 1.5}, r"seed is 1\.5 \(float\), expected int"),
        ({"seed": True}, r"seed is True \(bool\), expected int"),
        ({"finetuning": {"remat": 1}}, "expected bool"),
        ({"finetuning": {"critic_rule": "half"}}, "expected one of 'share', 'released_code'"),
        ({"sampling": {"top_p": 0}}, r"sampling\.top_p is 0\.0, expected above 0"),
        ({"task": {"addition_digits": 0}}, r"task\.addition_digits is 0, expected from 1 to 9"),
        ({"task": {"math_levels": [1, 6]}}, r"task\.math_levels is 6, expected levels from 1 to 5"),
        ({"task": {"math_levels": []}}, r"task\.math_levels is \[\], expected at least one level"),
        ({"iterations": 0}, "iterations is 0, expected at least 1"),
        ({"lora": {"targets": ["attention"]}}, "'attention', expected among q_proj"),
        ({"mesh": {"agent": 2}}, r"debate\.agents is 3, expected a multiple of mesh\.agent = 2"),
    ],
)
def test_a_wrong_value_is_named(raw, message):
    with pytest.raises(UserError, match=message):
        from_dict(raw)


def test_a_file_that_is_not_there_or_not_yaml(tmp_path):
    with pytest.raises(UserError, match="Cannot read the configuration"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("debate: [")
    with pytest.raises(UserError, match=r"broken\.yaml is not valid YAML"):
        load_config(tmp_path / "broken.yaml")
