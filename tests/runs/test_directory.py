import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest
import yaml

from mft_jax.config import DebateConfig, ExperimentConfig, MeshConfig, SamplingConfig, TaskConfig, to_dict
from mft_jax.errors import UserError
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.environment import git_revision
from mft_jax.runs.lock import InUse
from mft_jax.runs.store import DamagedFile
from tests.runs.disk import FAULTS, Stopped, fail_with, stopped_before
from tests.runs.samples import CONFIG, files, own_task, taken


def again(path, config=CONFIG) -> str:
    """The same command, once more, after the process before has ended."""
    run, found = taken(path, config)
    run.release()
    return found


def test_the_life_of_a_run(tmp_path):
    path = tmp_path / "runs" / "one"
    run, found = taken(path)
    assert (found, run.is_finished, run.manifest()["status"]) == ("new", False, "running")
    assert yaml.safe_load((path / "config.yaml").read_text()) == to_dict(CONFIG)
    run.stop("failed", "the loss is not finite")
    assert (run.manifest()["status"], run.manifest()["error"]) == ("failed", "the loss is not finite")

    run, found = taken(path)
    assert (found, run.manifest()["status"], run.manifest()["error"]) == ("resumed", "running", None)
    run.stop("interrupted", "Ctrl-C")
    assert run.manifest()["status"] == "interrupted"
    run, _ = taken(path)
    run.finish()
    assert run.manifest()["finished"] >= run.manifest()["created"]

    before = (path / "run.json").read_bytes()
    run, found = taken(path)
    assert (found, run.store.is_mine) == ("finished", True)
    run.release()
    assert (path / "run.json").read_bytes() == before
    assert RunDirectory(path).is_finished
    assert RunDirectory(path).config() == CONFIG


