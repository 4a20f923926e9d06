import dataclasses
import json

import pytest
from jax import numpy as jnp

from mft_jax.config import ExperimentConfig, LoraConfig, to_yaml
from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost
from mft_jax.runs import layout
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import read_results, write_results
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.training_sets import write_training_sets
from tests.runs.disk import FAULTS, fail_with
from tests.runs.samples import SPENT, own_task, transcript, write_stage

CONFIG = ExperimentConfig(iterations=2, method="majority_ft")
TASK = own_task(evaluation=("e1", "e2", "e3", "e4"))
RIGHT, WRONG = transcript(["4"], "4", True), transcript(["5"], "5", False)
SPLIT = transcript(["4", "4.0", None], "4", True)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run in its first iteration's evaluation: base and debate are done, majority is half done."""
    run = RunDirectory(tmp_path / "run")
    run.take(CONFIG)
    run.create(CONFIG)
    counts = {"cut": 2, "unanswered": 1, "grading_timeouts": 0}
    write_stage(run.store, layout.evaluation("base", 0), [[RIGHT, WRONG], [RIGHT, RIGHT]], counts)
    write_stage(run.store, layout.evaluation("majority", 0), [[SPLIT, SPLIT]])
    other = transcript(["1", "2", "3"], "2", False)
    write_stage(run.store, layout.evaluation("debate", 0), [[SPLIT, SPLIT], [SPLIT, other]])
    StageFile(run.store, layout.evaluation("debate", 0)).seal(4)
    write_stage(run.store, layout.debate(1), [[SPLIT] * 2] * 3)
    Checkpoints(run.store, layout.checkpoint(1)).save(
        1,
        {"adapters": {"q_proj": jnp.zeros(2)}},
        finished=True,
        lora=LoraConfig(),
        cost=Cost(train_tokens=7, flops=10_000, device_seconds=4.0, wall_seconds=8.0),
        names=("writer",),
    )
    write_stage(run.store, layout.evaluation("majority_ft", 1), [[SPLIT, SPLIT], [SPLIT, SPLIT]])
    return run


def test_results_are_exactly_what_the_transcripts_say(run):
    results = run.publish(CONFIG, TASK)
    base, debate, tuned = json.loads(run.results_file.read_text())
    assert base == {
        "method": "base",
        "iteration": 0,
        "task": "own",
        "n": 4,
        "accuracy": 0.75,
        "stderr": pytest.approx((0.75 * 0.25 / 4) ** 0.5),
        "prompt_tokens": 2,
        "new_tokens": 20,
        "flops": 200,
        "device_seconds": 1.0,
        "wall_seconds": 2.0,
        "diversity": None,
        "cut": 4,
        "unparsed": 0,
        "unanswered": 2,
        "grading_timeouts": 0,
        "answers": {
            "n": 4, "pass_at_k": [0.75], "best_of_agents": 0.75, "vote_accuracy": [0.75], "agent_accuracy": [[0.75]],
            "transitions": [],
        },
        "training_vote": None,
        "vote_curve": None,
        "monitor": None,
        "ledger": results[0].ledger.to_dict(),
        "comparison": None,
    }  # fmt: skip
    assert (debate["method"], debate["accuracy"], debate["cut"]) == ("debate", 0.75, 0)
    assert debate["diversity"]["consensus"] == pytest.approx((3 * 2 / 3 + 1 / 3) / 4)
    assert (tuned["method"], tuned["iteration"], tuned["accuracy"]) == ("majority_ft", 1, 1.0)
    # Three chunks of debate, finetuning, two chunks of evaluation.
    assert (tuned["new_tokens"], tuned["flops"], tuned["wall_seconds"]) == (50, 10_500, 13.0)
    assert [point["accuracy"] for point in debate["vote_curve"]] == pytest.approx([0.5, 0.75, 0.75])
    assert (tuned["monitor"]["verdict"], tuned["monitor"]["signals"]["unparsed"]) == ("unknown", pytest.approx(1 / 3))
    assert debate["answers"]["pass_at_k"] == pytest.approx([2 / 3 * 0.75, 0.75, 0.75])
    assert (tuned["unparsed"], tuned["training_vote"]) == (
        4,
        {"questions": 6, "coverage": 1.0, "precision": 1.0, "unparsed": 6, "cut": 0},
    )
    assert read_results(run.results_file) == results


