import dataclasses
import json
import os
import subprocess
import sys

import pytest
import yaml

from mft_jax.config import DebateConfig, ExperimentConfig, TaskConfig, to_dict
from mft_jax.errors import UserError
from mft_jax.prompts import GENERAL
from mft_jax.runs import directory
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.environment import git_revision
from mft_jax.tasks import Question, Task

CONFIG = ExperimentConfig(run_dir="here", seed=5)


def opened(path, config=CONFIG) -> tuple[RunDirectory, str]:
    run = RunDirectory(path)
    return run, run.open_run(config)


def again(path, config=CONFIG) -> str:
    """The same command, once more, after the process before has ended."""
    run, found = opened(path, config)
    run.unlock()
    return found


def test_the_life_of_a_run(tmp_path):
    path = tmp_path / "runs" / "one"
    run, found = opened(path)
    assert (found, run.is_finished, run.manifest()["status"]) == ("created", False, "running")
    assert yaml.safe_load((path / "config.yaml").read_text()) == to_dict(CONFIG)
    run.fail("the loss is not finite")
    assert (run.manifest()["status"], run.manifest()["error"]) == ("failed", "the loss is not finite")

    run, found = opened(path)
    assert (found, run.manifest()["status"], run.manifest()["error"]) == ("resumed", "running", None)
    run.finish()

    before = (path / "run.json").read_bytes()
    assert again(path) == "finished"
    assert (path / "run.json").read_bytes() == before
    assert RunDirectory(path).is_finished
    assert RunDirectory(path).config() == CONFIG


def test_the_manifest_says_what_each_start_ran_on(tmp_path):
    again(tmp_path / "run")
    again(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["seed"] == 5
    assert len(manifest["starts"]) == 2
    start = manifest["starts"][1]
    assert start["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(start["versions"][name] for name in ("jax", "flax", "optax", "orbax", "transformers", "mft_jax"))
    assert start["devices"]["platform"] == "cpu"
    assert sum(start["devices"]["kinds"].values()) >= 1


def test_the_layout(tmp_path):
    run = RunDirectory(tmp_path)
    paths = [
        run.baseline_file("majority"),
        run.debate_file(2),
        run.training_set_file(2, "critic", 1),
        run.checkpoint(2),
        run.evaluation_file(2),
        run.questions_file,
        run.metrics_file,
        run.results_file,
    ]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "baselines/majority/eval.jsonl",
        "iteration_2/debate/train.jsonl",
        "iteration_2/finetune/critic_1.jsonl",
        "iteration_2/checkpoint",
        "iteration_2/eval/eval.jsonl",
        "questions.json",
        "metrics.jsonl",
        "results.json",
    ]


def test_another_configuration_is_refused_with_every_field_that_differs(tmp_path):
    again(tmp_path / "run")
    other = dataclasses.replace(CONFIG, seed=6, debate=DebateConfig(agents=5), baselines=("base",))
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "run", other)
    assert "seed is 5 there, 6 given; baselines is ['base', 'majority', 'debate'] there, ['base'] given; " in str(
        caught.value
    )
    assert "debate.agents is 3 there, 5 given: " in str(caught.value)
    assert len(RunDirectory(tmp_path / "run").manifest()["starts"]) == 1


def test_where_things_are_does_not_make_another_configuration(tmp_path):
    again(tmp_path / "run")
    moved = dataclasses.replace(CONFIG, run_dir="there", task=TaskConfig(data_dir="/files", cache_dir="/cache"))
    assert again(tmp_path / "run", moved) == "resumed"


def task(train=("t1", "t2"), evaluation=("e1",), gold="5"):
    questions = [tuple(Question(name, f"What is {name}?", gold) for name in names) for names in (train, evaluation)]
    return Task("own", *questions, parse=str, equivalent=str.__eq__, prompts=GENERAL)


