"""The whole method on a handful of questions, with a tiny model, through the Python API and the command."""

import dataclasses
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from mft_jax.config import (
    MeshConfig,
    TaskConfig,
)
from mft_jax.debate import Transcript
from mft_jax.errors import UserError
from mft_jax.experiment import Experiment, evaluate, run
from mft_jax.prompts import GSM8K
from mft_jax.report.outlook import describe_outlook
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import Result, read_results, write_results
from mft_jax.runs.survey import find_damage, list_stages
from mft_jax.session import open_session
from mft_jax.setup import prepare
from mft_jax.stages import describe_example
from mft_jax.tasks import gsm8k, load_task
from tests.small_run import SMALL, Remarks, adapters_of, lines


def test_results_count_every_method_and_its_cost(finished):
    directory, results, _ = finished
    rows = [(r.method, r.iteration, r.task, r.n) for r in results]
    untuned = [(method, 0, "arithmetic", 8) for method in ("base", "majority", "debate")]
    assert rows == [*untuned, ("multiagent_ft", 1, "arithmetic", 8), ("multiagent_ft", 2, "arithmetic", 8)]
    raw = json.loads(directory.results_file.read_text())
    for result, row in zip(results, raw, strict=True):
        assert Result.from_dict(row) == result
        assert row["stderr"] == pytest.approx(math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 8))
        assert min(row[k] for k in ("prompt_tokens", "new_tokens", "flops", "device_seconds", "wall_seconds")) > 0
    assert raw[0]["diversity"] is None
    assert set(raw[4]["diversity"]) == {"consensus", "diversity"}
    assert raw[2]["new_tokens"] > raw[1]["new_tokens"] > raw[0]["new_tokens"]


def test_the_flops_that_are_reported_are_those_of_the_ledger(finished):
    _, results, remarks = finished
    evaluations = sum(result.ledger.evaluation.flops for result in results)
    assert sum(remarks.flops.values()) == results[-1].ledger.training.flops + evaluations
    finetuning = [flops for name, flops in remarks.flops.items() if name.endswith("finetuning")]
    assert finetuning == [result.ledger.finetuning.flops for result in results if result.iteration]


def test_transcripts_hold_the_whole_debate(finished):
    directory, results, _ = finished
    debates = lines(directory.debate_file(1))
    assert [d["id"] for d in debates] == [q.id for q in load_task(SMALL.task, SMALL.seed).train]
    for debate in debates:
        assert len(debate["summaries"]) == 1
        for n, agent in enumerate(debate["agents"]):
            assert [m["role"] for m in agent["messages"]] == ["user", "assistant"] * 2
            assert debate["question"] in agent["messages"][0]["content"]
            assert debate["summaries"][0][n] in agent["messages"][2]["content"]
            assert len(agent["answers"]) == 2
            assert [turn["end"] in ("stop", "limit") for turn in agent["turns"]] == [True, True]
            assert all(turn["prompt_tokens"] > 0 < turn["new_tokens"] for turn in agent["turns"])
        assert [turn["end"] for turn in debate["summary_turns"][0]].count("unanswerable") == 0
        assert debate["vote"] == debate["votes"][-1]
    evaluated = lines(directory.evaluation_file(2))
    assert np.mean([debate["correct"] for debate in evaluated]) == results[-1].accuracy
    assert not {d["question"] for d in debates} & {d["question"] for d in evaluated}


def test_training_sets_are_what_agrees_with_the_vote(finished):
    directory, _, _ = finished
    debates = {d["id"]: d for d in lines(directory.debate_file(1))}
    for n in range(2):
        learnt = lines(directory.training_set_file(1, f"generator_{n}"))
        agreeing = [i for i, d in debates.items() if d["vote"] and d["agents"][n]["answers"][0] == d["vote"]]
        assert [example["id"] for example in learnt] == agreeing
        assert all(e["messages"] == debates[e["id"]]["agents"][n]["messages"][:2] for e in learnt)
        for example in lines(directory.training_set_file(1, f"critic_{n}")):
            agent = debates[example["id"]]["agents"][n]
            assert example["messages"] == agent["messages"]
            assert agent["answers"][1] == debates[example["id"]]["vote"]
            kept = agent["answers"][0] == debates[example["id"]]["vote"]
            assert example["kind"] == ("kept" if kept else "corrected")


