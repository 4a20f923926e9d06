"""Small runs for tests: a task, transcripts, stages with costs."""

import json

from mft_jax.config import ExperimentConfig
from mft_jax.metrics.ledger import Cost
from mft_jax.prompts import GENERAL
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.store import Store
from mft_jax.tasks import Question, Task

SPENT = Cost(prompt_tokens=1, new_tokens=10, flops=100, device_seconds=0.5, wall_seconds=1.0)  # of one chunk


CONFIG = ExperimentConfig(run_dir="here", seed=5)


def taken(path, config=CONFIG) -> tuple[RunDirectory, str]:
    """What `mft run` does before it works."""
    run = RunDirectory(path)
    found = run.take(config)
    if found == "new":
        run.create(config)
    return run, found


def files(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def own_task(train=("t1", "t2"), evaluation=("e1",), gold="5") -> Task:
    """A task whose answers are numbers."""
    questions = [tuple(Question(name, f"What is {name}?", gold) for name in names) for names in (train, evaluation)]
    equal = lambda left, right: float(left) == float(right)
    return Task("own", *questions, parse=str, equivalent=equal, prompts=GENERAL)


def transcript(answers: list[str | None], vote: str | None, correct: bool | None) -> str:
    """What of a transcript of one round a result is made from. The right answer is 4, if it is known."""
    turn = {"end": "stop", "prompt_tokens": 1, "new_tokens": 1}
    agents = [{"messages": [], "answers": [answer], "turns": [turn]} for answer in answers]
    gold = None if correct is None else "4"
    return json.dumps({"id": "q", "gold": gold, "agents": agents, "votes": [vote], "vote": vote, "correct": correct})


def write_stage(store: Store, name: str, chunks: list[list[str]], counts=None, cost: Cost = SPENT) -> None:
    """Commits chunks, and leaves the stage unsealed, as a run at work does."""
    stage = StageFile(store, name)
    for lines in chunks:
        stage.commit(stage.done, lines, cost, counts or {})
