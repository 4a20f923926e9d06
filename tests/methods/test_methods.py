"""The values of the methods, and the settings that they depend on."""

import dataclasses

import numpy as np
import pytest

from mft_jax.config import DebateConfig, ExperimentConfig, FinetuningConfig, PolicyConfig, PreferenceConfig, RoleConfig
from mft_jax.debate import Protocol
from mft_jax.errors import UserError
from mft_jax.finetuning import (
    ClippedPolicyGradient,
    DesirablePreference,
    Dialogues,
    DirectPreference,
    FirstAnswers,
    PooledFirstAnswers,
    likelihood,
    select_examples,
)
from mft_jax.methods import METHODS, make_method
from tests.debate.scripted import make_debate, questions

CONFIG = ExperimentConfig(
    debate=DebateConfig(agents=2, rounds=3),
    finetuning=FinetuningConfig(
        generator=RoleConfig(learning_rate=1e-4, epochs=1),
        critic=RoleConfig(learning_rate=2e-4, epochs=3),
        critic_rule="share",
        critic_mix=0.25,
    ),
)


def test_the_value_of_multiagent_finetuning():
    method = make_method("multiagent_ft", CONFIG)
    generators, critics = ("generator_0", "generator_1"), ("critic_0", "critic_1")
    assert method.adapters == generators + critics
    assert method.protocol == Protocol(speakers=(generators, critics, critics), shows="summary", stops="never")
    assert [(lesson.adapter, lesson.select, lesson.settings.epochs, lesson.field) for lesson in method.lessons] == [
        ("generator_0", FirstAnswers(0), 1, "finetuning.generator"),
        ("generator_1", FirstAnswers(1), 1, "finetuning.generator"),
        ("critic_0", Dialogues(agent=0, share=0.25, answers="last"), 3, "finetuning.critic"),
        ("critic_1", Dialogues(agent=1, share=0.25, answers="last"), 3, "finetuning.critic"),
    ]
    assert [lesson.support for lesson in method.lessons] == [0, 0, 0.5, 0.5]
    assert (method.objective, method.restart) == (likelihood, False)
    assert method == make_method("multiagent_ft", CONFIG)


def test_settings_reach_the_method():
    tuning = dataclasses.replace(
        CONFIG.finetuning, restart_from_base=True, critic_rule="weighted", critic_answers="all", critic_support=0.25
    )
    method = make_method("multiagent_ft", dataclasses.replace(CONFIG, finetuning=tuning))
    assert method.restart
    expected = Dialogues(agent=1, share=0.25, rule="weighted", answers="all")
    assert (method.lessons[3].select, method.lessons[3].support) == (expected, 0.25)
    last = dataclasses.replace(CONFIG, finetuning=dataclasses.replace(tuning, final_turn_only=True))
    assert make_method("multiagent_ft", last).lessons[3].select == dataclasses.replace(expected, answers="last")


@pytest.mark.parametrize("name", ["maca", "maca_kto", "maca_grpo", "maca_single"])
def test_rivals_learn_all_answers_unless_told_otherwise(name):
    for given in (False, True):
        tuning = dataclasses.replace(CONFIG.finetuning, final_turn_only=given)
        lessons = make_method(name, dataclasses.replace(CONFIG, finetuning=tuning)).lessons
        assert {lesson.select.final_turn_only for lesson in lessons} == {given}
        sft = make_method("maca_sft", dataclasses.replace(CONFIG, finetuning=tuning)).lessons
        assert {lesson.select.answers for lesson in sft} == {"last" if given else "all"}


@pytest.mark.parametrize("rule", ["all", "released_code"])
def test_a_mix_that_the_rule_does_not_use_is_refused(rule):
    tuning = dataclasses.replace(CONFIG.finetuning, critic_rule=rule)
    with pytest.raises(
        UserError, match=rf"critic_mix is 0\.25, but finetuning\.critic_rule is {rule}, which does not use"
    ):
        make_method("multiagent_ft", dataclasses.replace(CONFIG, finetuning=tuning))


