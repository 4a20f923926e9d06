"""The whole method on a handful of questions, with the shipped model, through the Python API and the command."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mft_jax.base_model import CHECKPOINT
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
from mft_jax.models.config import read_model_config
from mft_jax.prompts import GSM8K
from mft_jax.report.progress import SilentReporter
from mft_jax.runs import layout
from mft_jax.runs.adapters import read_adapters
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.directory import RunDirectory
from mft_jax.session import open_session
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
def finished(tmp_path_factory, shipped):
    """A finished run: (its directory, its results, what it said)."""
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path_factory.mktemp("runs") / "small"))
    remarks = Remarks()
    return RunDirectory(config.run_dir), run(config, remarks, shipped), remarks


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be damaged or extended: (its directory, its configuration)."""
    path = tmp_path / "copy"
    shutil.copytree(finished[0].path, path)
    return RunDirectory(path), dataclasses.replace(SMALL, run_dir=str(path))


def adapters_of(directory, iteration):
    """{name: weights} of a finished iteration."""
    return read_adapters(directory, iteration, read_model_config(CHECKPOINT))[1]


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


def test_every_adapter_with_data_has_moved_and_none_without(finished, shipped):
    directory, _, remarks = finished
    fresh, tuned = prepare(SMALL, shipped).fresh_society(), adapters_of(directory, 1)
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


def without_seconds(results):
    """Times are the only thing that differs between two runs of the same."""
    return [{k: v for k, v in dataclasses.asdict(r).items() if not k.endswith("seconds")} for r in results]


def run_files(directory):
    """What must be the same bytes however often a run was killed: transcripts, training sets, adapters, results."""
    files = {}
    for path in sorted(directory.path.rglob("*.jsonl")):
        if (
            not path.name.endswith("journal.jsonl")
            and path.name != "metrics.jsonl"
            and not {"evaluations", "damaged"} & set(path.parts)
        ):
            files[str(path.relative_to(directory.path))] = path.read_bytes()
    results = json.loads(directory.results_file.read_text())
    own = [row for row in results if row["task"] == "arithmetic"]
    files["results"] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in own]
    for iteration in (1, 2):
        adapters = adapters_of(directory, iteration)
        files[f"adapters {iteration}"] = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(adapters)]
    return files


