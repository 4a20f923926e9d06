"""The whole method on a handful of questions, with the shipped model, through the Python API and the command."""

import dataclasses
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mft_jax.config import (
    DebateConfig,
    ExperimentConfig,
    FinetuningConfig,
    MeshConfig,
    RoleConfig,
    SamplingConfig,
    TaskConfig,
    to_yaml,
)
from mft_jax.errors import UserError
from mft_jax.experiment import evaluate, run
from mft_jax.prompts import GSM8K
from mft_jax.report.progress import SilentReporter
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.setup import prepare
from mft_jax.tasks import gsm8k, load_task

SMALL = ExperimentConfig(
    iterations=2,
    task=TaskConfig(train_questions=12, eval_questions=8),
    debate=DebateConfig(agents=2),
    sampling=SamplingConfig(rows=8, prefill_rows=4, max_new_tokens=96, chunk_questions=4),
    finetuning=FinetuningConfig(
        # With an eps below the rounding of gradients (1e-8), Adam turns a gradient that is nothing but rounding into a
        # whole step; a mesh adds up in another order, so its rounding differs.
        eps=1e-6,
        generator=RoleConfig(learning_rate=1e-4, epochs=4),
        critic=RoleConfig(learning_rate=1e-4, epochs=2),
        batch_rows=2,
        row_tokens=256,
        save_every=1,
    ),
)


class Remarks(SilentReporter):
    """Remembers what the run said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: (its directory, its results, what it said)."""
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path_factory.mktemp("runs") / "small"))
    remarks = Remarks()
    return RunDirectory(config.run_dir), run(config, remarks), remarks


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_results_count_every_method_and_its_cost(finished):
    directory, results, _ = finished
    rows = [(r.method, r.iteration, r.task, r.n) for r in results]
    untuned = [(method, 0, "arithmetic", 8) for method in ("base", "majority", "debate")]
    assert rows == [*untuned, ("multiagent_ft", 1, "arithmetic", 8), ("multiagent_ft", 2, "arithmetic", 8)]
    raw = json.loads(directory.results_file.read_text())
    for result, row in zip(results, raw, strict=True):
        assert dataclasses.asdict(result) == row
        assert row["stderr"] == pytest.approx(math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 8))
        assert min(row[k] for k in ("prompt_tokens", "new_tokens", "flops", "device_seconds", "wall_seconds")) > 0
    assert raw[0]["diversity"] is None
    assert set(raw[4]["diversity"]) == {"consensus", "diversity"}
    assert raw[2]["new_tokens"] > raw[1]["new_tokens"] > raw[0]["new_tokens"]


def test_transcripts_hold_the_whole_debate(finished):
    directory, results, _ = finished
    debates = lines(directory.debate_file(1))
    assert [d["id"] for d in debates] == [q.id for q in prepare(SMALL).task.train]
    for debate in debates:
        assert len(debate["summaries"]) == 1
        for n, agent in enumerate(debate["agents"]):
            assert [m["role"] for m in agent["messages"]] == ["user", "assistant"] * 2
            assert debate["question"] in agent["messages"][0]["content"]
            assert debate["summaries"][0][n] in agent["messages"][2]["content"]
            assert len(agent["answers"]) == 2
        assert debate["vote"] == debate["votes"][-1]
    evaluated = lines(directory.evaluation_file(2))
    assert np.mean([debate["correct"] for debate in evaluated]) == results[-1].accuracy
    assert not {d["question"] for d in debates} & {d["question"] for d in evaluated}


def test_training_sets_are_what_agrees_with_the_vote(finished):
    directory, _, _ = finished
    debates = {d["id"]: d for d in lines(directory.debate_file(1))}
    for n in range(2):
        learnt = lines(directory.training_set_file(1, "generator", n))
        agreeing = [i for i, d in debates.items() if d["vote"] and d["agents"][n]["answers"][0] == d["vote"]]
        assert [example["id"] for example in learnt] == agreeing
        assert all(e["messages"] == debates[e["id"]]["agents"][n]["messages"][:2] for e in learnt)
        for example in lines(directory.training_set_file(1, "critic", n)):
            agent = debates[example["id"]]["agents"][n]
            assert example["messages"] == agent["messages"]
            assert agent["answers"][1] == debates[example["id"]]["vote"]
            kept = agent["answers"][0] == debates[example["id"]]["vote"]
            assert example["kind"] == ("kept" if kept else "corrected")