@pytest.mark.parametrize(("name", "shape"), [("base", (1, 1)), ("majority", (2, 1)), ("debate", (2, 3))])
def test_untuned_methods_have_no_adapters(name, shape):
    method = make_method(name, CONFIG)
    assert (method.protocol.agents, method.protocol.rounds) == shape
    assert method.adapters == ()
    assert {speaker for row in method.protocol.speakers for speaker in row} == {None}


def test_every_method_has_its_name():
    assert all(make_method(name, CONFIG).name == name for name in METHODS)


def test_an_unknown_method_is_an_error_with_the_closest_name():
    with pytest.raises(UserError, match=r"Unknown method 'multagent_ft', .* did you mean 'multiagent_ft'\?"):
        make_method("multagent_ft", CONFIG)


def test_the_ablations_of_multiagent_finetuning():
    full = make_method("multiagent_ft", CONFIG)
    no_summary, no_critic = (make_method(f"multiagent_ft_no_{part}", CONFIG) for part in ("summary", "critic"))
    assert no_summary.protocol == dataclasses.replace(full.protocol, shows="answers")
    assert no_summary.lessons == full.lessons
    assert no_critic.adapters == ("generator_0", "generator_1")
    assert no_critic.protocol.speakers == (("generator_0", "generator_1"),) * 3
    assert no_critic.lessons == full.lessons[:2]


@pytest.mark.parametrize(
    ("name", "rounds", "evaluated"),
    [
        ("single_agent_ft", 3, (2, 3)),
        ("unique_id", 3, (2, 3)),
        ("single_agent_ft_no_debate", 3, (1, 1)),
        ("majority_ft", 1, (2, 1)),
    ],
)
def test_methods_that_finetune_one_model(name, rounds, evaluated):
    method = make_method(name, CONFIG)
    assert method.adapters == ("agent",)
    assert method.protocol.speakers == (("agent", "agent"),) * rounds
    assert (method.evaluation.agents, method.evaluation.rounds) == evaluated
    assert {speaker for row in method.evaluation.speakers for speaker in row} == {"agent"}
    assert method.lessons[0].select == PooledFirstAnswers(2)


def test_agents_of_the_cooperative_method_are_asked_to_join_the_others():
    method, full = make_method("cooperative", CONFIG), make_method("multiagent_ft", CONFIG)
    assert (method.lessons, method.protocol.speakers) == (full.lessons, full.protocol.speakers)
    debate, sampler = make_debate(lambda asked: "summary" if asked.is_summary else "x=1", method.protocol)
    debate.run(questions(1))
    later = [asked.messages[-1]["content"] for asked in sampler.asked if not asked.is_summary and asked.round > 1]
    assert later == ["Other solvers say:\nsummary\njoin"] * 4


def test_one_model_is_told_its_names():
    method, shared = make_method("unique_id", CONFIG), make_method("single_agent_ft", CONFIG)
    assert (method.lessons, method.protocol.speakers) == (shared.lessons, shared.protocol.speakers)
    debate, sampler = make_debate(lambda asked: "summary" if asked.is_summary else "x=1", method.protocol)
    (transcript,), _ = debate.run(questions(1))
    first = [asked.messages[0]["content"] for asked in sampler.asked if asked.round == 1 and not asked.is_summary]
    assert first == ["Agent 1\nWhat is 0?\nsolve", "Agent 2\nWhat is 0?\nsolve"]
    examples = method.lessons[0].select([transcript], str.__eq__, np.random.default_rng(0))
    assert [example["messages"][0]["content"] for example in examples] == first  # it learns with the same names


