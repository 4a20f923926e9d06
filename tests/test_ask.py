"""Asking a run or a model."""

import copy
import dataclasses
import json

import pytest

from mft_jax import ask
from mft_jax.ask import NAME, open_panel
from mft_jax.base_model import CHECKPOINT
from mft_jax.config import AskOptions, TaskConfig, from_dict, to_yaml
from mft_jax.errors import UserError
from mft_jax.methods import make_method
from mft_jax.runs.directory import RunDirectory
from mft_jax.steps import load_society
from mft_jax.tasks import Question, answers, load_task
from mft_jax.tasks.load import GENERATED, NAMES
from mft_jax.tasks.rules import without_questions
from tests.small_run import MODEL, SMALL

TEXT = "What is 3+4*5+6-2*3?"


class Told:
    """A watcher that notes what it is told."""

    def __init__(self):
        self.parts, self.steps = {}, []

    def on_text(self, debate, request, text):
        self.parts.setdefault((request.kind, request.round, request.agent), []).append(text)

    def on_step(self, debate, requests, texts):
        self.steps.append((requests[0].kind, requests[0].round, texts))


@pytest.fixture(scope="module")
def panel(finished, answering):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "STEPS_PER_DISPATCH", 2)  # the answers of this model have six tokens
        return open_panel(str(finished[0].path), session=answering)


def test_the_agents_of_a_run_debate_as_in_its_evaluation(finished, answering, panel):
    """The same texts as the evaluation debate of the last iteration gives to the same question and seed."""
    asked = Told()
    found = panel.ask(TEXT, asked)
    setup, society = load_society(finished[0].path, session=answering)
    debate = setup.debate(society, NAME, setup.method.evaluation)
    (expected,), _ = debate.run([Question(NAME, TEXT, None)])
    assert found.transcript == expected
    assert panel.iteration == SMALL.iterations
    assert panel.describe() == {
        "model": str(MODEL), "run": str(finished[0].path), "method": "multiagent_ft", "iteration": 2,
        "task": "arithmetic", "seed": 0, "speakers": [["generator_0", "generator_1"], ["critic_0", "critic_1"]],
    }  # fmt: skip
    kinds = [(kind, round) for kind, round, _ in asked.steps]
    assert kinds == [("round", 1), ("summary", 2), ("round", 2)]
    for kind, round, texts in asked.steps:
        for agent, text in enumerate(texts):
            parts = asked.parts[kind, round, agent]
            assert parts[0] == ""
            assert parts[-1] == text
            assert len(parts) > 2  # it grew
    turns = [turn for agent in expected.agents for turn in agent.turns] + list(expected.summary_turns[0])
    assert found.cost.new_tokens == sum(turn.new_tokens for turn in turns)
    assert found.cost.prompt_tokens == sum(turn.prompt_tokens for turn in turns)
    assert found.cost.flops > 0


def test_a_temperature_replaces_that_of_the_evaluations_of_the_run(finished):
    run = copy.copy(RunDirectory(finished[0].path))
    cold = dataclasses.replace(SMALL, debate=dataclasses.replace(SMALL.debate, evaluation_temperature=0.2))
    run.config = lambda: cold
    for given, expected in ((None, 0.2), (0.0, 0.0)):
        config = ask._config_of(str(run.path), AskOptions(temperature=given), run)
        own = make_method(config.method, config).evaluation.temperature
        assert (config.sampling.temperature if own is None else own) == expected


def test_another_iteration_method_and_seed(finished, answering, panel):
    path, newest = str(finished[0].path), panel.ask(TEXT)
    first = open_panel(path, AskOptions(iteration=1), answering)
    assert first.iteration == 1
    untuned = open_panel(path, AskOptions(method="majority@3", seed=5), answering)
    assert untuned.describe()["speakers"] == [[None, None, None]]
    assert untuned.iteration is None
    found = untuned.ask(TEXT)
    assert len(found.transcript.agents) == 3
    assert found.transcript.agents[0] != newest.transcript.agents[0]
    again = json.loads(json.dumps(untuned.describe() | found.to_dict()))
    assert (again["question"], again["vote"], again["seed"]) == (TEXT, found.transcript.vote, 5)
    assert again["agreeing"] == sum(agent["answers"][-1] == again["vote"] for agent in again["agents"])
    assert again["cost"]["new_tokens"] == sum(
        turn["new_tokens"] for agent in again["agents"] for turn in agent["turns"]
    )