def test_the_manifest_says_what_each_start_ran_on(tmp_path):
    again(tmp_path / "run")
    again(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (manifest["seed"], manifest["changes"]) == (5, [])
    assert len(manifest["starts"]) == 2
    start = manifest["starts"][1]
    assert start["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(start["versions"][name] for name in ("jax", "flax", "optax", "orbax", "transformers", "mft_jax"))
    assert start["devices"]["platform"] == "cpu"
    assert sum(start["devices"]["kinds"].values()) >= 1


def test_the_layout(tmp_path):
    run = RunDirectory(tmp_path)
    paths = [
        run.config_file,
        run.manifest_file,
        run.questions_file,
        run.metrics_file,
        run.results_file,
        run.initial,
        run.baseline_file("majority"),
        run.debate_file(2),
        run.training_set_file(2, "reviewer"),
        run.checkpoint(2),
        run.evaluation_file(2),
        run.evaluation("gsm8k").results_file,
    ]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "config.yaml",
        "run.json",
        "questions.json",
        "metrics.jsonl",
        "results.json",
        "initial",
        "baselines/majority/eval.jsonl",
        "iteration_2/debate/train.jsonl",
        "iteration_2/finetune/reviewer.jsonl",
        "iteration_2/checkpoint",
        "iteration_2/eval/eval.jsonl",
        "evaluations/gsm8k/results.json",
    ]


def test_another_configuration_is_refused_with_every_field_that_may_not_change(tmp_path):
    again(tmp_path / "run")
    before = files(tmp_path)
    config = dataclasses.replace(
        CONFIG, seed=6, debate=DebateConfig(agents=5), baselines=("base",), mesh=MeshConfig(data=2)
    )
    with pytest.raises(UserError) as caught:
        taken(tmp_path / "run", config)
    listed = str(caught.value).split(": ", 1)[1]
    assert listed == (
        "seed is 5 there, 6 given; baselines is ['base', 'majority', 'debate'] there, ['base'] given; debate.agents is 3 "
        "there, 5 given: give another --run-dir, or the stored values."
    )
    assert len(RunDirectory(tmp_path / "run").manifest()["starts"]) == 1
    assert RunDirectory(tmp_path / "run").config() == CONFIG
    assert files(tmp_path) == before
    assert again(tmp_path / "run") == "resumed"  # it is free


def test_where_things_are_does_not_make_another_configuration(tmp_path):
    again(tmp_path / "run")
    moved = dataclasses.replace(CONFIG, run_dir="there", task=TaskConfig(data_dir="/files", cache_dir="/cache"))
    assert again(tmp_path / "run", moved) == "resumed"
    assert RunDirectory(tmp_path / "run").manifest()["changes"] == []


def with_settings(**changed) -> ExperimentConfig:
    """The configuration with settings that may change: sampling.rows, finetuning.clip_norm, iterations."""
    rows, clip = changed.get("rows", 64), changed.get("clip", 1.0)
    return dataclasses.replace(
        CONFIG,
        iterations=changed.get("iterations", 1),
        sampling=SamplingConfig(rows=rows),
        finetuning=dataclasses.replace(CONFIG.finetuning, clip_norm=clip),
    )


def test_settings_that_may_change_are_recorded_and_kept(tmp_path):
    again(tmp_path / "run")
    changed = with_settings(rows=16, clip=0.5)
    assert again(tmp_path / "run", changed) == "resumed"
    run = RunDirectory(tmp_path / "run")
    records = run.manifest()["changes"]
    assert all(record.pop("time") for record in records)
    assert records == [
        {"field": "sampling.rows", "from": 64, "to": 16, "takes_effect": "at once"},
        {
            "field": "finetuning.clip_norm", "from": 1.0, "to": 0.5,
            "takes_effect": "from the first optimizer step after the last checkpoint on",
        },
    ]  # fmt: skip
    assert run.config() == changed
    assert again(tmp_path / "run", changed) == "resumed"
    assert len(run.manifest()["changes"]) == 2
    assert again(tmp_path / "run") == "resumed"  # and back
    assert [record["to"] for record in run.manifest()["changes"]] == [16, 0.5, 64, 1.0]


def test_a_change_that_a_killed_start_recorded_is_not_recorded_twice(tmp_path, monkeypatch):
    again(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "_write_config", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            taken(tmp_path / "run", with_settings(rows=16))
    assert RunDirectory(tmp_path / "run").config() == CONFIG
    assert again(tmp_path / "run", with_settings(rows=16)) == "resumed"
    assert len(RunDirectory(tmp_path / "run").manifest()["changes"]) == 1


def test_a_finished_run_can_be_given_more_but_is_not_touched_for_speed(tmp_path):
    run, _ = taken(tmp_path / "run")
    run.finish()
    assert again(tmp_path / "run", with_settings(rows=16)) == "finished"
    assert RunDirectory(tmp_path / "run").config() == CONFIG
    more = with_settings(iterations=3, rows=16)
    run, found = taken(tmp_path / "run", more)
    assert (found, run.is_finished, run.manifest()["finished"]) == ("resumed", False, None)
    fields = [(record["field"], record["takes_effect"]) for record in run.manifest()["changes"]]
    assert fields == [("iterations", "after what is done"), ("sampling.rows", "at once")]
    assert run.config().iterations == 3
    run.finish()
    with pytest.raises(UserError, match="iterations is 3 there, 2 given"):
        taken(tmp_path / "run", with_settings(iterations=2, rows=16))
    assert again(tmp_path / "run", more) == "finished"


def test_the_questions_of_a_run_are_kept_and_compared(tmp_path):
    run, _ = taken(tmp_path / "run")
    run.keep_questions(own_task())
    stored = json.loads(run.questions_file.read_text())
    assert {name: stored[name] for name in ("task", "train", "eval")} == {
        "task": "own",
        "train": ["t1", "t2"],
        "eval": ["e1"],
    }
    before = run.questions_file.stat().st_mtime_ns
    run.keep_questions(own_task())
    others = {
        "train question 2 is t2 there, t3 now": own_task(train=("t1", "t3")),
        "train question 1 is t1 there, t2 now": own_task(train=("t2", "t1")),
        "1 eval questions there, 2 now": own_task(evaluation=("e1", "e2")),
        "the same ids, but other texts or answers": own_task(gold="6"),
    }
    for change, other in others.items():
        with pytest.raises(UserError, match="The data of the task own have changed since this run began") as caught:
            run.keep_questions(other)
        assert change in str(caught.value)
        assert str(run.questions_file) in str(caught.value)
    assert run.questions_file.stat().st_mtime_ns == before


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"train": ["t1", "t2"]}', b"\xff", b"[" * 9000, "flipped"])
def test_kept_questions_that_are_damaged_are_set_aside_and_replaced(tmp_path, text):
    run, _ = taken(tmp_path / "run")
    run.keep_questions(own_task())
    whole = run.questions_file.read_bytes()
    damaged = whole.replace(b'"t1"', b'"t9"') if text == "flipped" else text
    run.questions_file.write_bytes(damaged)
    heard = []
    run.keep_questions(own_task(), heard.append)
    assert run.questions_file.read_bytes() == whole
    assert (run.path / "damaged" / "questions.json").read_bytes() == damaged
    assert len(heard) == 1
    assert str(run.questions_file) in heard[0]


def test_a_kill_while_the_run_is_created(tmp_path):
    """Stopped before each of the steps that change the disk; the same command then creates or resumes the run."""
    step, is_killed = 0, True
    while is_killed:
        path = tmp_path / str(step)
        run = RunDirectory(path)
        try:
            with stopped_before(step):
                if run.take(CONFIG) == "new":
                    run.create(CONFIG)
            is_killed = False
        except Stopped:
            had_config = run.exists
        os.close(run.store._files._lock._descriptor) if run.store.is_mine else None  # as the end of the process does
        if is_killed:
            assert again(path) == ("resumed" if had_config else "new")
        assert again(path) == "resumed"
        step += 1
    assert step > 10


def test_a_mistake_that_is_found_before_the_run_is_created_leaves_nothing(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "one")
    assert run.take(CONFIG) == "new"
    assert run.store.is_mine
    with pytest.raises(InUse):
        RunDirectory(run.path).take(CONFIG)
    run.release()
    assert files(tmp_path) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ["lock", "run.json", "config.yaml", "questions.json"])
