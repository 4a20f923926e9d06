import dataclasses
import json

import pytest
from jax import numpy as jnp

from mft_jax.config import LoraConfig
from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.journal import Journal
from mft_jax.runs.results import collect_results, read_results, write_results

SPENT = Cost(prompt_tokens=1, new_tokens=10, flops=100, device_seconds=0.5, wall_seconds=1.0)


def transcript(answers: list[str | None], vote: str | None, correct: bool) -> str:
    agents = [{"messages": [], "answers": [answer]} for answer in answers]
    return json.dumps({"id": "q", "agents": agents, "vote": vote, "correct": correct})


def journal(path, chunks: list[list[str]], cost: Cost = SPENT) -> None:
    stage = Journal(path)
    for chunk in chunks:
        stage.commit(chunk, cost)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run in its first iteration's evaluation: base and debate are done, majority is half done."""
    run = RunDirectory(tmp_path / "run")
    right, wrong = transcript(["4"], "4", True), transcript(["5"], "5", False)
    split = transcript(["4", "4.0", None], "4", True)
    journal(run.baseline_file("base"), [[right, wrong], [right, right]])
    journal(run.baseline_file("majority"), [[split, split]])
    journal(run.baseline_file("debate"), [[split, split], [split, transcript(["1", "2", "3"], "2", False)]])
    journal(run.debate_file(1), [[split] * 2, [split] * 2, [split] * 2])
    with Checkpoints(run.checkpoint(1)) as checkpoints:
        state = {"adapters": {"q_proj": jnp.zeros(2)}}
        cost = Cost(train_tokens=7, flops=10_000, device_seconds=4.0, wall_seconds=8.0)
        checkpoints.save(1, state, finished=True, lora=LoraConfig(), cost=cost)
    journal(run.evaluation_file(1), [[split, split], [split, split]])
    return run


def collected(run: RunDirectory) -> list:
    return collect_results(
        run,
        task="arithmetic",
        questions=4,
        baselines=("base", "majority", "debate"),
        method="multiagent_ft",
        iterations=2,
        equivalent=lambda a, b: float(a) == float(b),
    )


def test_results_are_exactly_what_the_journals_say(run):
    results = collected(run)
    write_results(run.results_file, results)
    base, debate, tuned = json.loads(run.results_file.read_text())
    assert base == {
        "method": "base",
        "iteration": 0,
        "task": "arithmetic",
        "n": 4,
        "accuracy": 0.75,
        "stderr": pytest.approx((0.75 * 0.25 / 4) ** 0.5),
        "prompt_tokens": 2,
        "new_tokens": 20,
        "flops": 200,
        "device_seconds": 1.0,
        "wall_seconds": 2.0,
        "diversity": None,
    }
    assert (debate["method"], debate["accuracy"]) == ("debate", 0.75)
    assert debate["diversity"]["consensus"] == pytest.approx((3 * 2 / 3 + 1 / 3) / 4)
    assert (tuned["method"], tuned["iteration"], tuned["accuracy"]) == ("multiagent_ft", 1, 1.0)
    # Three chunks of debate, finetuning, two chunks of evaluation.
    assert (tuned["new_tokens"], tuned["flops"], tuned["wall_seconds"]) == (50, 10_500, 13.0)
    assert read_results(run.results_file) == results


def test_a_restart_adds_what_was_spent_before(run):
    """The other half of the majority vote comes from a second process, with a clock of its own."""
    half = Journal(run.baseline_file("majority"))
    half.commit([transcript(["4"] * 3, "4", True)] * 2, dataclasses.replace(SPENT, wall_seconds=5.0))
    (majority,) = [result for result in collected(run) if result.method == "majority"]
    assert (majority.n, majority.wall_seconds, majority.new_tokens) == (4, 6.0, 20)


def test_a_file_that_is_not_results(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text('[{"method": "base"}]')
    with pytest.raises(UserError, match="not a list of results"):
        read_results(tmp_path / "results.json")
