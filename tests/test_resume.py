"""Runs that are stopped, killed, changed, extended or damaged, and started again."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from mft_jax.config import (
    RoleConfig,
    TaskConfig,
    to_yaml,
)
from mft_jax.errors import UserError
from mft_jax.experiment import Experiment, run
from mft_jax.runs import layout
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.stage_file import StageFile
from mft_jax.sampling import NonFiniteLogits
from mft_jax.setup import prepare
from tests.small_run import SMALL, Remarks, lines, run_files, without_measurements


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be damaged or extended: (its directory, its configuration)."""
    path = tmp_path / "copy"
    shutil.copytree(finished[0].path, path)
    return RunDirectory(path), dataclasses.replace(SMALL, run_dir=str(path))


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
def test_kill_9_of_a_preference_method_gives_the_same_bytes(tmp_path, answering):
    """Killed while the log-probabilities of the reference are written, and again in the middle of the finetuning."""
    task = dataclasses.replace(SMALL.task, train_questions=8, eval_questions=2)
    one_round = dataclasses.replace(SMALL.debate, rounds=1)  # so that a pair fits into a row
    config = dataclasses.replace(SMALL, method="maca", iterations=1, baselines=(), task=task, debate=one_round)
    whole, directory = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    run(dataclasses.replace(config, run_dir=str(whole.path)), session=answering)
    pairs = lines(whole.training_set_file(1, "agent_0"))
    assert pairs
    assert all(example["reference"] and example["counterpart"] for example in pairs)
    file = tmp_path / "small.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "mft_jax", "run", str(file), "--run-dir", str(directory.path)]
    for path in (directory.training_set_file(1, "agent_0"), directory.checkpoint(1) / "1" / "_CHECKPOINT_METADATA"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while not path.exists():
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not directory.is_finished
    run(dataclasses.replace(config, run_dir=str(directory.path)), session=answering)
    assert run_files(directory, iterations=1) == run_files(whole, iterations=1)


def test_a_non_finite_loss_stops_and_the_run_is_resumed_with_a_lower_rate(tmp_path, answering):
    """As its message says. The change, and from when on it counts, is recorded."""
    broken = RoleConfig(learning_rate=1000.0, epochs=4)
    finetuning = dataclasses.replace(SMALL.finetuning, generator=broken, weight_decay=1000.0, warmup=0.0, save_every=1)
    config = dataclasses.replace(
        SMALL, run_dir=str(tmp_path / "run"), baselines=(), iterations=1, finetuning=finetuning
    )
    with pytest.raises(
        UserError,
        match=r"weights of generator_\d are not finite at step \d+ of iteration 1.* Lower finetuning\.generator",
    ):
        run(config, session=answering)
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
    run(dataclasses.replace(config, finetuning=lower), remarks, answering)
    assert directory.is_finished
    assert "Resuming the run in" in remarks.said[0]
    assert sets == {path.name: path.read_bytes() for path in directory.training_set_file(1, "x").parent.glob("*.jsonl")}
    changes = directory.manifest()["changes"]
    assert [(c["field"], c["from"], c["to"]) for c in changes] == [
        ("finetuning.generator.learning_rate", 1000.0, 1e-6),
        ("finetuning.weight_decay", 1000.0, 0.0),
    ]
    assert all("the last checkpoint" in change["takes_effect"] for change in changes)


def test_finetuned_weights_without_finite_logits_can_be_finetuned_again(copied, answering):
    """Weights can be finite, but so large that the logits are not: the sentence says how to repeat the finetuning."""
    directory, config = copied
    shutil.rmtree(directory.evaluation_file(2).parent)
    directory.take(config)
    experiment = Experiment(prepare(config, answering), directory, Remarks())
    society = experiment.setup.fresh_society()
    huge = jax.tree.map(lambda leaf: leaf + 1e30, society.stacked.weights)
    broken = dataclasses.replace(society, adapters=society.stacked._replace(weights=huge))
    with pytest.raises(
        NonFiniteLogits, match=r"generator_0 are NaN .* finetune iteration 2 again, delete .*iteration_2/ch"
    ):
        experiment.evaluate(experiment.setup.method, 2, broken)
    shutil.rmtree(directory.checkpoint(2))
    with pytest.raises(NonFiniteLogits, match=r"finetune with a lower learning rate\.$"):
        experiment.evaluate(experiment.setup.method, 2, broken)
    directory.release()


def test_a_run_is_resumed_with_other_settings_of_speed_and_memory(finished, tmp_path, answering, monkeypatch):
    """Out of memory in the middle of a debate, it is resumed with fewer rows and other chunks: the bytes are the same."""
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), baselines=(), iterations=1)
    commit = StageFile.commit

    def commit_first_chunk(self, start, *rest):
        if start:
            raise MemoryError("no more")
        commit(self, start, *rest)

    directory = RunDirectory(config.run_dir)
    with monkeypatch.context() as patch:
        patch.setattr(StageFile, "commit", commit_first_chunk)
        with pytest.raises(MemoryError):
            run(config, session=answering)
    assert directory.manifest()["error"] == "MemoryError: no more"
    smaller = dataclasses.replace(SMALL.sampling, rows=3, prefill_rows=2, steps_per_dispatch=7, chunk_questions=5)
    finetuning = dataclasses.replace(config.finetuning, save_every=3)
    run(dataclasses.replace(config, sampling=smaller, finetuning=finetuning), session=answering)
    for file in (lambda d: d.debate_file(1), lambda d: d.evaluation_file(1)):
        assert file(directory).read_bytes() == file(finished[0]).read_bytes()
    changed = {change["field"]: (change["from"], change["to"]) for change in directory.manifest()["changes"]}
    assert changed["sampling.rows"] == (8, 3)
    assert {"sampling.chunk_questions", "finetuning.save_every"} <= changed.keys()
    assert directory.config().sampling == smaller


