"""Defaults, limits and help of the settings."""

import pathlib
import typing

import pytest
import yaml

from mft_jax import config
from mft_jax.config import ExperimentConfig, from_dict, load_config, to_dict, to_yaml, validate
from mft_jax.errors import UserError
from tests.config.settings import FIELDS, nested

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.yaml"))


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


def test_the_default_is_valid_and_comes_back_from_yaml():
    default = ExperimentConfig()
    validate(default)
    assert from_dict(to_dict(default)) == default
    assert from_dict(yaml.safe_load(to_yaml(default))) == default
    assert (default.method, default.baselines) == ("multiagent_ft", ("base", "majority", "debate"))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("seed", 2**63, f"from -{2**63:,} to {2**63 - 1:,}"),
        ("iterations", 0, "at least 1"),
        ("baselines", ["base", "debate", "base"], "every value once"),
        ("lora.rank", 10**30, "at most 1,000,000,000"),
        ("lora.alpha", 0, "above 0"),
        ("lora.alpha", -2.0, "above 0"),
        ("lora.alpha", 1e7, "at most 1,000,000"),
        ("lora.targets", ["attention"], "one of q_proj, k_proj"),
        ("lora.targets", [], "at least one layer"),
        ("lora.targets", ["q_proj", "q_proj"], "every value once"),
        ("task.train_questions", -1, "at least 0"),
        ("task.eval_questions", 0, "at least 1"),
        ("task.addition_digits", 0, "from 1 to 9"),
        ("task.math_levels", [1, 6], "from 1 to 5"),
        ("task.math_levels", [], "at least one level"),
        ("debate.agents", 0, "at least 1"),
        ("debate.rounds", 0, "at least 1"),
        ("sampling.temperature", -0.1, "at least 0.001"),
        ("sampling.temperature", 1e-9, "0, or at least 0.001"),
        ("sampling.temperature", 1e6, "at most 100"),
        ("sampling.top_p", 0, "above 0 and at most 1"),
        ("sampling.top_p", 1.01, "at most 1"),
        ("sampling.max_new_tokens", 0, "at least 1"),
        ("sampling.rows", 0, "at least 1"),
        ("sampling.prefill_rows", -1, "at least 1"),
        ("sampling.steps_per_dispatch", 0, "at least 1"),
        ("sampling.chunk_questions", 0, "at least 1"),
        ("finetuning.generator.learning_rate", 0, "above 0"),
        ("finetuning.critic.learning_rate", 1001, "at most 1,000"),
        ("finetuning.critic.epochs", 0, "at least 1"),
        ("finetuning.batch_rows", 0, "at least 1"),
        ("finetuning.row_tokens", 0, "at least 1"),
        ("finetuning.warmup", 1, "below 1"),
        ("finetuning.warmup", -0.1, "at least 0"),
        ("finetuning.weight_decay", -1e-3, "at least 0"),
        ("finetuning.beta1", 1, "below 1"),
        ("finetuning.beta1", -0.1, "at least 0"),
        ("finetuning.beta2", 2, "below 1"),
        ("finetuning.eps", 0, "at least 1e-30"),
        ("finetuning.eps", -1, "at least 1e-30"),
        ("finetuning.eps", 2, "at most 1"),
        ("finetuning.clip_norm", 0, "above 0"),
        ("finetuning.critic_mix", 1.5, "at most 1"),
        ("finetuning.save_every", 0, "at least 1"),
        ("finetuning.agents_at_once", 0, "at least 1"),
        ("mesh.agent", 0, "at least 1"),
        ("mesh.data", 0, "at least 1"),
        ("mesh.model", 0, "at least 1"),
    ],
)
def test_a_value_outside_its_limits_is_refused(field, value, expected):
    with pytest.raises(UserError) as raised:
        from_dict(nested(field, value), "my.yaml")
    assert str(raised.value).startswith(f"my.yaml: {field} is ")
    assert expected in str(raised.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", float("nan"), float("inf"), 1e300, 10**400])
@pytest.mark.parametrize("field", [name for name, hint in FIELDS.items() if hint is float])
def test_every_float_is_finite(field, value):
    with pytest.raises(UserError, match=f"{field} is .*, expected a (finite )?number"):
        from_dict(nested(field, value))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("sampling.temperature", [0, 0.001, 0.7, 100]),
        ("sampling.top_p", [1e-6, 1]),
        ("finetuning.warmup", [0, 0.999]),
        ("finetuning.beta1", [0, 0.999]),
        ("finetuning.weight_decay", [0, 0.1]),
        ("finetuning.clip_norm", [1e-3, 1e30]),
        ("task.train_questions", [0]),
        ("seed", [-(2**63), 2**63 - 1]),
        ("lora.targets", [["qkv_proj", "o_proj"]]),
        ("finetuning.agents_at_once", [None, 1]),
    ],
)
def test_values_at_the_limits_are_accepted(field, values):
    for value in values:
        found = to_dict(from_dict(nested(field, value)))
        for name in field.split("."):
            found = found[name]
        assert found == value


def test_a_configuration_made_in_python_is_checked_as_well():
    with pytest.raises(UserError, match=r"^configuration: lora\.alpha is nan, expected a finite number\.$"):
        validate(ExperimentConfig(lora=config.LoraConfig(alpha=float("nan"))))
    with pytest.raises(UserError, match=r"^command line: iterations is '3' \(str\), expected int\.$"):
        validate(ExperimentConfig(iterations="3"), "command line")
    with pytest.raises(UserError, match="mesh is None, expected a mapping"):
        validate(ExperimentConfig(mesh=None))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"mesh": {"agent": 2}}, r"debate\.agents is 3, expected a multiple of mesh\.agent = 2"),
        ({"mesh": {"data": 3}}, r"sampling\.rows is 64, expected a multiple of mesh\.data = 3"),
        ({"mesh": {"data": 3}, "sampling": {"rows": 3}}, r"sampling\.prefill_rows is 16, expected a multiple of mesh"),
        (
            {"mesh": {"data": 3}, "sampling": {"rows": 3, "prefill_rows": 3}},
            r"finetuning\.batch_rows is 4, expected a multiple of mesh\.data = 3",
        ),
    ],
)
def test_what_is_split_over_devices_divides_evenly(raw, message):
    with pytest.raises(UserError, match=message):
        from_dict(raw)


def test_every_setting_is_explained():
    """The text below a field becomes the command's help, so none may be missing."""
    source = pathlib.Path(typing.cast(str, config.fields.__file__)).read_text().splitlines()
    for name in {name.rpartition(".")[2] for name in FIELDS}:
        starts = [n for n, line in enumerate(source) if line.startswith(f"    {name}: ")]
        assert starts, name
        for start in starts:
            end = next(n for n in range(start, len(source)) if not source[n].endswith(("[", ",")) and "= " in source[n])
            text = source[end + 1]
            assert text.startswith('    """'), source[start]
            assert text.endswith('"""'), f"the help of {name} would be shown with a line break"
