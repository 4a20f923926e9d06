"""results.json: the results of a run, one object per method, iteration and task."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.conform import first_wrong_field
from mft_jax.errors import UserError
from mft_jax.metrics.answers import AnswerSummary, VoteQuality
from mft_jax.metrics.ledger import Ledger
from mft_jax.metrics.monitor import Monitor
from mft_jax.metrics.statistics import Comparison
from mft_jax.metrics.vote_curve import VotePoint
from mft_jax.parallel.hosts import decided
from mft_jax.runs import layout
from mft_jax.runs.store import Store, read_path
from mft_jax.runs.used_feedback import FeedbackUse

COSTS = ("prompt_tokens", "new_tokens", "flops", "device_seconds", "wall_seconds")
COUNTS = ("cut", "unparsed", "unanswered", "grading_timeouts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one method on the evaluation questions of one task.

    The tokens, FLOPs and seconds are those of one iteration (debate, finetuning and evaluation), or of the evaluation
    of a baseline. `ledger` has the cost of each stage, at test time and cumulative.
    """

    method: str
    iteration: int  # number of finetunings; 0: without finetuning
    task: str
    n: int  # evaluation questions
    accuracy: float | None  # 0..1, over the questions with a known answer; None if there are none
    stderr: float | None
    prompt_tokens: int
    new_tokens: int
    flops: int
    device_seconds: float
    wall_seconds: float
    # consensus, diversity = 1 - consensus, and the measures of `metrics.diversity`; None for one agent.
    diversity: dict[str, Any] | None
    cut: int = 0  # answers cut off by a limit
    unparsed: int = 0  # answers that the model ended itself, but that contain no answer
    unanswered: int = 0  # turns whose prompt did not fit into the model's context
    grading_timeouts: int = 0  # comparisons of answers that ran out of time and count as different
    ledger: Ledger | None = None
    comparison: Comparison | None = None  # with the first result of the same task; None for this one itself
    answers: AnswerSummary | None = None  # None if no right answer is known
    training_vote: VoteQuality | None = None  # of the debate that made the training data; None without finetuning
    vote_curve: tuple[VotePoint, ...] | None = None  # over 1..N answers; None unless the agents answer independently
    feedback: FeedbackUse | None = None  # verdicts of people in the training of the iteration; None without any
    monitor: Monitor | None = None  # whether the society still improves; None without finetuning, or on another task

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = dataclasses.asdict(self)
        if self.feedback is None:  # so that results.json is the same as from a version without feedback
            del plain["feedback"]
        return plain | {"ledger": None if self.ledger is None else self.ledger.to_dict()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Result":
        """The inverse of `to_dict`. Raises TypeError, KeyError or UserError for other fields."""
        fields = dict(raw)
        for name, read in _READ.items():
            if fields.get(name) is not None:
                fields[name] = read(fields[name])
        return cls(**fields)


_READ = {
    "ledger": Ledger.from_dict,
    "comparison": lambda raw: Comparison(**raw),
    "answers": AnswerSummary.from_dict,
    "training_vote": lambda raw: VoteQuality(**raw),
    "vote_curve": lambda raw: tuple(VotePoint(**point) for point in raw),
    "feedback": lambda raw: FeedbackUse(**raw),
    "monitor": Monitor.from_dict,
}


def write_results(store: Store, results: Sequence[Result]) -> None:
    """Writes results.json, a list of objects. Raises RuntimeError if this process does not hold the store."""
    if not store.is_mine:
        raise RuntimeError(f"{store.root} is not held by this process, so its results must not be written")
    text = json.dumps([result.to_dict() for result in results], indent=2) + "\n"
    store.write(layout.RESULTS, text.encode())


@decided
def read_results(path: pathlib.Path) -> list[Result]:
    """The inverse of `write_results`. Raises UserError if the file is missing or is not a list of results."""
    try:
        raw = json.loads(read_path(path))
        results = [Result.from_dict(fields) for fields in raw]
        wrong = [field for result in results if (field := _wrong_field(result))]
        reason = f"{wrong[0]} has a wrong type" if wrong else "" if results else "it is empty"
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a run with results; `mft run` makes them."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error)
    if reason:
        raise UserError(
            f"{path} is not a list of results ({reason}): start the command that made it again, which rebuilds it."
        )
    return results


def _wrong_field(result: Result) -> str | None:
    """The name of the first field that does not have its type, or None. A diversity must have its two measures."""
    wrong = first_wrong_field(result)
    if wrong is not None:
        return wrong[0]
    diversity = result.diversity
    if diversity is not None and not {"consensus", "diversity"} <= diversity.keys():
        return "diversity"
    return None
