"""Methods of this field run from debate to evaluation, with the scores and the training of a tiny random model.

Its answers are written by a script, so that no sampling program is compiled; they fall into three classes.
"""

import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest

from mft_jax.budget import Budget, check_baselines
from mft_jax.config import (
    DebateConfig,
    ExperimentConfig,
    FeedbackConfig,
    FinetuningConfig,
    LoggingConfig,
    LoraConfig,
    MeshConfig,
    ModelSource,
    PolicyConfig,
    PreferenceConfig,
    RoleConfig,
    SamplingConfig,
    TaskConfig,
)  # fmt: skip
from mft_jax.errors import UserError
from mft_jax.exchange import export
from mft_jax.experiment import Experiment
from mft_jax.finetuning.feedback import Verdict
from mft_jax.methods import make_method
from mft_jax.metrics.flops import sampling_flops
from mft_jax.parallel.mesh import make_mesh
from mft_jax.programs import Programs
from mft_jax.runs import layout
from mft_jax.runs.adapters import read_adapters
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.feedback import add_verdicts
from mft_jax.runs.review import Review
from mft_jax.runs.training_sets import training_sets_cost
from mft_jax.sampling import Completion, Usage
from mft_jax.session import Session
from mft_jax.setup import Setup, check_gold
from mft_jax.steps import Steps
from mft_jax.tasks import Question, Task
from mft_jax.tracking import open_trackers
from tests.debate.scripted import PROMPTS
from tests.finetuning.conftest import chat as chat_fixture
from tests.small_run import Remarks, lines
from tests.tracking.events import scalars

chat = chat_fixture