def test_a_disk_that_refuses_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, fault, action):
    """The first write of each kind is refused; afterwards the same command works."""
    number, functions, reason, remedy = FAULTS[fault]
    run = RunDirectory(tmp_path / "runs" / "one")
    if action != "lock":
        run.take(CONFIG)
    if action == "questions.json":
        run.create(CONFIG)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        if action == "config.yaml":
            real = RunDirectory._write_config
            patch.setattr(RunDirectory, "_write_config",
                          lambda self, config: (fail_with(patch, number, functions, "config"), real(self, config)))  # fmt: skip
        else:
            fail_with(patch, number, functions)
        with pytest.raises(UserError, match=rf"cannot be written \({reason}\): {remedy}"):
            {"lock": lambda: run.take(CONFIG), "questions.json": lambda: run.keep_questions(own_task())}.get(
                action, lambda: run.create(CONFIG)
            )()
    assert files(tmp_path) == before
    run.release()
    assert (tmp_path / "runs").exists() == (action == "questions.json")
    assert again(tmp_path / "runs" / "one") == ("resumed" if action == "questions.json" else "new")


def test_a_note_of_the_end_that_cannot_be_written_does_not_hide_why_it_ended(tmp_path, monkeypatch):
    run, _ = taken(tmp_path / "run")
    with monkeypatch.context() as patch:
        fail_with(patch, *FAULTS["full"][:2])
        run.stop("failed", "no room")
    assert (run.manifest()["status"], run.store.is_held()) == ("running", False)