def test_the_ledger_counts_the_training_of_all_iterations(run):
    """In iteration 2, no adapter had anything to learn from."""
    write_stage(run.store, layout.debate(2), [[SPLIT]] * 3)
    write_stage(run.store, layout.evaluation("majority_ft", 2), [[SPLIT] * 4])
    base, _, first, second = [result.ledger for result in run.publish(CONFIG, TASK)]
    assert (base.training, base.cumulative) == (Cost(), base.evaluation) == (Cost(), SPENT + SPENT)
    assert (first.debate.flops, first.finetuning.flops, first.evaluation.flops) == (300, 10_000, 200)
    assert (first.cumulative.flops, first.cumulative.train_tokens) == (10_500, 7)
    assert (second.debate.flops, second.finetuning.flops, second.evaluation.flops) == (300, 0, 100)
    assert (second.training.flops, second.cumulative.flops, second.cumulative.train_tokens) == (10_600, 10_700, 7)


def test_results_are_compared_with_the_first_method(run):
    """base: right on all questions but the second; debate: on all but the fourth; after finetuning: on all."""
    base, debate, tuned = [result.comparison for result in run.publish(CONFIG, TASK)]
    assert base is None
    assert (debate.n, debate.only_this, debate.only_other, debate.difference) == (4, 1, 1, 0)
    assert (tuned.n, tuned.only_this, tuned.only_other, tuned.difference) == (4, 1, 0, 0.25)
    assert tuned.low == 0 < tuned.difference < tuned.high


@pytest.mark.parametrize("text", [None, b"", b"[]", b"{", b"\xff", b"[[]]"])
def test_results_of_a_finished_run_are_rebuilt(run, text):
    """What the message of `read_results` says: the same command makes the file again."""
    before = run.publish(CONFIG, TASK)
    run.finish()
    if text is None:
        run.results_file.unlink()
    else:
        run.results_file.write_bytes(text)
    with pytest.raises(UserError):
        read_results(run.results_file)
    assert run.take(CONFIG) == "finished"
    assert run.publish(CONFIG, TASK) == before == read_results(run.results_file)


def spoil(run: RunDirectory, name: str) -> None:
    run.store.write(name, run.store.read(name).replace(b"true", b"fals", 1))


def test_damaged_pieces_leave_their_results_out_until_the_run_repairs_them(run):
    spoil(run, run.store.names("baselines/base/eval.chunks")[0])
    spoil(run, run.store.names("iteration_1/debate/train.chunks")[1])
    heard = []
    assert [result.method for result in run.publish(CONFIG, TASK, heard.append)] == ["debate"]
    assert len(heard) == 2
    assert heard[0].startswith("The results of base, iteration 0, are left out. ")
    assert "train.chunks/000002.jsonl is damaged" in heard[1]