@pytest.mark.slow
def test_kill_9_and_run_again_gives_the_same_bytes(finished, tmp_path):
    """Killed in the middle of a debate, of a finetuning stage and of an evaluation; then left alone."""
    directory = RunDirectory(tmp_path / "killed")
    config = tmp_path / "small.yaml"
    config.write_text(to_yaml(SMALL))
    command = [sys.executable, "-m", "mft_jax", "run", str(config), "--run-dir", str(directory.path)]
    midway = [
        directory.debate_file(1).with_name("train.chunks") / "000004.jsonl",
        directory.checkpoint(1) / "1" / "_CHECKPOINT_METADATA",
        directory.evaluation_file(2).with_name("eval.chunks") / "000000.jsonl",
    ]
    for path in midway:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while not path.exists():
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not directory.is_finished
    assert len(lines(directory.debate_file(1))) == 12
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Resuming the run in" in done.stdout
    assert run_files(directory) == run_files(finished[0])


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
    kernel = dict(jax.tree_util.tree_leaves_with_path(session.base))
    sharded = [leaf for path, leaf in kernel.items() if "gate_proj" in jax.tree_util.keystr(path)]
    assert all(leaf.sharding.shard_shape(leaf.shape)[1] == leaf.shape[1] // shape[2] for leaf in sharded)


def test_a_non_finite_loss_stops_and_the_run_is_resumed_with_a_lower_rate(tmp_path, shipped):
    """As its message says. The change, and from when on it counts, is recorded."""
    broken = RoleConfig(learning_rate=1000.0, epochs=4)
    finetuning = dataclasses.replace(SMALL.finetuning, generator=broken, weight_decay=1000.0, warmup=0.0, save_every=1)
    config = dataclasses.replace(
        SMALL, run_dir=str(tmp_path / "run"), baselines=(), iterations=1, finetuning=finetuning
    )
    with pytest.raises(
        UserError, match=r"loss of generator_\d, .* at step \d+ of iteration 1.* Lower finetuning\.generator"
    ):
        run(config, session=shipped)
    directory = RunDirectory(config.run_dir)
    assert directory.manifest()["status"] == "failed"
    latest = latest_info(directory.store, layout.checkpoint(1))
    assert latest is not None
    assert not latest.finished
    metrics = [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]
    assert [record["step"] for record in metrics] == list(range(1, latest.step + 1))
    sets = {path.name: path.read_bytes() for path in directory.training_set_file(1, "x").parent.glob("*.jsonl")}
    lower = dataclasses.replace(finetuning, generator=dataclasses.replace(broken, learning_rate=1e-6), weight_decay=0.0)
    shutil.rmtree(directory.checkpoint(1))  # by then the last checkpoint's weights were huge, but finite
    remarks = Remarks()
    run(dataclasses.replace(config, finetuning=lower), remarks, shipped)
    assert directory.is_finished
    assert "Resuming the run in" in remarks.said[0]
    assert sets == {path.name: path.read_bytes() for path in directory.training_set_file(1, "x").parent.glob("*.jsonl")}
    changes = directory.manifest()["changes"]
    assert [(c["field"], c["from"], c["to"]) for c in changes] == [
        ("finetuning.generator.learning_rate", 1000.0, 1e-6),
        ("finetuning.weight_decay", 1000.0, 0.0),
    ]
    assert all("the last checkpoint" in change["takes_effect"] for change in changes)


def test_a_run_is_resumed_with_other_settings_of_speed_and_memory(finished, tmp_path, shipped):
    """After an out-of-memory stop, say: fewer rows, other chunks. The transcripts are the same bytes."""
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), baselines=("debate",), iterations=1)

    small = dataclasses.replace(SMALL.sampling, rows=3, prefill_rows=2, steps_per_dispatch=7, chunk_questions=5)
    directory = RunDirectory(config.run_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mft_jax.stages.train", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no more")))
        with pytest.raises(MemoryError):
            run(config, session=shipped)
    assert directory.manifest()["error"] == "MemoryError: no more"
    finetuning = dataclasses.replace(config.finetuning, agents_at_once=2, save_every=3)
    run(dataclasses.replace(config, sampling=small, finetuning=finetuning), session=shipped)
    for file in (lambda d: d.baseline_file("debate"), lambda d: d.debate_file(1)):
        assert file(directory).read_bytes() == file(finished[0]).read_bytes()
    evaluated = [[agent["messages"] for agent in line["agents"]] for line in lines(directory.evaluation_file(1))]
    assert len(evaluated) == SMALL.task.eval_questions
    changed = {change["field"] for change in directory.manifest()["changes"]}
    assert {"sampling.rows", "sampling.chunk_questions", "finetuning.agents_at_once"} <= changed
    assert directory.config().sampling == small


def test_a_finished_run_is_given_more_iterations_and_baselines(finished, tmp_path, shipped):
    """It ends with the bytes of a run that had them from the first."""
    short = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), iterations=1, baselines=("base", "debate"))
    run(short, session=shipped)
    results = run(dataclasses.replace(short, iterations=2, baselines=SMALL.baselines), session=shipped)
    assert without_seconds(results) == without_seconds(finished[1])
    assert run_files(RunDirectory(short.run_dir)) == run_files(finished[0])
    with pytest.raises(UserError, match=r"iterations is 2 there, 1 given"):
        run(short, session=shipped)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("[]"),
                                    lambda file: file.write_text("{]")])  # fmt: skip
def test_results_are_rebuilt(finished, copied, shipped, damage):
    directory, config = copied
    damage(directory.results_file)
    before = finished[0].results_file.read_bytes()
    assert [result for result in run(config, session=shipped) if result.task == "arithmetic"] == finished[1]
    assert directory.results_file.read_bytes() == before


def flip(path, old, new):
    data = path.read_bytes()
    assert data.count(old)
    path.write_bytes(data.replace(old, new, 1))