def test_a_finished_run_is_given_more_iterations_and_baselines(finished, tmp_path, answering):
    """It ends with the bytes of a run that had them from the first."""
    short = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), iterations=1, baselines=("base", "debate"))
    run(short, session=answering)
    results = run(dataclasses.replace(short, iterations=2, baselines=SMALL.baselines), session=answering)
    assert without_measurements(results) == without_measurements(finished[1])
    assert run_files(RunDirectory(short.run_dir)) == run_files(finished[0])
    with pytest.raises(UserError, match=r"iterations is 2 there, 1 given"):
        run(short, session=answering)


def test_metrics_of_a_step_are_on_disk_before_the_checkpoint_that_counts_it(finished, copied, answering, monkeypatch):
    """A kill between the two loses none of them: a resumed stage logs only the steps after its checkpoint."""
    directory, config = copied
    shutil.rmtree(directory.checkpoint(2))
    save, at_save = Checkpoints.save, []

    def recording(self, step, *args, **kwargs):
        own = [record["step"] for record in lines(directory.metrics_file) if record["iteration"] == 2]
        at_save.append((step, own))
        save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", recording)
    remarks = Remarks()
    run(config, remarks, answering)
    assert "The files of iteration 2: finetuning are missing or incomplete." in remarks.said[0]
    assert at_save
    assert all(own == list(range(1, step + 1)) for step, own in at_save)
    assert run_files(directory) == run_files(finished[0])


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("[]"),
                                    lambda file: file.write_text("{]")])  # fmt: skip
def test_results_are_rebuilt(finished, copied, answering, damage):
    directory, config = copied
    damage(directory.results_file)
    before = finished[0].results_file.read_bytes()
    assert [result for result in run(config, session=answering) if result.task == "arithmetic"] == finished[1]
    assert directory.results_file.read_bytes() == before


def flip(path, old, new):
    data = path.read_bytes()
    assert data.count(old)
    path.write_bytes(data.replace(old, new, 1))


def test_one_changed_character_of_an_evaluation_is_found_and_made_again(finished, copied, answering):
    """Still valid JSON: only the chunk that has it is done again, and comes out as it was."""
    directory, config = copied
    file = directory.baseline_file("debate")
    flip(file, b'"correct": false', b'"correct": true ')
    remarks = Remarks()
    results = [result for result in run(config, remarks, answering) if result.task == "arithmetic"]
    assert without_measurements(results) == without_measurements(finished[1])
    assert file.read_bytes() == finished[0].baseline_file("debate").read_bytes()
    told = [text for text in remarks.said if "damaged" in text and str(file) in text]
    assert told
    aside = directory.path / "damaged" / file.relative_to(directory.path)
    assert b'"correct": true ' in aside.read_bytes()


def test_damaged_training_data_and_checkpoints_are_made_again_before_they_are_used(finished, copied, answering):
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
    run(config, remarks, answering)
    assert run_files(directory) == run_files(finished[0])
    assert sum("damaged" in text for text in remarks.said) >= 3
    assert any("The checkpoint" in text and "resumes from step" in text for text in remarks.said)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
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