def spoil_adapters(run: RunDirectory) -> None:
    path = max((run.checkpoint(1) / "1" / "adapters").rglob("d/*"), key=lambda entry: entry.stat().st_size)
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("spoil_it", "named"),
    [
        (lambda run: spoil(run, layout.evaluation("debate", 0)), "debate/eval.jsonl is damaged"),
        (lambda run: spoil(run, run.store.names("iteration_1/debate/train.chunks")[1]), "000002.jsonl is damaged"),
        (spoil_adapters, "checkpoint/1 is damaged"),
    ],
)
def test_a_finished_run_with_a_damaged_piece_is_resumed_to_repair_it(run, spoil_it, named):
    run.finish()
    assert run.take(CONFIG, pytest.fail) == "finished"
    run.release()
    spoil_it(run)
    heard = []
    assert run.take(CONFIG, heard.append) == "resumed"
    assert heard[0].startswith(f"The finished run in {run.path} is resumed to repair it. ")
    assert named in heard[0]


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("baselines/base/eval.chunks", "base (untuned)"),
        ("iteration_1/debate/train.chunks/000002.jsonl", "iteration 1: debate"),
        ("iteration_1/checkpoint", "iteration 1: finetuning"),
        ("iteration_1/eval", "iteration 1: evaluation"),
        ("iteration_1/finetune/writer.jsonl", "finetune/writer.jsonl cannot be used (it is missing)"),
        ("iteration_1/finetune", "finetune/writer.jsonl cannot be used (training_sets.json is missing)"),
    ],
)
def test_a_finished_run_of_which_something_was_deleted_is_resumed_to_make_it_again(run, gone, named):
    config = dataclasses.replace(CONFIG, iterations=1, baselines=("base", "debate"))
    run.store.write(layout.CONFIG, to_yaml(config).encode())
    run.keep_questions(own_task(train=("t1",) * 6, evaluation=("e1",) * 4))
    write_training_sets(run.store, 1, {"writer": [{"messages": []}]})
    run.finish()
    assert run.take(config, pytest.fail, ["writer"]) == "finished"
    run.release()
    run.store.delete(gone)
    heard = []
    assert run.take(config, heard.append, ["writer"]) == "resumed"
    assert named in heard[0]
    assert heard[0].count("iteration 1") <= 1


def test_a_finished_run_of_a_method_without_finetuning_is_complete_with_its_baselines(run):
    config = dataclasses.replace(CONFIG, baselines=("base", "debate"))
    run.store.write(layout.CONFIG, to_yaml(config).encode())
    run.keep_questions(own_task(evaluation=("e1",) * 4))
    run.store.delete("iteration_1")
    run.finish()
    assert run.take(config, pytest.fail, []) == "finished"


def test_a_restart_adds_what_was_spent_before(run):
    """The other half of the majority vote comes from a second process, with a clock of its own."""
    half = StageFile(run.store, layout.evaluation("majority", 0))
    spent = dataclasses.replace(SPENT, wall_seconds=5.0)
    half.commit(2, [transcript(["4"] * 3, "4", True)] * 2, spent, {})
    (majority,) = [result for result in run.publish(CONFIG, TASK) if result.method == "majority"]
    assert (majority.n, majority.wall_seconds, majority.new_tokens) == (4, 6.0, 20)


def test_questions_without_a_known_answer_have_no_accuracy(run):
    unknown = transcript(["4", "5"], "4", None)
    write_stage(run.store, layout.evaluation("majority@2", 0), [[unknown] * 4])
    write_stage(
        run.store,
        layout.evaluation("majority@4", 0),
        [[unknown] * 2 + [SPLIT, transcript(["1", "2", "1"], "1", False)]],
    )
    config = dataclasses.replace(CONFIG, baselines=("majority@2", "majority@4"), iterations=1)
    none, some, _ = run.publish(config, TASK)
    assert (none.n, none.accuracy, none.stderr, none.diversity["consensus"]) == (4, None, None, 0.5)
    assert (some.n, some.accuracy, some.stderr) == (4, 0.5, pytest.approx((0.25 / 2) ** 0.5))
    assert read_results(run.results_file)[0] == none


def test_evaluations_on_other_tasks_are_included_by_their_label(run):
    done, damaged, unfinished = (run.evaluation(label) for label in ("other", "damaged", "unfinished"))
    for nested in (done, damaged, unfinished):
        nested.take(CONFIG)
        nested.create(CONFIG)
    write_stage(done.store, layout.evaluation("majority_ft", 1), [[SPLIT] * 4])
    done.publish(CONFIG, TASK)
    damaged.results_file.write_text("[]")
    heard = []
    results = run.publish(CONFIG, TASK, heard.append)
    assert [(r.method, r.iteration, r.task) for r in results][-2:] == [
        ("majority_ft", 1, "own"),
        ("majority_ft", 1, "other"),
    ]
    assert results[-1].new_tokens == 10  # of the evaluation alone
    assert results[-1].ledger.cumulative.new_tokens == 10 + 30  # and of the debate that the agents were trained on
    assert len(heard) == 1
    assert heard[0].startswith("The results of the evaluation damaged are left out. ")