def test_every_agent_with_data_has_moved_and_none_without(finished):
    directory, _, remarks = finished
    fresh = prepare(SMALL).fresh_adapters()
    with Checkpoints(directory.checkpoint(1), read_only=True) as checkpoints:
        tuned = checkpoints.restore(checkpoints.finished().step, {"adapters": fresh})["adapters"]
    names = [f"{role}_{n}" for role in ("generator", "critic") for n in range(2)]
    for index, name in enumerate(names):
        role, n = name.split("_")
        has_data = bool(lines(directory.training_set_file(1, role, n)))
        same = [bool((a[index] == b[index]).all()) for a, b in zip(*map(jax.tree.leaves, (fresh, tuned)), strict=True)]
        assert not any(same) if has_data else all(same)
        told = f"{name}: no training examples in iteration 1; it keeps its weights."
        assert (told in remarks.said) == (not has_data)


def test_a_finished_run_does_nothing_and_another_configuration_is_refused(finished):
    directory, results, _ = finished
    written = lambda: {p: p.stat().st_mtime_ns for p in directory.path.rglob("*") if p.name != "run.lock"}
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
    stored = json.loads(directory.results_file.read_text())
    assert stored == [dataclasses.asdict(r) for r in [*results, result]]
    earlier = evaluate(directory.path, task, iteration=1)
    assert (earlier.iteration, earlier.task, earlier.n) == (1, "jsonl", 4)
    with pytest.raises(UserError, match="no finished iteration 3: there are 1, 2"):
        evaluate(directory.path, task, iteration=3)


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


def test_a_run_does_not_go_on_with_changed_data(tmp_path, monkeypatch):
    file = tmp_path / "own.jsonl"
    questions = [{"question": f"What is {i}+1?", "answer": i + 1} for i in range(6)]
    file.write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = TaskConfig(name="jsonl", train_path=str(file), train_questions=4, eval_questions=2)
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), task=task)
    begun = []
    monkeypatch.setattr("mft_jax.experiment.Experiment.run", lambda self: begun.append(1) or 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run(config)
    stored = json.loads((tmp_path / "run" / "questions.json").read_text())
    assert (stored["task"], len(stored["train"]), len(stored["eval"])) == ("jsonl", 4, 2)
    file.write_text(file.read_text().replace("What is 3+1", "What was 3+1"))
    with pytest.raises(UserError, match="data of the task jsonl have changed since this run began"):
        run(config)
    assert begun == [1, 1]


def run_files(directory):
    """What must be the same bytes however often a run was killed: transcripts, training sets, adapters, results."""
    files = {}
    for path in sorted(directory.path.rglob("*.jsonl")):
        if not path.name.endswith("journal.jsonl") and path.name != "metrics.jsonl" and "evaluations" not in path.parts:
            files[str(path.relative_to(directory.path))] = path.read_bytes()
    results = json.loads(directory.results_file.read_text())
    own = [row for row in results if row["task"] == "arithmetic"]
    files["results"] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in own]
    abstract = {"adapters": prepare(SMALL).fresh_adapters()}
    for iteration in (1, 2):
        with Checkpoints(directory.checkpoint(iteration), read_only=True) as checkpoints:
            adapters = checkpoints.restore(checkpoints.finished().step, abstract)["adapters"]
        files[f"adapters {iteration}"] = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(adapters)]
    return files


@pytest.mark.slow
def test_kill_9_and_run_again_gives_the_same_bytes(finished, tmp_path):
    """Killed in the middle of a debate, of a finetuning stage and of an evaluation; then left alone."""
    directory = RunDirectory(tmp_path / "killed")
    config = tmp_path / "small.yaml"
    config.write_text(to_yaml(SMALL))
    command = [sys.executable, "-m", "mft_jax", "run", str(config), "--run-dir", str(directory.path)]
    # Four starts of the same programs: compiled by the first one, read by the others.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | cache
    midway = [
        (directory.iteration(1) / "debate" / "train.journal.jsonl", 1),  # lines that must be there
        (directory.checkpoint(1) / "1" / "_CHECKPOINT_METADATA", 0),
        (directory.iteration(2) / "eval" / "eval.journal.jsonl", 1),
    ]
    for path, count in midway:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        while not (path.exists() and path.read_bytes().count(b"\n") >= count):
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not directory.is_finished
    assert len(lines(directory.debate_file(1))) == 12
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Going on with the run" in done.stdout
    assert run_files(directory) == run_files(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2)])