def test_every_adapter_with_data_has_moved_and_none_without(finished, answering):
    directory, _, remarks = finished
    fresh, tuned = prepare(SMALL, answering).fresh_society(), adapters_of(directory, 1)
    assert fresh.names == tuple(tuned) == tuple(f"{role}_{n}" for role in ("generator", "critic") for n in range(2))
    for index, name in enumerate(fresh.names):
        has_data = bool(lines(directory.training_set_file(1, name)))
        pairs = zip(*map(jax.tree.leaves, (fresh.stacked.weights, tuned[name])), strict=True)
        same = [bool((a[index] == b).all()) for a, b in pairs]
        assert not any(same) if has_data else all(same)
        told = f"{name}: no training examples in iteration 1; it keeps its weights."
        assert (told in remarks.said) == (not has_data)


def test_a_finished_run_does_nothing_and_another_configuration_is_refused(finished):
    directory, results, _ = finished
    written = lambda: {
        p: p.read_bytes()
        for p in directory.path.rglob("*")
        if p.is_file() and p.name not in ("run.lock", "results.json")
    }
    before = written()
    remarks = Remarks()
    config = dataclasses.replace(SMALL, run_dir=str(directory.path))
    assert run(config, remarks) == results
    assert "is finished; nothing to do" in remarks.said[0]
    other = dataclasses.replace(config, sampling=dataclasses.replace(SMALL.sampling, temperature=0.5))
    with pytest.raises(UserError, match=r"sampling\.temperature is 1\.0 there, 0\.5 given"):
        run(other)
    assert written() == before


def test_agents_of_a_run_on_other_questions(finished, tmp_path):
    directory, results, _ = finished
    file = tmp_path / "own.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"What is 1+2*{i}+3-1*2?", "answer": 2 + 2 * i}) + "\n" for i in range(4))
    )
    task = TaskConfig(name="jsonl", train_questions=0, eval_questions=4, eval_path=str(file))
    result = evaluate(directory.path, task)
    assert (result.method, result.iteration, result.task, result.n) == ("multiagent_ft", 2, "jsonl", 4)
    assert read_results(directory.results_file) == [*results, result]
    earlier = evaluate(directory.path, task, iteration=1)
    assert (earlier.iteration, earlier.task, earlier.n) == (1, "jsonl", 4)
    with pytest.raises(UserError, match="no finished iteration 3: there are 1, 2"):
        evaluate(directory.path, task, iteration=3)


def test_agents_in_each_others_place(finished):
    directory, _, _ = finished
    own = lines(directory.evaluation_file(2))
    swapped = evaluate(directory.path, SMALL.task, speakers="swapped")
    assert (swapped.task, swapped.iteration, swapped.n) == ("arithmetic_8_swapped", 2, 8)
    debates = lines(RunDirectory(directory.path / "evaluations" / swapped.task).evaluation_file(2))
    assert [debate["question"] for debate in debates] == [debate["question"] for debate in own]
    assert [debate["agents"] for debate in debates] != [debate["agents"] for debate in own]
    again = evaluate(directory.path, SMALL.task, speakers="own")
    assert again.task == "arithmetic_8"
    debates = lines(RunDirectory(directory.path / "evaluations" / again.task).evaluation_file(2))
    assert [debate["agents"] for debate in debates] == [debate["agents"] for debate in own]


@pytest.mark.parametrize("speakers", ["swapped", "first"])
def test_one_agent_has_no_other_place(tmp_path, speakers):
    config = dataclasses.replace(SMALL, method="single_agent_ft", run_dir=str(tmp_path / "run"))
    RunDirectory(config.run_dir).create(config)
    with pytest.raises(
        UserError, match=f"cannot be '{speakers}' in an evaluation of single_agent_ft: the same adapters"
    ):
        evaluate(config.run_dir, SMALL.task, speakers=speakers)
    assert not (tmp_path / "run" / "evaluations").exists()