@pytest.mark.parametrize(
    ("where", "training", "evaluation"),
    [
        ("never", "never", "never"), ("training", "agreement", "never"), ("evaluation", "never", "agreement"),
        ("always", "agreement", "agreement"),
    ],
)  # fmt: skip
def test_debates_can_end_at_agreement(where, training, evaluation):
    debate = dataclasses.replace(CONFIG.debate, stop_at_agreement=where)
    method = make_method("multiagent_ft", dataclasses.replace(CONFIG, debate=debate))
    assert (method.protocol.stops, method.evaluation.stops) == (training, evaluation)
    plain = make_method("multiagent_ft", CONFIG)
    assert dataclasses.replace(method.protocol, stops="never") == plain.protocol
    star = make_method("star", dataclasses.replace(CONFIG, debate=debate))
    assert star.protocol.stops == "correct"  # one agent always agrees with itself
    no_debate = make_method("single_agent_ft_no_debate", dataclasses.replace(CONFIG, debate=debate))
    assert (no_debate.protocol.stops, no_debate.evaluation.rounds) == (training, 1)


def test_majority_at_k_is_a_vote_over_k_answers():
    method = make_method("majority@7", CONFIG)
    assert (method.name, method.protocol.agents, method.protocol.rounds, method.adapters) == ("majority@7", 7, 1, ())
    assert make_method("majority@2", CONFIG).protocol == make_method("majority", CONFIG).protocol
    for name in ("majority@0", "majority@", "majority@x", "debate@3", "majority@10000"):
        with pytest.raises(UserError, match=f"Unknown method '{name}', expected one of base, .*majority@K"):
            make_method(name, CONFIG)


def test_pooled_first_answers_are_those_of_all_agents_that_agree_with_the_vote():
    """The model says a different text each time; agent order within a question, question order between them."""
    method = make_method("single_agent_ft", CONFIG)
    script = lambda asked: "summary" if asked.is_summary else f"{asked.key.hex()}={asked.key[0] % 2}"
    debate, _ = make_debate(script, method.protocol)
    transcripts, _ = debate.run(questions(20))
    sets = select_examples(method.lessons, transcripts, str.__eq__, seed=0, iteration=1)
    expected = [
        (transcript.id, list(agent.messages[:2]))
        for transcript in transcripts
        for agent in transcript.agents
        if agent.answers[0] == transcript.vote
    ]
    assert [(example["id"], example["messages"]) for example in sets["agent"]] == expected
    assert 0 < len(expected) < 40


def with_(part, **changes):
    """CONFIG with changes in one of its parts, "debate" or "finetuning"."""
    return dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **changes)})


@pytest.mark.parametrize("name", ["maca", "maca_kto", "maca_grpo", "maca_sft"])
def test_a_society_whose_agents_keep_their_adapters(name):
    method = make_method(name, CONFIG)
    assert method.protocol.speakers == (("agent_0", "agent_1"),) * 3
    assert method.evaluation == method.protocol
    assert [lesson.select.agent for lesson in method.lessons] == [0, 1]
    role = {"maca": "preference", "maca_kto": "preference", "maca_grpo": "policy", "maca_sft": "generator"}[name]
    assert {lesson.field for lesson in method.lessons} == {f"finetuning.{role}"}
    assert {lesson.settings for lesson in method.lessons} == {getattr(CONFIG.finetuning, role)}


@pytest.mark.parametrize(
    ("name", "trained", "tested"),
    [
        ("maca_single", (2, 3), (2, 3)), ("scpo", (7, 1), (1, 1)), ("ttrl", (7, 1), (1, 1)), ("evol", (7, 1), (1, 1)),
        ("dte", (2, 3), (1, 1)), ("star", (1, 2), (1, 1)),
    ],
)  # fmt: skip
def test_other_methods_of_one_model(name, trained, tested):
    method = make_method(name, with_("debate", samples=7))
    assert method.adapters == ("agent",)
    shapes = [(rules.agents, rules.rounds) for rules in (method.protocol, method.evaluation)]
    assert shapes == [trained, tested]
    assert method.needs_gold == (name == "star")