def test_the_questions_of_a_run_are_kept_and_compared(tmp_path):
    run, _ = opened(tmp_path / "run")
    run.keep_questions(task())
    stored = json.loads(run.questions_file.read_text())
    assert {name: stored[name] for name in ("task", "train", "eval")} == {
        "task": "own",
        "train": ["t1", "t2"],
        "eval": ["e1"],
    }
    before = run.questions_file.stat().st_mtime_ns
    run.keep_questions(task())
    others = {
        "train question 2 is t2 there, t3 now": task(train=("t1", "t3")),
        "train question 1 is t1 there, t2 now": task(train=("t2", "t1")),
        "1 eval questions there, 2 now": task(evaluation=("e1", "e2")),
        "the same ids, but other texts or answers": task(gold="6"),
    }
    for change, other in others.items():
        with pytest.raises(UserError, match="The data of the task own have changed since this run began") as caught:
            run.keep_questions(other)
        assert change in str(caught.value)
        assert str(run.questions_file) in str(caught.value)
    assert run.questions_file.stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["{", "[]", '{"train": ["t1", "t2"]}'])
def test_kept_questions_that_are_spoilt(tmp_path, text):
    run, _ = opened(tmp_path / "run")
    run.questions_file.write_text(text)
    with pytest.raises(UserError, match=r"questions\.json cannot be read .*delete it, and the run goes on without it"):
        run.keep_questions(task())


@pytest.mark.parametrize("kill_before", range(5))
def test_a_kill_while_the_run_is_created(tmp_path, monkeypatch, kill_before):
    """Stopped before each of the steps that change the disk; the same command then creates the run."""
    steps = 0
    real = {name: getattr(os, name) for name in ("replace", "fsync")}

    def step(name):
        def call(*arguments):
            nonlocal steps
            if steps == kill_before:
                raise KeyboardInterrupt
            steps += 1
            return real[name](*arguments)

        return call

    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    for name in real:
        monkeypatch.setattr(os, name, step(name))
    with pytest.raises(KeyboardInterrupt):
        run.open_run(CONFIG)
    run.unlock()
    monkeypatch.undo()
    assert not run.exists
    assert again(tmp_path / "run") == "created"
    assert again(tmp_path / "run") == "resumed"


def test_what_is_not_a_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not a run \(it holds thesis.tex"):
        opened(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="not a local directory"):
        RunDirectory("gs://bucket/run")
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        RunDirectory(tmp_path).config()


def test_a_manifest_that_is_gone_or_spoilt(tmp_path):
    again(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        opened(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    assert RunDirectory(tmp_path / "run").is_finished is False
    assert again(tmp_path / "run") == "resumed"


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path):
    script = (
        "import fcntl, os, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "os.write(fd, f'{os.getpid()}'.encode()); print('locked', flush=True); time.sleep(60)"
    )
    again(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run" / "run.lock")], stdout=subprocess.PIPE
    )
    try:
        process.stdout.readline()
        with pytest.raises(UserError, match=f"in use by the process with pid {process.pid}:"):
            opened(tmp_path / "run")
        assert len(RunDirectory(tmp_path / "run").manifest()["starts"]) == 1
    finally:
        process.kill()
        process.wait()
    assert again(tmp_path / "run") == "resumed"
    with_two = RunDirectory(tmp_path / "run")
    with_two.lock()
    with pytest.raises(UserError, match=f"pid {os.getpid()}:"):
        RunDirectory(tmp_path / "run").lock()


def test_the_git_revision_of_a_checkout(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    assert git_revision(tmp_path) is None
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_revision(tmp_path) is None
    (tmp_path / "code.py").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    revision = git_revision(tmp_path)
    assert len(revision) == 40
    (tmp_path / "code.py").write_text("2")
    assert git_revision(tmp_path) == revision + "+changes"
    (tmp_path / "inside").mkdir()
    assert git_revision(tmp_path / "inside") is None


def test_differences_see_every_field():
    assert directory.differences(CONFIG, CONFIG) == {}
    other = dataclasses.replace(CONFIG, finetuning=dataclasses.replace(CONFIG.finetuning, remat=True))
    assert directory.differences(CONFIG, other) == {"finetuning.remat": (False, True)}