def test_agents_on_word_problems_are_asked_in_the_words_of_that_task(finished, tmp_path, monkeypatch):
    directory, _, _ = finished
    for split, count in (("train", 1), ("test", 3)):
        records = [
            json.dumps({"question": f"Ada has {i} {split} eggs. How many?", "answer": f"So.\n#### {i}"}) + "\n"
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(records))
        monkeypatch.setitem(gsm8k.COUNTS, split, count)
        monkeypatch.setitem(gsm8k.CHECKSUMS, split, hashlib.sha256("".join(records).encode()).hexdigest())
    task = TaskConfig(
        name="gsm8k", train_questions=0, eval_questions=3, data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache")
    )
    result = evaluate(directory.path, task)
    assert (result.method, result.iteration, result.task, result.n) == ("multiagent_ft", 2, "gsm8k", 3)
    nested = RunDirectory(directory.path / "evaluations" / "gsm8k")
    assert json.loads(nested.questions_file.read_text())["eval"] == [q.id for q in load_task(task, 0).eval]
    for debate in lines(nested.evaluation_file(2)):
        for agent in debate["agents"]:
            asked = [m["content"] for m in agent["messages"] if m["role"] == "user"]
            assert asked[0] == GSM8K.first(debate["question"])["content"]
            assert asked[1].endswith(GSM8K.check)