RATES = {"learning_rate": 1e-2, "epochs": 1}
CONFIG = ExperimentConfig(
    baselines=(),
    task=TaskConfig(train_questions=6, eval_questions=3),
    lora=LoraConfig(rank=4, alpha=8.0),
    debate=DebateConfig(agents=2, samples=4),
    sampling=SamplingConfig(max_new_tokens=8, rows=6, prefill_rows=6, chunk_questions=6),
    finetuning=FinetuningConfig(
        generator=RoleConfig(**RATES), critic=RoleConfig(**RATES), preference=PreferenceConfig(**RATES),
        policy=PolicyConfig(**RATES), critic_rule="all", batch_rows=2, row_tokens=256,
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScriptedSession(Session):
    """A session whose answers are two letters that depend on the random key, and whose other parts are real."""

    def sampler(self, config, lanes, lengths=None):
        return self

    def sample(self, requests, society=None, **told):
        texts = ["".join(chr(97 + byte % 26) for byte in request.key.tobytes()[:2]) for request in requests]
        ids = [tuple(self.chat.tokenizer(text)["input_ids"]) for text in texts]
        lengths = tuple((len(request.prompt), len(own) + 1) for request, own in zip(requests, ids, strict=True))
        return [Completion(own, "stop", len(own) + 1) for own in ids], [Usage(True, lengths, 0.0)]


@pytest.fixture(scope="module")
def session(tiny, chat, tmp_path_factory):
    mesh = make_mesh(MeshConfig())
    programs = Programs(tiny.graphdef, tiny.config, mesh)
    return ScriptedSession(ModelSource(), tmp_path_factory.mktemp("none"), tiny.config, chat, mesh, tiny.base, programs)


def make_task(gold="b", train=6):
    ask = lambda kind, count: tuple(Question(f"{kind}{i}", f"{kind} {i}?", gold) for i in range(count))
    return Task(
        "classes", ask("train", train), ask("eval", 3), parse=lambda text: "abc"[sum(map(ord, text)) % 3],
        equivalent=str.__eq__, prompts=PROMPTS,
    )  # fmt: skip


def run(session, path, config, task=None):
    """(the directory of a finished run, what it said)."""
    config = dataclasses.replace(config, run_dir=str(path), lora=session.resolved(config.lora))
    setup = Setup(config, session, task or make_task(), make_method(config.method, config))
    directory, remarks = RunDirectory(path), Remarks()
    if directory.take(config, remarks.say) == "new":
        directory.create(config)
    directory.keep_questions(setup.task, remarks.say)
    trackers = open_trackers(config, directory.store, remarks.say)
    try:
        Experiment(setup, directory, remarks, trackers=trackers).run()
        directory.finish()
    finally:
        trackers.close()
        directory.release()
    return directory, remarks.said


# One method for each way of training: the likelihood, preferences, the policy gradient, a student beside its society. The
# others differ from these in their selectors and objectives, which have their own tests.
@pytest.mark.parametrize("name", ["star", "maca", "evol", "distill"])
def test_a_run(session, tmp_path, name):
    config = dataclasses.replace(CONFIG, method=name, logging=LoggingConfig(tensorboard=True))
    method = make_method(name, config)
    directory, said = run(session, tmp_path, config)
    sets = {adapter: lines(directory.training_set_file(1, adapter)) for adapter in method.adapters}
    assert all(sets.values()), said
    objective, own = method.objective, sets[method.adapters[0]][0]
    assert [field in own for field in ("reference", "old")] == [objective.uses_reference, objective.uses_old]
    losses = [record for record in lines(directory.metrics_file) if record["iteration"] == 1]
    assert losses
    assert all(np.isfinite(record[f"{adapter}/loss"]) for record in losses[:1] for adapter in method.adapters)
    if name == "maca":  # before the first step, both dialogues of a pair are as likely as under the reference
        assert losses[0]["loss"] == pytest.approx(np.log(2), rel=1e-3)
    assert (training_sets_cost(directory.store, 1).flops > 0) == objective.uses_signals
    (result,) = json.loads(directory.results_file.read_text())
    assert (result["method"], result["iteration"], result["n"]) == (name, 1, 3)
    single = method.evaluation.agents == 1
    assert (result["diversity"] is None) == single
    shown = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in shown["iteration_1", "loss"]] == [record["step"] for record in losses]
    assert [loss for _, loss in shown["iteration_1", "loss"]] == pytest.approx([record["loss"] for record in losses])
    assert shown[f"results/{name} on {result['task']}", "results/accuracy"] == [(1, pytest.approx(result["accuracy"]))]


def test_a_second_start_reads_the_log_probabilities_from_disk(session, tmp_path, monkeypatch):
    """Killed between the training sets and the first step, the run scores nothing again and ends with the same bytes."""
    config = dataclasses.replace(CONFIG, method="maca")
    whole, _ = run(session, tmp_path / "whole", config)
    made = lambda directory: (
        {
            path.name: path.read_bytes()
            for path in (directory.path / "iteration_1").rglob("*.jsonl")
            if "journal" not in path.name  # it has times
        }
        | {"adapters": [leaf.tobytes() for leaf in jax.tree.leaves(read_adapters(directory, 1, session.model)[1])]}
    )
    again = RunDirectory(tmp_path / "again")
    setup = Setup(
        dataclasses.replace(config, run_dir=str(again.path), lora=session.resolved(config.lora)), session, make_task(),
        make_method("maca", config),
    )  # fmt: skip
    again.take(setup.config)
    again.create(setup.config)
    experiment = Experiment(setup, again, Remarks())
    society = experiment.initial_society()
    first = experiment.select(1, experiment.debate(1, society), sampled=society, start=society)
    again.release()
    monkeypatch.setattr("mft_jax.training_data.score_texts", lambda *_, **__: pytest.fail("scored again"))
    run(session, again.path, config)
    assert made(again) == made(whole)
    (exported,) = export(whole.path, tmp_path / "chats", to="chat-jsonl", agents=["agent_0"])
    (first_pair, *_), own = lines(exported), first["agent_0"][0]
    assert first_pair == {"messages": own["messages"], "rejected": own["counterpart"]}
    assert lines(again.training_set_file(1, "agent_0")) == first["agent_0"]


def files_of(directory, model):
    """What must be the same bytes however often a run was killed."""
    folder = directory.path / "iteration_1"
    files = {path.name: path.read_bytes() for path in folder.rglob("*.json*") if "journal" not in path.name}
    files.pop("training_sets.json")  # it has times
    return files | {"adapters": [leaf.tobytes() for leaf in jax.tree.leaves(read_adapters(directory, 1, model)[1])]}


def verdict(id, answer, day=1):
    return Verdict(id=id, time=f"2026-01-{day:02}T00:00:00Z", answer=answer)


def test_verdicts_of_people_change_what_is_learned(session, tmp_path, monkeypatch):
    """Also in a run that is killed before its training sets are written, and is given more verdicts before it goes on."""
    config = dataclasses.replace(CONFIG, method="maca", feedback=FeedbackConfig(weight=3.0))
    plain, _ = run(session, tmp_path / "plain", config)
    debates = {own["id"]: own for own in lines(plain.debate_file(1))}
    last = {id: [agent["answers"][-1] for agent in own["agents"]] for id, own in debates.items()}
    contested = next(id for id, answers in last.items() if len(set(answers)) == 2)
    (other,) = set(last[contested]) - {debates[contested]["vote"]}
    made = [own for own in Review(plain.path).simulated(2, "worth", 0) if own.id != contested][:1]
    verdicts = [
        *made,
        verdict(contested, debates[contested]["vote"]),
        verdict(contested, other, day=2),
        verdict("no", "a"),
    ]

    whole = RunDirectory(tmp_path / "whole")
    whole.path.mkdir()
    add_verdicts(whole.store, verdicts, "classes")
    whole, said = run(session, whole.path, config)
    assert sum("contradict" in sentence or "no such question" in sentence for sentence in said) == 2
    before, after = (
        [own for own in lines(directory.training_set_file(1, "agent_0")) if own["id"] == contested]
        for directory in (plain, whole)
    )
    (result,) = json.loads(whole.results_file.read_text())
    assert result["feedback"] == {"questions": 2, "verdicts": 2, "simulated": 1, "conflicts": 1, "weight": 3.0}
    assert before != after
    assert {own["weight"] for own in after} == {3.0}
    assert before[0]["messages"] == after[0]["counterpart"]  # the pair is turned around
    (unchanged,) = json.loads(plain.results_file.read_text())
    assert "feedback" not in unchanged
    assert not plain.store.exists(layout.used_feedback(1))

    killed = RunDirectory(tmp_path / "killed")
    killed.path.mkdir()
    add_verdicts(killed.store, verdicts, "classes")
    with monkeypatch.context() as patch:
        patch.setattr("mft_jax.experiment.write_training_sets", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(session, killed.path, config)
    add_verdicts(killed.store, [verdict(contested, "c", day=3)], "classes")
    killed, _ = run(session, killed.path, dataclasses.replace(config, feedback=FeedbackConfig(weight=9.0)))
    assert files_of(killed, session.model) == files_of(whole, session.model)


def test_agents_that_never_disagree_keep_their_weights(session, tmp_path):
    task = dataclasses.replace(make_task(), parse=lambda text: "a")
    directory, said = run(session, tmp_path, dataclasses.replace(CONFIG, method="maca"), task)
    for name in ("agent_0", "agent_1"):
        assert lines(directory.training_set_file(1, name)) == []
        assert f"{name}: no training examples in iteration 1; it keeps its weights." in said


def test_a_student_starts_anew_while_the_society_goes_on(session, tmp_path):
    """A student that learns nothing in the second iteration is as it was at first; the society is as it was trained."""
    task = make_task()
    config = dataclasses.replace(CONFIG, method="distill")
    setup = Setup(
        dataclasses.replace(config, lora=session.resolved(config.lora)), session, task, make_method("distill", config)
    )
    start = setup.fresh_society()
    with pytest.raises(ValueError, match=r"examples has no entry for .*student; give an empty list"):
        Steps(setup).finetune(start, {})
    with pytest.raises(ValueError, match="iteration is 0, expected an integer of at least 1"):
        Steps(setup, iteration=0)
    moved = dataclasses.replace(start, adapters=start.stacked._replace(
        weights={k: {n: leaf + 1 for n, leaf in v.items()} for k, v in start.stacked.weights.items()}
    ))  # fmt: skip
    mixed = Steps(setup, iteration=2).begin(moved, start)
    leaf = lambda society: np.asarray(society.stacked.weights["q_proj"]["b"])
    student = start.index("student")
    np.testing.assert_array_equal(leaf(mixed)[student], leaf(start)[student])
    others = [i for i in range(len(start.names)) if i != student]
    np.testing.assert_array_equal(leaf(mixed)[others], leaf(moved)[others])
    assert moved.with_adapters_of(start, ()) is moved
    assert moved.with_adapters_of(start, start.names) is start


def test_votes_at_the_cost_of_a_debate_and_of_an_iteration(session, tmp_path):
    baselines = ("majority@debate", "base", "debate", "majority@iteration_1")
    config = dataclasses.replace(CONFIG, method="majority_ft", baselines=baselines)
    directory, _ = run(session, tmp_path, config)
    results = {row["method"]: row for row in json.loads(directory.results_file.read_text())}
    one = results["base"]["flops"]
    for name, budget in (("majority@debate", "debate"), ("majority@iteration_1", "majority_ft")):
        answers = len(lines(directory.baseline_file(name))[0]["agents"])
        assert answers == round(results[budget]["flops"] / one)
        assert answers > 2
    said = lines(directory.baseline_file("base"))
    turns = [own["agents"][0]["turns"][0] for own in said]
    model = session.model
    assert one == sum(
        sampling_flops(model, CONFIG.lora, prompt_tokens=t["prompt_tokens"], new_tokens=t["new_tokens"]) for t in turns
    )


def test_baselines_whose_budget_is_not_known_are_refused():
    refused = lambda *names, **other: dataclasses.replace(CONFIG, baselines=names, **other)
    with pytest.raises(UserError, match=r"majority@debate needs the cost of one answer: add `base`"):
        check_baselines(refused("debate", "majority@debate"))
    with pytest.raises(UserError, match=r"majority@debate needs the cost of debate: add `debate`"):
        check_baselines(refused("base", "majority@debate"))
    with pytest.raises(
        UserError, match=r"needs iteration 2, but the last one of the method maca is 1: increase `iterations`"
    ):
        check_baselines(refused("base", "majority@iteration_2", method="maca"))
    with pytest.raises(UserError, match="Unknown method 'majorty'"):
        check_baselines(refused("majorty"))
    later = refused("base", "majority@iteration_2", method="maca", iterations=2)
    check_baselines(later)
    assert Budget.of("majority@iteration_2", later) == Budget(2, "maca")


def test_a_method_that_needs_true_answers_is_refused_without_them():
    method, task = make_method("star", CONFIG), make_task(gold=None)
    with pytest.raises(UserError, match=r"method star learns from the true answers .* but 6 of 6 have none: give them"):
        check_gold(method, task)
    check_gold(make_method("ttrl", CONFIG), task)
    check_gold(method, make_task())