def test_objectives_have_the_settings_of_their_papers_unless_others_are_given():
    objective = lambda name, config=CONFIG: make_method(name, config).objective
    assert objective("maca") == DirectPreference(beta=0.1, winner_nll=0)
    assert objective("scpo") == DirectPreference(beta=0.1, winner_nll=1)
    assert objective("maca_kto") == DesirablePreference(beta=0.1)
    assert objective("ttrl") == objective("dte") == ClippedPolicyGradient(clip_high=0.2, reference="base")
    assert objective("evol") == ClippedPolicyGradient(clip_high=0.28, entropy=0.003, reference="base")
    assert (
        make_method("scpo", CONFIG).lessons[0].min_vote_share,
        make_method("maca", CONFIG).lessons[0].min_vote_share,
    ) == (0.5, 0)
    preference = PreferenceConfig(beta=0.3, winner_nll=0.25, reference="base")
    policy = PolicyConfig(clip_low=0.1, clip_high=0.4, kl=0.01, entropy=0.0)
    other = with_("finetuning", preference=preference, policy=policy, min_vote_share=0.75)
    assert objective("scpo", other) == DirectPreference(beta=0.3, winner_nll=0.25, reference="base")
    assert objective("evol", other) == ClippedPolicyGradient(clip_low=0.1, clip_high=0.4, kl=0.01, reference="base")
    tuned = [make_method(name, other) for name in METHODS if make_method(name, other).lessons]
    assert {lesson.min_vote_share for method in tuned for lesson in method.lessons if method.name != "star"} == {0.75}


def test_a_student_learns_from_the_society_and_starts_anew():
    method, full = make_method("distill", CONFIG), make_method("multiagent_ft", CONFIG)
    assert method.lessons[:-1] == full.lessons
    assert (method.protocol, method.evaluation.speakers) == (full.protocol, (("student",),))
    assert (method.restarted, full.restarted) == (("student",), ())
    streams = [lesson.stream for lesson in method.lessons]
    assert streams[-1] not in streams[:-1]
    always = make_method("distill", with_("finetuning", restart_from_base=True))
    assert always.restarted == always.adapters


def test_rules_of_debates_reach_every_method():
    debate = {"shows": "nothing", "ties": "none", "voted": "all", "summarizer": "speaker", "training_temperature": 0.7}
    config = with_("debate", evaluation_temperature=0.2, **debate)
    for name in METHODS:
        method = make_method(name, config)
        training, evaluation = method.protocol, method.evaluation
        kept = {"star": "true answer", "multiagent_ft_no_summary": "answers"}
        assert training.shows == kept.get(name, "nothing")
        assert training.ties == evaluation.ties == "none"
        assert training.voted == evaluation.voted == "all"
        assert training.summarizer == "speaker"
        assert (training.temperature, evaluation.temperature) == ((0.7, 0.2) if method.lessons else (None, None))
    assert make_method("majority@5", config).protocol.ties == "none"


def test_agents_can_be_evaluated_in_each_others_place():
    """2 agents, 3 rounds."""
    generators, critics = ("generator_0", "generator_1"), ("critic_0", "critic_1")

    def method(name, speakers):
        return make_method(name, with_("debate", evaluation_speakers=speakers))

    assert method("multiagent_ft", "swapped").evaluation.speakers == (critics, generators, generators)
    assert method("multiagent_ft", "first").evaluation.speakers == (
        ("generator_0", "generator_0"),
        *(("critic_0", "critic_0"),) * 2,
    )
    for speakers in ("swapped", "first"):
        assert method("multiagent_ft", speakers).protocol == make_method("multiagent_ft", CONFIG).protocol
        assert method("debate", speakers) == make_method("debate", CONFIG)
        assert method("single_agent_ft", speakers) == make_method("single_agent_ft", CONFIG)


def test_a_long_answer_has_room_for_the_tokens_of_a_debate():
    """2 agents, 3 rounds, and 2 summaries before each of the last two: 10 texts."""
    assert make_method("long_answer", CONFIG).protocol == Protocol(
        speakers=((None,),), max_new_tokens=10 * CONFIG.sampling.max_new_tokens
    )


def test_a_budget_buys_answers_only_where_it_is_known():
    method = make_method("majority@debate", CONFIG, answers=12)
    assert (method.name, method.protocol.agents, method.protocol.rounds) == ("majority@debate", 12, 1)
    with pytest.raises(UserError, match="majority@iteration_2 can only be one of the `baselines`"):
        make_method("majority@iteration_2", CONFIG)