def test_a_mesh_that_is_chosen_at_the_start(tmp_path):
    """The run records its axes, which are the same when it is started again."""
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path / "auto"), method="base", mesh=MeshConfig(auto=True))
    results = run(config)
    directory = RunDirectory(config.run_dir)
    assert (directory.config().mesh.auto, directory.config().mesh.devices) == (False, 4)
    assert run(config) == results
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["changes"] == []


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2)])
def test_a_mesh_of_four_devices_makes_the_same_run(finished, tmp_path, shape):
    mesh = MeshConfig(agent=shape[0], data=shape[1], model=shape[2])
    task = dataclasses.replace(SMALL.task, eval_questions=2)
    config = dataclasses.replace(
        SMALL, run_dir=str(tmp_path / "mesh"), mesh=mesh, iterations=1, baselines=(), task=task
    )
    session = open_session(config.model, mesh)
    run(config, session=session)
    directory, single = RunDirectory(config.run_dir), finished[0]
    assert directory.debate_file(1).read_bytes() == single.debate_file(1).read_bytes()
    for left, right in zip(*map(jax.tree.leaves, (adapters_of(directory, 1), adapters_of(single, 1))), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    for leaf in jax.tree.leaves(prepare(config, session).fresh_society().stacked.weights):
        assert leaf.sharding.shard_shape(leaf.shape)[0] == 4 // shape[0]
    weights = jax.tree_util.tree_leaves_with_path(session.base)
    gates = [leaf for path, leaf in weights if "gate_proj" in jax.tree_util.keystr(path)]
    assert gates
    assert all(own.sharding.shard_shape(own.shape) == (own.shape[0] // shape[2], own.shape[1]) for own in gates)


def test_a_run_without_evaluation_answers_reports_agreement_only(tmp_path, answering):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {i}+2*{i}+3-1*2?"}) + "\n" for i in range(8)))
    task = TaskConfig(name="jsonl", train_path=str(file), train_questions=4, eval_questions=4)
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), task=task, iterations=1)
    results = run(config, session=answering)
    assert [result.method for result in results] == ["base", "majority", "debate", "multiagent_ft"]
    assert all(result.accuracy is result.stderr is None and result.n == 4 for result in results)
    assert 0 <= results[-1].diversity["consensus"] <= 1
    directory = RunDirectory(config.run_dir)
    assert {line["correct"] for line in lines(directory.evaluation_file(1))} == {None}
    answered = tmp_path / "answered.jsonl"
    answered.write_text(
        "".join(json.dumps({"question": f"What is {i}+2*{i}+3-1*2?", "answer": 7}) + "\n" for i in range(8))
    )
    with_answers = dataclasses.replace(task, train_path=str(answered), eval_path=None)
    other = dataclasses.replace(config, run_dir=str(tmp_path / "answered"), task=with_answers, baselines=())
    run(other, session=answering)
    said = lambda d: [[agent["messages"] for agent in line["agents"]] for line in lines(d.debate_file(1))]
    assert said(RunDirectory(other.run_dir)) == said(directory)


def test_every_iteration_of_a_restarted_society_begins_with_the_same_adapters(tmp_path, answering):
    """Finetuning leaves those that it started from as they are: a second iteration starts from them again."""
    rate = dataclasses.replace(SMALL.finetuning.generator, learning_rate=1e-12, epochs=1)
    tuning = dataclasses.replace(SMALL.finetuning, restart_from_base=True, generator=rate, critic=rate)
    task = dataclasses.replace(SMALL.task, train_questions=4, eval_questions=2)
    config = dataclasses.replace(SMALL, finetuning=tuning, task=task, baselines=(), run_dir=str(tmp_path / "run"))
    assert [result.iteration for result in run(config, session=answering)] == [1, 2]
    directory = RunDirectory(config.run_dir)
    assert {record["iteration"] for record in lines(directory.metrics_file)} == {1, 2}
    first, second = (jax.tree.leaves(adapters_of(directory, iteration)) for iteration in (1, 2))
    assert all(np.allclose(old, new, rtol=0, atol=1e-9) for old, new in zip(first, second, strict=True))


def test_a_method_with_one_model_runs_on_the_same_stages(tmp_path, answering):
    """Its adapter speaks for all agents of the training debate, and is evaluated by one answer."""
    config = dataclasses.replace(SMALL, method="single_agent_ft_no_debate", run_dir=str(tmp_path / "run"), baselines=())
    config = dataclasses.replace(config, iterations=1)
    (result,) = run(config, session=answering)
    assert (result.method, result.iteration, result.n, result.diversity) == ("single_agent_ft_no_debate", 1, 8, None)
    directory = RunDirectory(config.run_dir)
    assert list(adapters_of(directory, 1)) == ["agent"]
    debates = {d["id"]: d for d in lines(directory.debate_file(1))}
    assert {len(d["agents"]) for d in debates.values()} == {2}
    learnt = [(example["id"], example["messages"][1]) for example in lines(directory.training_set_file(1, "agent"))]
    agreeing = [
        (id, agent["messages"][1])
        for id, d in debates.items()
        for agent in d["agents"]
        if d["vote"] and agent["answers"][0] == d["vote"]
    ]
    assert learnt == agreeing != []
    assert {len(d["agents"][0]["messages"]) for d in lines(directory.evaluation_file(1))} == {2}


def test_a_method_that_finetunes_nothing_is_evaluated(tmp_path, answering):
    config = dataclasses.replace(SMALL, method="majority@3", run_dir=str(tmp_path / "run"), baselines=("base",))
    assert [(own.method, own.iteration, own.n) for own in run(config, session=answering)] == [
        ("base", 0, 8), ("majority@3", 0, 8)
    ]  # fmt: skip
    stored = RunDirectory(config.run_dir)
    assert stored.is_finished
    remarks = Remarks()
    run(config, remarks, answering)
    assert "is finished; nothing to do" in remarks.said[-1]


def test_many_runs_share_one_session(finished, tmp_path, answering):
    """A second run, with other settings and another scale of its adapters, compiles nothing new for the same shapes."""
    lora = dataclasses.replace(SMALL.lora, alpha=4.0)
    config = dataclasses.replace(SMALL, seed=1, lora=lora, run_dir=str(tmp_path / "other"), iterations=1)
    config = dataclasses.replace(config, sampling=dataclasses.replace(SMALL.sampling, temperature=0.8))
    run(config, session=answering)
    assert RunDirectory(config.run_dir).debate_file(1).read_bytes() != finished[0].debate_file(1).read_bytes()
    before = dict(answering.programs.compilations)
    run(dataclasses.replace(config, run_dir=str(tmp_path / "again")), session=answering)
    assert answering.programs.compilations == before
    again = RunDirectory(tmp_path / "again")
    assert again.evaluation_file(1).read_bytes() == RunDirectory(config.run_dir).evaluation_file(1).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampling: {temprature: 1}", "did you mean sampling.temperature?"),
        ("debate: {agents: three}", "debate.agents is 'three' (str), expected int"),
        ("model: {path: ./nowhere}", "There is no checkpoint at ./nowhere"),
        ("task: {name: jsonl, train_path: twice.jsonl, eval_path: twice.jsonl, train_questions: 1, eval_questions: 1}",
         "both a training question"),
        ("task: {name: jsonl, train_path: long.jsonl, train_questions: 1, eval_questions: 1}", "the model's context holds"),
        ("mesh: {agent: 3, data: 2}", "needs 6 devices"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, text, message, mft, monkeypatch):
    (tmp_path / "twice.jsonl").write_text('{"question": "What is 1+1?", "answer": 2}\n')
    long = [{"question": f"{i} " + "why " * 3000, "answer": 1} for i in range(2)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(q) + "\n" for q in long))
    (tmp_path / "bad.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    code, _, complaint = mft("run", "bad.yaml", "--run-dir", "run")
    assert code != 0
    assert complaint.startswith("mft: ")
    assert message in complaint
    assert "\n" not in complaint.strip()
    assert not (tmp_path / "run").exists()


def test_a_process_with_bad_input_fails_with_one_sentence(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {path: ./nowhere}")
    command = [sys.executable, "-m", "mft_jax", "run", "bad.yaml", "--run-dir", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mft: There is no checkpoint at ./nowhere")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_lists_its_fields(mft):
    code, said, _ = mft("run", "--help")
    assert code == 0
    assert "--sampling.top-p" in said
    assert "Nucleus: the smallest set of tokens" in said


def test_a_run_ends_after_an_iteration_that_collapses(finished, answering, tmp_path):
    """The decision is recorded: later starts end after the same iteration, whatever they would find."""
    shutil.copytree(finished[0].path, tmp_path / "run")
    directory, remarks = RunDirectory(tmp_path / "run"), Remarks()
    directory.store.hold()
    config = dataclasses.replace(SMALL, iterations=3, stop_when_collapsing=True)
    experiment = Experiment(prepare(config, answering), directory, remarks)
    own_results = [own for own in read_results(directory.results_file) if own.task == SMALL.task.name]
    first, second = ((own, own.monitor) for own in own_results[-2:])
    assert (first[1].verdict, first[1].compared_with) == ("unknown", 0)
    assert not experiment.ends_after(1)
    assert remarks.said == [f"iteration 1: unknown: {first[1].reason}."]
    collapsing = dataclasses.replace(second[1], verdict="collapsing", reason="made")
    write_results(directory.store, [first[0], dataclasses.replace(second[0], monitor=collapsing)])
    unguarded = dataclasses.replace(config, stop_when_collapsing=False)
    assert not Experiment(prepare(unguarded, answering), directory, remarks).ends_after(2)
    assert experiment.ends_after(2)
    assert remarks.said[-2:] == [
        "iteration 2: collapsing: made.", "The run ends after iteration 2, because the society collapses."
    ]  # fmt: skip
    write_results(directory.store, [first[0], second[0]])
    assert experiment.ends_after(2)
    assert [stage.name for stage in list_stages(directory.store, config)][-1] == "iteration 2: evaluation"
    budgets = dataclasses.replace(config, baselines=(*config.baselines, "majority@iteration_3"))
    assert find_damage(directory.store, budgets, experiment.setup.method.adapters) == []
    directory.store.release()


def test_what_is_left_of_a_run(finished):
    """A minute at least; more with many more iterations; nothing is known of a run that has not begun."""
    config = finished[0].config()
    assert describe_outlook(config).startswith("whole run: about 1 min left, memory ")
    longer = describe_outlook(dataclasses.replace(config, iterations=3000))
    assert int(re.match(r"whole run: about (\d+)", longer)[1]) > 1
    assert describe_outlook(dataclasses.replace(config, run_dir="runs/none")).startswith("memory ")


def test_an_example_is_one_line(finished):
    line = lines(finished[0].evaluation_file(1))[0]
    answers = [agent["answers"][-1] for agent in line["agents"]]
    shown = describe_example(Transcript.from_dict(line | {"question": "1 +\n2" + " + 3" * 100, "vote": None}))
    question, *rest = shown.split(" | ")
    assert question.startswith("e.g. 1 + 2 + 3")
    assert question.endswith("[...]")
    assert rest == [f"answers: {', '.join(answer or 'none' for answer in answers)}", "vote: none"]