def test_one_changed_character_of_an_evaluation_is_found_and_made_again(finished, copied, shipped):
    """Still valid JSON: only the chunk that has it is done again, and comes out as it was."""
    directory, config = copied
    file = directory.baseline_file("debate")
    flip(file, b'"correct": false', b'"correct": true ')
    remarks = Remarks()
    results = [result for result in run(config, remarks, shipped) if result.task == "arithmetic"]
    assert without_seconds(results) == without_seconds(finished[1])
    assert file.read_bytes() == finished[0].baseline_file("debate").read_bytes()
    told = [text for text in remarks.said if "damaged" in text and str(file) in text]
    assert told
    aside = directory.path / "damaged" / file.relative_to(directory.path)
    assert b'"correct": true ' in aside.read_bytes()


def test_damaged_training_data_and_checkpoints_are_made_again_before_they_are_used(finished, copied, shipped):
    """In a run that is resumed in its second iteration: a debate, a training set, and an array of the first one."""
    directory, config = copied
    shutil.rmtree(directory.path / "iteration_2")
    manifest = json.loads(directory.manifest_file.read_text())
    directory.manifest_file.write_text(json.dumps(manifest | {"status": "interrupted"}))
    flip(directory.debate_file(1), b'"content": "', b'"content": " ')
    flip(directory.training_set_file(1, "generator_0"), b'"content": "', b'"content": " ')
    newest = latest_info(directory.store, layout.checkpoint(1)).step
    adapters = directory.checkpoint(1) / str(newest) / "adapters"
    arrays = sorted(adapters.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(arrays[-1].read_bytes())
    data[len(data) // 2] ^= 4
    arrays[-1].write_bytes(data)
    remarks = Remarks()
    run(config, remarks, shipped)
    assert run_files(directory) == run_files(finished[0])
    assert sum("damaged" in text for text in remarks.said) >= 3
    assert any("The checkpoint" in text and "resumes from step" in text for text in remarks.said)


def test_a_run_without_evaluation_answers_reports_agreement_only(tmp_path, shipped):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {i}+2*{i}+3-1*2?"}) + "\n" for i in range(8)))
    task = TaskConfig(name="jsonl", train_path=str(file), train_questions=4, eval_questions=4)
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), task=task, iterations=1)
    results = run(config, session=shipped)
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
    run(other, session=shipped)
    said = lambda d: [[agent["messages"] for agent in line["agents"]] for line in lines(d.debate_file(1))]
    assert said(RunDirectory(other.run_dir)) == said(directory)


def test_a_method_with_one_model_runs_on_the_same_stages(tmp_path, shipped):
    """Its adapter speaks for all agents of the training debate, and is evaluated by one answer."""
    config = dataclasses.replace(SMALL, method="single_agent_ft_no_debate", run_dir=str(tmp_path / "run"), baselines=())
    config = dataclasses.replace(config, iterations=1)
    (result,) = run(config, session=shipped)
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


def test_many_runs_share_one_session(finished, tmp_path, shipped):
    """A second run, with other settings and another scale of its adapters, compiles nothing new for the same shapes."""
    lora = dataclasses.replace(SMALL.lora, alpha=4.0)
    config = dataclasses.replace(SMALL, seed=1, lora=lora, run_dir=str(tmp_path / "other"), iterations=1)
    config = dataclasses.replace(config, sampling=dataclasses.replace(SMALL.sampling, temperature=0.8))
    run(config, session=shipped)
    assert RunDirectory(config.run_dir).debate_file(1).read_bytes() != finished[0].debate_file(1).read_bytes()
    before = dict(shipped.programs.compilations)
    run(dataclasses.replace(config, run_dir=str(tmp_path / "again")), session=shipped)
    assert shipped.programs.compilations == before
    again = RunDirectory(tmp_path / "again")
    assert again.evaluation_file(1).read_bytes() == RunDirectory(config.run_dir).evaluation_file(1).read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_run_that_says_so(tmp_path, number, status):
    config = tmp_path / "small.yaml"
    config.write_text(to_yaml(SMALL))
    directory = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "mft_jax", "run", str(config), "--run-dir", str(directory.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not directory.questions_file.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in complaint
    assert complaint.startswith("mft: ")
    assert json.loads(directory.manifest_file.read_text())["status"] == "interrupted"


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