def test_a_model_and_none(shipped):
    session = dataclasses.replace(shipped, source=dataclasses.replace(shipped.source, path=str(CHECKPOINT)))
    general, own = open_panel(str(CHECKPOINT), session=session), open_panel(session=shipped)
    assert (general.describe()["model"], general.setup.task.name) == (str(CHECKPOINT), "jsonl")
    assert (own.describe()["model"], own.setup.task.name) == ("the base model in the package", "arithmetic")
    assert own.describe()["speakers"] == [[None] * 3] * 2
    assert own.setup.config.sampling.max_new_tokens == 512
    options = AskOptions(method="multiagent_ft", agents=2, rounds=1, task="gsm8k", temperature=0.5, max_new_tokens=9)
    other = open_panel(None, options, shipped)
    assert other.describe()["speakers"] == [[None, None]]
    assert (other.setup.task.name, other.setup.sampling.temperature, other.setup.sampling.max_new_tokens) == (
        "gsm8k",
        0.5,
        9,
    )


def test_the_rules_of_a_task_are_those_of_its_questions():
    for name in GENERATED:
        task = load_task(TaskConfig(name=name, train_questions=1, eval_questions=1), 0)
        assert without_questions(name) == dataclasses.replace(task, train=(), eval=())
    for name in NAMES:
        task = without_questions(name)
        assert (task.name, task.train, task.eval, task.equivalent) == (name, (), (), answers.equivalent)
        assert task.answer(r"so \boxed{B}" if name == "mmlu" else r"so \boxed{12}", True) in ("12", "B")


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (" \n", "The question is empty"),
        ("2 \udcff 3", "The question is not valid UTF-8"),
        ("1+" * 4000 + "1", "tokens with its prompt, but the model's context holds"),
    ],
)
def test_questions_that_cannot_be_asked(panel, question, reason):
    with pytest.raises(UserError, match=reason):
        panel.ask(question)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"iteration": 3}, "has no finished iteration 3: there are 1, 2"),
        ({"method": "multiagnt_ft"}, "did you mean 'multiagent_ft'"),
        ({"method": "majority@debate"}, "can only be one of the `baselines`"),
        ({"method": "maca"}, "needs the adapter"),
        ({"agents": 3}, "needs the adapter critic_2, but"),
        ({"method": "debate", "iteration": 1}, "--iteration is 1, but the method debate is not finetuned"),
        ({"task": "gsm9k"}, "did you mean 'gsm8k'"),
        ({"temperature": -1.0}, "sampling.temperature is -1.0, expected 0"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens is 0, expected at least 1"),
    ],
)
def test_options_that_a_run_refuses(finished, answering, options, reason):
    with pytest.raises(UserError, match=reason):
        open_panel(str(finished[0].path), AskOptions(**options), answering)


def test_what_can_not_be_asked(tmp_path, shipped):
    def refused(source, session=None, **options):
        with pytest.raises(UserError) as caught:
            open_panel(str(source), AskOptions(**options), session)
        return str(caught.value)

    assert "is neither a run (it has no config.yaml) nor a model (it has no config.json)" in refused(tmp_path)
    assert "There is no checkpoint at" in refused(tmp_path / "nowhere")
    assert "The session was opened for the model" in refused(CHECKPOINT, shipped)
    assert "--iteration is 1, but a model has no iterations" in refused(CHECKPOINT, iteration=1)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text(to_yaml(from_dict({})))
    assert "new has no finished iteration yet: let `mft run` finish one first." in refused(tmp_path / "new")
    (tmp_path / "grid.json").write_text("{}")
    assert "grid.json is damaged" in refused(tmp_path)