def test_only_a_run_at_work_can_stop(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.take(CONFIG)
    run.stop("failed", "the model is not there")
    assert files(tmp_path) == []
    run, _ = taken(tmp_path / "run")
    run.finish()
    run.take(CONFIG)
    run.stop("failed", "the questions are not there any more")
    assert (run.is_finished, run.manifest()["error"], run.store.is_held()) == (True, None, False)


def test_what_is_not_a_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not a run \(it holds thesis.tex"):
        taken(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        taken(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="s3://bucket/run is neither a local directory nor a place in a bucket"):
        RunDirectory("s3://bucket/run")
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        RunDirectory(tmp_path).config()


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b'{"status": "running"}', b"\xff\xfe", b"[" * 9000,
                                  b'{"status": 3, "starts": [], "changes": []}'])  # fmt: skip
def test_a_damaged_manifest_is_set_aside_and_begun_anew(tmp_path, text):
    run, _ = taken(tmp_path / "run")
    run.finish()
    run.manifest_file.write_bytes(text)
    with pytest.raises(UserError, match=r"run\.json is damaged .*: start the run again, which sets it aside"):
        run.manifest()
    heard = []
    assert run.take(CONFIG, heard.append) == "resumed"
    assert heard == [heard[0]]
    assert "run.json is damaged (" in heard[0]
    assert f"it was moved to {run.path / 'damaged' / 'run.json'}, and a new one is begun." in heard[0]
    assert (run.path / "damaged" / "run.json").read_bytes() == text
    assert len(run.manifest()["starts"]) == 1
    run.finish()
    assert again(run.path) == "finished"


def test_a_manifest_that_is_gone_is_begun_anew(tmp_path):
    again(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    assert RunDirectory(tmp_path / "run").is_finished is False
    assert again(tmp_path / "run") == "resumed"


def test_a_run_of_another_version_is_left_alone(tmp_path):
    run, _ = taken(tmp_path / "run")
    run.release()
    manifest = run.manifest()
    del manifest["format"]
    run.manifest_file.write_text(json.dumps(manifest))
    before = files(tmp_path)
    with pytest.raises(
        UserError, match=r"was written by another version of mft_jax \(format 1, expected 2\): use that"
    ):
        run.take(CONFIG)
    assert files(tmp_path) == before


@pytest.mark.parametrize("text", [b"seed: \xff\n", b"seed: [\n", b"- 1\n", b"sead: 3\n"])
def test_a_configuration_that_is_damaged_is_one_sentence(tmp_path, text):
    again(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_bytes(text)
    with pytest.raises(DamagedFile, match=r"run/config\.yaml is damaged or was edited \(.*\): start the run again"):
        RunDirectory(tmp_path / "run").config()


def test_a_run_of_a_version_without_a_setting_did_what_that_version_did(tmp_path):
    """Critics then learned all answers of all debates. The run can be read, and resumed with these settings only."""
    again(tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    raw = yaml.safe_load(run.config_file.read_text())
    del raw["finetuning"]["critic_answers"], raw["finetuning"]["critic_support"]
    body = yaml.safe_dump(raw).encode()
    checksum = hashlib.sha256(body).hexdigest()
    run.config_file.write_bytes(body + b"# sha256 of the lines above: " + checksum.encode() + b"\n")
    earlier = dataclasses.replace(CONFIG.finetuning, critic_answers="all", critic_support=0.0)
    assert RunDirectory(run.path).config() == dataclasses.replace(CONFIG, finetuning=earlier)
    with pytest.raises(UserError, match=r"finetuning\.critic_answers is 'all' there, 'last' given"):
        taken(tmp_path / "run")


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path):
    script = (
        "import sys, time\nfrom mft_jax.runs.store import Store\n"
        "Store(sys.argv[1]).hold(); print('locked', flush=True); time.sleep(60)"
    )
    again(tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        with pytest.raises(InUse, match=f"in use by the process with pid {process.pid}:"):
            taken(tmp_path / "run")
        assert len(RunDirectory(tmp_path / "run").manifest()["starts"]) == 1
    finally:
        process.kill()
        process.wait()
    assert again(tmp_path / "run") == "resumed"


def test_adapters_are_imported_before_a_run_begins_and_once(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.take_for_import()
    with pytest.raises(InUse):
        RunDirectory(run.path).take(CONFIG)
    run.initial.mkdir()
    run.release()
    assert run.has_imported
    with pytest.raises(UserError, match="initial holds imported adapters already"):
        run.take_for_import()
    assert again(run.path) == "new"
    with pytest.raises(UserError, match="is a run already"):
        run.take_for_import()
    assert not run.store.is_held()


def test_an_evaluation_beside_the_run_has_a_lock_of_its_own(tmp_path):
    run, _ = taken(tmp_path / "run")
    nested = run.evaluation("gsm8k")
    assert nested.take(CONFIG) == "new"
    nested.create(CONFIG)
    with pytest.raises(InUse):
        run.evaluation("gsm8k").take(CONFIG)
    heard = []
    run.publish_evaluations(heard.append)
    assert heard[0].startswith(f"The results of this evaluation are not in {run.results_file} yet. ")
    nested.finish()


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
