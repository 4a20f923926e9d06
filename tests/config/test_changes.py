"""What may change between two starts of one run."""

import pytest

from mft_jax.config import Change, Difference, ExperimentConfig, compare, from_dict, to_dict
from tests.config.settings import FIELDS, nested

PLACES = {"run_dir", "task.data_dir", "task.cache_dir"}
ANY_TIME = {
    "sampling.rows", "sampling.prefill_rows", "sampling.steps_per_dispatch", "sampling.chunk_questions", "mesh.agent",
    "mesh.data", "mesh.model", "mesh.auto", "finetuning.remat", "finetuning.keep_sums",
    "finetuning.agents_at_once", "finetuning.save_every", "logging.tensorboard", "logging.wandb", "logging.wandb_project",
}  # fmt: skip
NEXT_STEP = {
    f"finetuning.{name}"
    for name in (
        "generator.learning_rate", "critic.learning_rate", "preference.learning_rate", "policy.learning_rate",
        "warmup", "weight_decay", "beta1", "beta2", "eps", "clip_norm",
    )
}  # fmt: skip
NEXT_ITERATION = {"feedback.weight"}
GROW = {"iterations", "baselines", "metrics.diversity", "metrics.diversity_questions"}
# A valid value of every kind of setting that is not its default.
OTHER = {
    "method": "debate", "baselines": ["base"], "lora.targets": ["q_proj"], "lora.dtype": "bfloat16",
    "model.param_dtype": "float32", "model.compute_dtype": "float32", "task.math_levels": [5],
    "finetuning.critic_rule": "released_code", "finetuning.critic_answers": "all", "finetuning.critic_support": 0.25,
    "debate.agents": 6, "finetuning.warmup": 0.25, "finetuning.beta1": 0.5,
    "finetuning.beta2": 0.5, "finetuning.eps": 0.5, "finetuning.critic_mix": 0.25, "sampling.top_p": 0.5,
    "sampling.rows": 32, "sampling.prefill_rows": 8, "finetuning.batch_rows": 8, "debate.stop_at_agreement": "always",
    "debate.shows": "answers", "debate.summarizer": "speaker", "debate.ties": "none",
    "debate.voted": "all", "debate.evaluation_speakers": "first",
    "finetuning.preference.reference": "base", "finetuning.policy.reference": "start",
    "finetuning.policy.clip_low": 0.25, "finetuning.min_vote_share": 0.25,
    "metrics.diversity": ["kl"], "logging.wandb": "offline",
}  # fmt: skip
BY_TYPE = {
    bool: True,
    bool | None: True,
    int: 7,
    float: 3.5,
    str: "other",
    int | None: 3,
    float | None: 1.5,
    str | None: "other",
}


def changed(field):
    """The default configuration with another value of one setting."""
    raw = nested(field, OTHER.get(field, BY_TYPE.get(FIELDS[field])))
    default = to_dict(ExperimentConfig())
    if field.startswith("mesh."):  # what it splits must divide
        raw |= {"debate": {"agents": 7}, "sampling": {"rows": 7, "prefill_rows": 7}, "finetuning": {"batch_rows": 7}}
        default |= {"debate": {"agents": 7, "rounds": 2}}
        default["sampling"] |= {"rows": 7, "prefill_rows": 7}
        default["finetuning"]["batch_rows"] = 7
    return from_dict(default), from_dict(raw)


@pytest.mark.parametrize("field", FIELDS)
def test_when_each_setting_may_change(field):
    stored, given = changed(field)
    found = compare(stored, given)
    if field in PLACES:
        assert found == ()
        return
    (difference,) = found
    kinds = {
        Change.ANY_TIME: ANY_TIME, Change.NEXT_STEP: NEXT_STEP, Change.NEXT_ITERATION: NEXT_ITERATION, Change.GROW: GROW
    }  # fmt: skip
    expected = next((kind for kind, fields in kinds.items() if field in fields), Change.NEVER)
    assert (difference.field, difference.change) == (field, expected)
    assert difference.allowed == (
        expected in (Change.ANY_TIME, Change.NEXT_STEP, Change.NEXT_ITERATION)
        or field in ("iterations", "metrics.diversity")
    )


def test_equal_configurations_have_no_differences():
    assert compare(ExperimentConfig(), from_dict({})) == ()


def test_several_differences_stand_in_the_order_of_the_configuration():
    given = from_dict({"sampling": {"temperature": 0.5, "rows": 32}, "seed": 1, "run_dir": "moved"})
    assert compare(ExperimentConfig(), given) == (
        Difference("seed", 0, 1, Change.NEVER, False),
        Difference("sampling.temperature", 1.0, 0.5, Change.NEVER, False),
        Difference("sampling.rows", 64, 32, Change.ANY_TIME, True),
    )


@pytest.mark.parametrize(
    ("field", "stored", "given", "allowed"),
    [
        ("iterations", 2, 5, True),
        ("iterations", 5, 2, False),
        ("baselines", [], ["base"], True),
        ("baselines", ["debate"], ["base", "debate", "majority"], True),
        ("baselines", ["base", "debate"], ["debate", "base"], True),  # the order is as given
        ("baselines", ["base", "debate"], ["base"], False),
        ("baselines", ["base"], ["debate"], False),
    ],
)
def test_only_growth_is_allowed(field, stored, given, allowed):
    (difference,) = compare(from_dict({field: stored}), from_dict({field: given}))
    assert (difference.change, difference.allowed) == (Change.GROW, allowed)