def test_a_mesh_of_four_devices_makes_the_same_run(finished, tmp_path, shape):
    mesh = MeshConfig(agent=shape[0], data=shape[1], model=shape[2])
    task = dataclasses.replace(SMALL.task, eval_questions=2)
    config = dataclasses.replace(
        SMALL, run_dir=str(tmp_path / "mesh"), mesh=mesh, iterations=1, baselines=(), task=task
    )
    run(config)
    directory, single = RunDirectory(config.run_dir), finished[0]
    assert directory.debate_file(1).read_bytes() == single.debate_file(1).read_bytes()
    setup = prepare(config)
    fresh = setup.fresh_adapters()
    with Checkpoints(directory.checkpoint(1), read_only=True) as checkpoints:
        adapters = checkpoints.restore(checkpoints.finished().step, {"adapters": fresh})["adapters"]
    with Checkpoints(single.checkpoint(1), read_only=True) as checkpoints:
        alone = {"adapters": prepare(SMALL).fresh_adapters()}
        expected = checkpoints.restore(checkpoints.finished().step, alone)["adapters"]
    for left, right in zip(*map(jax.tree.leaves, (adapters, expected)), strict=True):
        assert left.sharding.shard_shape(left.shape)[0] == 4 // shape[0]
        np.testing.assert_allclose(left, right, atol=1e-5)
    kernel = dict(jax.tree_util.tree_leaves_with_path(setup.base))
    sharded = [leaf for path, leaf in kernel.items() if "gate_proj" in jax.tree_util.keystr(path)]
    assert all(leaf.sharding.shard_shape(leaf.shape)[1] == leaf.shape[1] // shape[2] for leaf in sharded)


def test_a_non_finite_loss_stops_and_names_agent_and_step(tmp_path):
    finetuning = dataclasses.replace(
        SMALL.finetuning, generator=RoleConfig(learning_rate=1e30, epochs=4), clip_norm=1e30, warmup=0.0, save_every=1
    )
    config = dataclasses.replace(
        SMALL, run_dir=str(tmp_path / "run"), baselines=(), iterations=1, finetuning=finetuning
    )
    with pytest.raises(UserError, match=r"loss of generator_\d is not finite .* at step \d+ of iteration 1"):
        run(config)
    directory = RunDirectory(config.run_dir)
    assert directory.manifest()["status"] == "failed"
    with Checkpoints(directory.checkpoint(1), read_only=True) as checkpoints:
        latest = checkpoints.latest()
    assert latest is not None
    assert not latest.finished


def mft(*arguments, cwd=None):
    command = [sys.executable, "-m", "mft_jax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def bad(tmp_path, text, *arguments):
    """Runs a bad configuration: (its one line of complaint, whether anything was written)."""
    (tmp_path / "bad.yaml").write_text(text)
    done = mft("run", "bad.yaml", "--run-dir", "run", *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr.strip(), (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampling: {temprature: 1}", "did you mean sampling.temperature?"),
        ("debate: {agents: three}", "debate.agents is 'three' (str), expected int"),
        ("model: {path: ./nowhere}", "There is no checkpoint at ./nowhere"),
        ("task: {name: jsonl, train_path: twice.jsonl, eval_path: twice.jsonl, train_questions: 1, eval_questions: 1}",
         "both a training question"),
        ("task: {name: jsonl, train_path: long.jsonl, train_questions: 1, eval_questions: 1}", "the model's context holds"),
        ("mesh: {data: 2}", "needs 2 devices"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, text, message):
    (tmp_path / "twice.jsonl").write_text('{"question": "What is 1+1?", "answer": 2}\n')
    long = [{"question": f"{i} " + "why " * 3000, "answer": 1} for i in range(2)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(q) + "\n" for q in long))
    os.environ["JAX_NUM_CPU_DEVICES"], kept = "1", os.environ["JAX_NUM_CPU_DEVICES"]
    try:
        complaint, has_written = bad(tmp_path, text)
    finally:
        os.environ["JAX_NUM_CPU_DEVICES"] = kept
    assert complaint.startswith("mft: ")
    assert message in complaint
    assert "\n" not in complaint
    assert not has_written


def test_the_command_lists_its_fields():
    done = mft("run", "--help")
    assert done.returncode == 0
    assert "--sampling.top-p" in done.stdout
    assert "Nucleus: the smallest set of tokens" in done.stdout
    assert mft("fly").returncode == 2
