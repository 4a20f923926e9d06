import dataclasses
import subprocess
import sys

import pytest
from jax import numpy as jnp

from mft_jax.config import ExperimentConfig, LoraConfig
from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost
from mft_jax.runs import layout
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.status import StageStatus, read_status
from tests.runs.samples import SPENT, own_task, transcript, write_stage

CONFIG = ExperimentConfig(baselines=("base",), method="majority_ft")
TASK = own_task(train=("t1", "t2", "t3"), evaluation=("e1", "e2"))
LINE = transcript(["4", "4"], "4", True)
FINETUNING = Cost(train_tokens=7, wall_seconds=3.0)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run at work: the baseline and the debate are done, finetuning is half done."""
    run = RunDirectory(tmp_path / "run")
    run.take(CONFIG)
    run.create(CONFIG)
    run.keep_questions(TASK)
    write_stage(run.store, layout.evaluation("base", 0), [[LINE, LINE]])
    StageFile(run.store, layout.evaluation("base", 0)).seal(2)
    run.publish(CONFIG, TASK)
    write_stage(run.store, layout.debate(1), [[LINE, LINE], [LINE]])
    save(run, 4, finished=False)
    return run


def save(run: RunDirectory, step: int, finished: bool) -> None:
    state = {"adapters": {"q_proj": jnp.zeros(2)}}
    Checkpoints(run.store, layout.checkpoint(1)).save(
        step, state, finished=finished, lora=LoraConfig(), cost=FINETUNING, names=("writer",), total=9
    )


def files(run: RunDirectory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_what_is_done_what_is_left_and_what_it_cost(run):
    before = files(run)
    status = read_status(run.path)
    assert (status.path, status.state, status.error, status.finished) == (str(run.path), "running", None, None)
    assert status.started == run.manifest()["created"]
    assert [(result.method, result.accuracy) for result in status.results] == [("base", 1.0)]
    assert status.stages == (
        StageStatus("base (untuned)", 2, 2, "questions", SPENT, is_done=True),
        StageStatus("iteration 1: debate", 3, 3, "questions", SPENT + SPENT, is_done=True),
        StageStatus("iteration 1: finetuning", 4, 9, "steps", FINETUNING),
        StageStatus("iteration 1: evaluation", 0, 2, "questions", Cost()),
    )
    assert status.problems == ()
    assert files(run) == before


def test_how_a_run_ended(run):
    run.stop("failed", "the loss is not finite")
    assert (read_status(run.path).state, read_status(run.path).error) == ("failed", "the loss is not finite")
    run.take(CONFIG)
    assert (read_status(run.path).state, read_status(run.path).error) == ("running", None)
    run.release()  # as a kill does
    assert read_status(run.path).state == "interrupted"
    run.take(CONFIG)
    run.stop("interrupted", "Ctrl-C")
    assert (read_status(run.path).state, read_status(run.path).error) == ("interrupted", "Ctrl-C")
    run.take(CONFIG)
    save(run, 9, finished=True)
    write_stage(run.store, layout.evaluation("majority_ft", 1), [[LINE, LINE]])
    run.finish()
    status = read_status(run.path)
    assert (status.state, status.finished is None, len(status.stages)) == ("finished", False, 4)
    assert [stage.is_done for stage in status.stages] == [True] * 4


def test_a_finished_run_of_a_method_without_finetuning_has_no_other_stages(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.take(CONFIG)
    run.create(CONFIG)
    write_stage(run.store, layout.evaluation("base", 0), [[LINE, LINE]])
    assert [stage.done for stage in read_status(run.path).stages] == [2, 0, 0, 0]
    run.finish()
    assert [stage.name for stage in read_status(run.path).stages] == ["base (untuned)"]


def test_before_the_questions_are_known_their_number_is_the_configured_one(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.take(CONFIG)
    run.create(CONFIG)
    assert [stage.total for stage in read_status(run.path).stages] == [500, 500, None, 500]
    run.questions_file.write_bytes(b"\xff")
    assert read_status(run.path).stages[0].total == 500


def test_damaged_files_are_listed_and_left_alone(run):
    run.release()
    (run.path / "run.json").write_bytes(b"\xff")
    (run.path / "results.json").write_text("[]")
    chunk = run.store.names("iteration_1/debate/train.chunks")[0]
    run.store.write(chunk, run.store.read(chunk).replace(b"true", b"fals"))
    (run.path / "iteration_1/checkpoint/4/metadata/metadata").write_text("{}")
    before = files(run)
    status = read_status(run.path)
    assert (status.state, status.started, status.results) == ("interrupted", None, [])
    assert [(stage.done, stage.total) for stage in status.stages] == [(2, 2), (0, 3), (0, None), (0, 2)]
    places = ("000000.jsonl is damaged", "checkpoint/4 is damaged", "run.json is damaged", "results.json is not a list")
    assert len(status.problems) == len(places)
    assert all(place in problem for place, problem in zip(places, status.problems, strict=True))
    assert files(run) == before


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        read_status(tmp_path)


def test_it_works_without_jax_beside_another_process(run):
    script = (
        "import sys\nfrom mft_jax.runs.status import read_status\n"
        "print(read_status(sys.argv[1]).state, 'jax' in sys.modules, 'orbax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script, run.path], capture_output=True, text=True)
    assert out.stdout == "running False False\n", out.stderr
    assert dataclasses.asdict(read_status(run.path))["state"] == "running"
