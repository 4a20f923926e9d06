"""Methods as values."""

import dataclasses

import pytest

from mft_jax.config import DebateConfig, ExperimentConfig, FinetuningConfig, RoleConfig
from mft_jax.debate import Protocol
from mft_jax.errors import UserError
from mft_jax.finetuning import Dialogues, FirstAnswers, likelihood
from mft_jax.methods import METHODS, make_method

CONFIG = ExperimentConfig(
    debate=DebateConfig(agents=2, rounds=3),
    finetuning=FinetuningConfig(
        generator=RoleConfig(learning_rate=1e-4, epochs=1),
        critic=RoleConfig(learning_rate=2e-4, epochs=3),
        critic_mix=0.25,
    ),
)


def test_multiagent_finetuning_is_this_value():
    method = make_method("multiagent_ft", CONFIG)
    generators, critics = ("generator_0", "generator_1"), ("critic_0", "critic_1")
    assert method.adapters == generators + critics
    assert method.protocol == Protocol(speakers=(generators, critics, critics), shows="summary", stops="never")
    assert [(lesson.adapter, lesson.select, lesson.settings.epochs, lesson.field) for lesson in method.lessons] == [
        ("generator_0", FirstAnswers(0), 1, "finetuning.generator"),
        ("generator_1", FirstAnswers(1), 1, "finetuning.generator"),
        ("critic_0", Dialogues(agent=0, share=0.25), 3, "finetuning.critic"),
        ("critic_1", Dialogues(agent=1, share=0.25), 3, "finetuning.critic"),
    ]
    assert (method.objective, method.restart) == (likelihood, False)
    assert method == make_method("multiagent_ft", CONFIG)


def test_settings_reach_the_method():
    tuning = dataclasses.replace(
        CONFIG.finetuning, restart_from_base=True, critic_rule="released_code", final_turn_only=True
    )
    method = make_method("multiagent_ft", dataclasses.replace(CONFIG, finetuning=tuning))
    assert method.restart
    expected = Dialogues(agent=1, share=0.25, rule="released_code", final_turn_only=True)
    assert method.lessons[3].select == expected


@pytest.mark.parametrize(("name", "shape"), [("base", (1, 1)), ("majority", (2, 1)), ("debate", (2, 3))])
def test_untuned_methods_have_no_adapters(name, shape):
    method = make_method(name, CONFIG)
    assert (method.protocol.agents, method.protocol.rounds) == shape
    assert method.adapters == ()
    assert {speaker for row in method.protocol.speakers for speaker in row} == {None}


def test_every_method_has_its_name():
    assert all(make_method(name, CONFIG).name == name for name in METHODS)


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"Unknown method 'multagent_ft', .* did you mean 'multiagent_ft'\?"):
        make_method("multagent_ft", CONFIG)