def finished_evaluation(run) -> RunDirectory:
    """An evaluation of the run on the task "other"."""
    nested = run.evaluation("other")
    nested.take(CONFIG)
    nested.create(CONFIG)
    write_stage(nested.store, layout.evaluation("majority_ft", 1), [[SPLIT] * 4])
    nested.publish(CONFIG, TASK)
    nested.finish()
    return nested


def test_results_of_an_evaluation_that_were_changed_later_are_left_out(run):
    nested = finished_evaluation(run)
    assert [result.task for result in run.publish(CONFIG, TASK)] == ["own", "own", "own", "other"]
    nested.results_file.write_text(nested.results_file.read_text().replace('"n": 4', '"n": 5'))
    heard = []
    assert [result.task for result in run.publish(CONFIG, TASK, heard.append)] == ["own"] * 3
    assert f"The checksum of {nested.results_file} is wrong" in heard[0]


def test_an_evaluation_publishes_its_results_unless_the_run_is_at_work(run):
    before = run.publish(CONFIG, TASK)
    finished_evaluation(run)
    elsewhere, heard = RunDirectory(run.path), []
    elsewhere.publish_evaluations(heard.append)
    assert heard == [
        f"{run.results_file} is in use by another process: the run adds these results when it writes its own."
    ]
    assert read_results(run.results_file) == before
    run.stop("interrupted", "")
    with pytest.raises(RuntimeError, match="not held by this process"):
        write_results(elsewhere.store, before)
    elsewhere.publish_evaluations(pytest.fail)
    elsewhere.publish_evaluations(pytest.fail)
    assert [result.task for result in read_results(run.results_file)] == ["own"] * 3 + ["other"]
    run.results_file.write_text("[]")
    elsewhere.publish_evaluations(heard.append)
    assert run.results_file.read_text() == "[]"
    assert heard[1].startswith(f"The results of this evaluation are not in {run.results_file} yet. ")
    assert "is not a list of results" in heard[1]
    assert not elsewhere.store.is_held()


GOOD = {
    "method": "base", "iteration": 0, "task": "own", "n": 1, "accuracy": 1, "stderr": 0.0, "prompt_tokens": 1,
    "new_tokens": 1, "flops": 1, "device_seconds": 1.0, "wall_seconds": 1, "diversity": None,
}  # fmt: skip


@pytest.mark.parametrize("content", [
    [], {}, None, 3, "base", [1], [[]], [{"method": "base"}], [GOOD | {"more": 1}], [GOOD | {"method": 1}],
    [GOOD | {"accuracy": "high"}], [GOOD | {"n": None}], [GOOD | {"diversity": []}], [GOOD | {"cut": {}}],
    [GOOD | {"flops": 10**400}], [GOOD | {"accuracy": float("nan")}], [GOOD | {"vote_curve": [{"k": "1"}]}],
    [GOOD | {"ledger": {name: {"flops": None} for name in ("debate", "finetuning", "evaluation", "training")}}],
    [GOOD | {"ledger": 3}], [GOOD | {"ledger": {"debate": {}}}], [GOOD | {"comparison": {"n": 3}}],
])  # fmt: skip
def test_a_file_that_is_not_results(tmp_path, content):
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text(json.dumps([GOOD]))
    assert read_results(tmp_path / "results.json")[0].cut == 0
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"results\.json is not a list of results .*: start the command that made it again"
    ):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_refuses(run, monkeypatch, fault):
    number, functions, reason, remedy = FAULTS[fault]
    before = run.publish(CONFIG, TASK)
    write_stage(run.store, layout.evaluation("majority", 0), [[SPLIT, SPLIT]])
    with monkeypatch.context() as patch:
        fail_with(patch, number, functions)
        with pytest.raises(UserError, match=rf"results\.json cannot be written \({reason}\): {remedy}"):
            run.publish(CONFIG, TASK)
    assert read_results(run.results_file) == before
    assert len(run.publish(CONFIG, TASK)) == len(before) + 1
