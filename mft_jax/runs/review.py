"""Reviewing a run: which questions a person should judge first, and how a verdict is made and recorded."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mft_jax.config import ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.finetuning.feedback import Mark, Place, Verdict
from mft_jax.metrics.worth import Worth, worth
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.environment import now
from mft_jax.runs.feedback import add_verdicts, read_file_of_verdicts, read_verdicts
from mft_jax.runs.rulings import Feedback, feedback_on
from mft_jax.runs.stage_file import read_stage
from mft_jax.runs.store import Store
from mft_jax.seeds import question_order
from mft_jax.tasks.answers import equivalent
from mft_jax.tasks.parsing import parse_written


@dataclasses.dataclass(frozen=True)
class Reviewed:
    """A training question with its debates."""

    id: str
    debates: Mapping[int, Mapping[str, Any]]  # by iteration, as parsed JSON
    worth: Worth
    verdicts: tuple[Verdict, ...]  # on this question, in the order of the file
    is_open: bool  # whether its right answer is not known yet, or verdicts on it contradict each other

    @property
    def newest(self) -> int:
        """The newest iteration with a debate on it."""
        return max(self.debates)

    @property
    def text(self) -> str:
        return self.debates[self.newest]["question"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        debates = [
            {
                "iteration": k,
                "answers": [own["answers"] for own in debate["agents"]],
                "votes": debate["votes"],
            }
            for k, debate in self.debates.items()
        ]
        return {
            "id": self.id, "question": self.text, "worth": round(self.worth.total, 4),
            **{name: round(value, 4) for name, value in dataclasses.asdict(self.worth).items()}, "debates": debates,
            "verdicts": [dataclasses.asdict(own) for own in self.verdicts],
        }  # fmt: skip


class Review:
    """The training questions of a run, and the verdicts on them. The run may be unfinished, or still working."""

    def __init__(self, run_dir: str | pathlib.Path):
        """Reads debates and verdicts. Raises UserError if there is no run or no training debate yet, or for damaged files."""
        directory = RunDirectory(run_dir)
        self.store, self.config = directory.store, directory.config()
        debates = _read_debates(self.store, self.config)
        if not debates:
            raise UserError(
                f"{directory.path} has no training debate yet: verdicts are given on debates, so let `mft run` finish "
                "a part of one first."
            )
        self.feedback = self._judge(read_verdicts(self.store, self.config.task.name))
        disputed = {old.id for old, _ in self.feedback.conflicts}
        rulings = self.feedback.rulings
        self.questions = {
            id: Reviewed(
                id=id,
                debates=own,
                worth=worth(list(own.values()), equivalent),
                verdicts=tuple(verdict for verdict in self.feedback.verdicts if verdict.id == id),
                is_open=id in disputed or id not in rulings or rulings[id].answer is None,
            )
            for id, own in debates.items()
        }

    def proposals(self) -> list[Reviewed]:
        """The open questions, those first on which a verdict is worth most."""
        return sorted(filter(lambda own: own.is_open, self.questions.values()), key=lambda own: -own.worth.total)

    def question(self, id: str) -> Reviewed:
        """The question with this id. Raises UserError if it has no training debate."""
        if id not in self.questions:
            raise UserError(
                f"{self.store.root} has no training debate on the question {id!r}: `mft review {self.store.root}` "
                "lists questions."
            )
        return self.questions[id]

    @property
    def file(self) -> pathlib.Path:
        """feedback.jsonl."""
        return self.store.path(layout.FEEDBACK)

    def verdicts_on(
        self,
        id: str,
        *,
        answer: str | None = None,
        right: Sequence[int] = (),
        wrong: Sequence[int] = (),
        best: int | None = None,
        iteration: int | None = None,
        round: int | None = None,
    ) -> list[Verdict]:
        """Makes verdicts on one question, which are not recorded yet: its right answer, and marks of agents' answers.

        Agents are counted from 1. Marks are on the last answers of the newest debate, if no `iteration` and `round` are
        given. Raises UserError as `written` and `marked` do.
        """
        marks: dict[Mark, Sequence[int]] = {"wrong": wrong, "right": right, "best": () if best is None else (best,)}
        written = [] if answer is None else [self.written(id, answer)]
        return written + [
            self.marked(id, mark, agent, iteration, round) for mark, agents in marks.items() for agent in agents
        ]

    def written(self, id: str, answer: str) -> Verdict:
        """The verdict that `answer` is the right answer. Raises UserError if it cannot be read as an answer."""
        self.question(id)
        parsed = parse_written(self.config.task.name, answer)
        if parsed is None:
            raise UserError(f"The answer is {answer[:80]!r}, expected an answer of the task {self.config.task.name}.")
        return Verdict(id=id, time=now(), answer=parsed)

    def marked(self, id: str, mark: Mark, agent: int, iteration: int | None, round: int | None) -> Verdict:
        """The verdict that marks an answer; by default the agent's last one in the newest debate.

        Raises UserError if there is no such answer.
        """
        question = self.question(id)
        k = question.newest if iteration is None else iteration
        debate = question.debates.get(k)
        if debate is None:
            raise UserError(f"iteration is {k}, but the question {id!r} was debated in {_listed(question.debates)}.")
        agents = debate["agents"]
        if not 1 <= agent <= len(agents):
            raise UserError(f"The agent is {agent}, expected 1 to {len(agents)}, as `mft review` counts them.")
        rounds = len(agents[agent - 1]["answers"])
        if round is not None and not 1 <= round <= rounds:
            raise UserError(f"round is {round}, expected 1 to {rounds} in the debate on {id!r}.")
        return Verdict(id=id, time=now(), place=Place(k, agent, round or rounds), mark=mark)

    def from_file(self, path: str) -> list[Verdict]:
        """The verdicts in another file. Raises UserError if one of them concerns something that the run does not have."""
        verdicts = read_file_of_verdicts(path, self.config.task.name)
        problems = self._judge(verdicts).problems
        if problems:
            raise UserError(f"{path} does not belong to {self.store.root}. {problems[0]}")
        return verdicts

    def simulated(self, count: int, order: Literal["worth", "random"], seed: int) -> list[Verdict]:
        """Verdicts made from the reference answers of `count` open training questions, for experiments.

        worth: those first on which a verdict is worth most. random: in an order that depends on `seed`. Raises UserError
        if there are fewer such questions.
        """
        known = [own for own in self.proposals() if own.debates[own.newest]["gold"] is not None]
        if not 0 <= count <= len(known):
            raise UserError(
                f"--simulate is {count}, expected 0 to {len(known)}: so many debated questions without a verdict have a "
                "reference answer."
            )
        if order == "random":
            known = question_order(sorted(known, key=lambda own: own.id), seed, "simulated verdicts")
        golds = [(own.id, own.debates[own.newest]["gold"]) for own in known[:count]]
        return [Verdict(id=id, time=now(), answer=gold, simulated=True) for id, gold in golds]

    def record(self, verdicts: Sequence[Verdict]) -> int:
        """Adds verdicts to feedback.jsonl and returns how many were not there yet."""
        return add_verdicts(self.store, verdicts, self.config.task.name)

    def _judge(self, verdicts: Sequence[Verdict]) -> Feedback:
        return feedback_on(self.store, verdicts, equivalent)


def _read_debates(store: Store, config: ExperimentConfig) -> dict[str, dict[int, Mapping[str, Any]]]:
    """{id of a training question: {iteration: its debate}}. Raises DamagedFile."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for iteration in range(1, config.iterations + 1):
        for line in read_stage(store, layout.debate(iteration))[0]:
            found.setdefault(line["id"], {})[iteration] = line
    return found


def _listed(debates: Mapping[int, Any]) -> str:
    return f"iteration {', '.join(map(str, debates))}"
