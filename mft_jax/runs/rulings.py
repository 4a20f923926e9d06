"""The rulings on the questions of a run, which follow from the verdicts of people in its feedback.jsonl."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence

from mft_jax.debate.transcript import Transcript
from mft_jax.errors import UserError
from mft_jax.finetuning.examples import Equivalent
from mft_jax.finetuning.feedback import Conflict, Place, Ruling, Said, Verdict, rule
from mft_jax.runs import layout
from mft_jax.runs.feedback import encode_verdict, parse_verdict, read_verdicts
from mft_jax.runs.questions import question_ids
from mft_jax.runs.stage_file import read_stage
from mft_jax.runs.store import Store
from mft_jax.runs.used_feedback import FeedbackUse, read_used, write_used

MAX_REMARKS = 5  # of one kind; more are counted only


@dataclasses.dataclass(frozen=True)
class Feedback:
    """The feedback on a run."""

    rulings: Mapping[str, Ruling]  # by the id of the question, in the order of their first verdicts
    verdicts: Sequence[Verdict]  # all that concern the run, in the order of the file
    conflicts: Sequence[Conflict]
    problems: Sequence[str]  # a sentence for each verdict that is left out

    @property
    def counted(self) -> list[Verdict]:
        """The verdicts that count."""
        return [verdict for ruling in self.rulings.values() for verdict in ruling.verdicts]

    def use(self, weight: float) -> FeedbackUse:
        """How much feedback counts, for the record of an iteration that gives its questions this weight."""
        counted = self.counted
        return FeedbackUse(
            questions=len(self.rulings), verdicts=len(counted), simulated=sum(own.simulated for own in counted),
            conflicts=len(self.conflicts), weight=weight,
        )  # fmt: skip


NO_FEEDBACK = Feedback({}, (), (), ())


def feedback_on(store: Store, verdicts: Sequence[Verdict], equivalent: Equivalent) -> Feedback:
    """The feedback that these verdicts give. Those on questions or answers that the run does not have are left out."""
    known, debates = question_ids(store), _Debates(store)
    by_question: dict[str, list[Verdict]] = collections.defaultdict(list)
    problems, used = [], []
    for verdict in verdicts:
        problem = _what_is_missing(verdict, known, debates)
        if problem:
            problems.append(problem)
            continue
        used.append(verdict)
        by_question[verdict.id].append(verdict)
    rulings, conflicts = {}, []
    for id, own in by_question.items():
        ruling, found = rule(own, functools.partial(debates.said, id), equivalent)
        conflicts += found
        if ruling is not None:
            rulings[id] = ruling
    return Feedback(rulings, used, conflicts, list(dict.fromkeys(problems)))


def read_feedback(store: Store, task: str, equivalent: Equivalent) -> Feedback:
    """The feedback in feedback.jsonl. Raises UserError as `read_verdicts` does."""
    return feedback_on(store, read_verdicts(store, task), equivalent)


def take_feedback(
    store: Store, iteration: int, *, task: str, weight: float, equivalent: Equivalent, say: Callable[[str], None]
) -> tuple[Feedback, float]:
    """(the feedback that an iteration uses, its weight).

    The first call for an iteration reads feedback.jsonl and records its verdicts; later calls use the recorded ones. There
    is no feedback without the file, or if the training sets were already selected without it. Raises UserError for a
    broken line in feedback.jsonl, and DamagedFile if the record is damaged.
    """
    written = read_used(store, iteration)
    if written is not None:
        source = str(store.path(layout.used_feedback(iteration)))
        verdicts = [parse_verdict(json.dumps(raw).encode(), source, task) for raw in written[0]]
        return feedback_on(store, verdicts, equivalent), written[1].weight
    if not store.exists(layout.FEEDBACK) or _is_selected(store, iteration):
        return NO_FEEDBACK, 1.0
    feedback = read_feedback(store, task, equivalent)
    use = feedback.use(weight)
    for remark in remarks_on(feedback):
        say(remark)
    say(
        f"iteration {iteration}: {use.verdicts} verdicts of people on {use.questions} questions count in training "
        f"(feedback.weight {weight:g})."
    )
    write_used(store, iteration, [json.loads(encode_verdict(own)) for own in feedback.verdicts], use)
    return feedback, weight


def remarks_on(feedback: Feedback) -> list[str]:
    """A sentence for each conflict and for each verdict that is left out, at most MAX_REMARKS of each kind."""
    conflicts = [
        f"Two verdicts on the question {old.id} contradict each other: {describe(old)}, and {describe(new)}; the newer "
        "one counts."
        for old, new in feedback.conflicts
    ]
    return [*_few(conflicts, "contradictions"), *_few(feedback.problems, "verdicts that are left out")]


def describe(verdict: Verdict) -> str:
    """A verdict in words."""
    if verdict.place is None:
        said = "no answer is given" if verdict.answer is None else f"the answer is {verdict.answer}"
    else:
        iteration, agent, round = verdict.place
        mark = "not marked" if verdict.mark == "none" else verdict.mark
        said = f"agent {agent} in round {round} of iteration {iteration} is {mark}"
    return f"{said} ({verdict.time}{', simulated' if verdict.simulated else ''})"


class _Debates:
    """The training debates of a run, read when they are asked for."""

    def __init__(self, store: Store):
        self._store = store
        self._read: dict[int, dict[str, Transcript]] = {}

    def of(self, iteration: int) -> dict[str, Transcript]:
        """{id of the question: its debate}; empty if the iteration has none yet.

        Raises DamagedFile, or UserError if another version wrote them.
        """
        if iteration not in self._read:
            lines, _, _ = read_stage(self._store, layout.debate(iteration))
            try:
                self._read[iteration] = {line["id"]: Transcript.from_dict(line) for line in lines}
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise UserError(
                    f"The debates in {self._store.path(layout.debate(iteration))} were written by another version of "
                    "mft_jax: give verdicts on them with that version."
                ) from error
        return self._read[iteration]

    def said(self, id: str, place: Place) -> Said:
        own = self.of(place.iteration)[id].agents[place.agent - 1]
        spoken = own.messages[: 2 * place.round]
        return Said(
            answer=own.answers[place.round - 1],
            messages=tuple(spoken),
            is_complete=len(spoken) == 2 * place.round and all(turn.complete for turn in own.turns[: place.round]),
        )

    def has(self, id: str, place: Place) -> bool:
        transcript = self.of(place.iteration).get(id)
        if transcript is None or place.agent > len(transcript.agents):
            return False
        return place.round <= len(transcript.agents[place.agent - 1].answers)


def _what_is_missing(verdict: Verdict, known: tuple[frozenset[str], frozenset[str]] | None, debates: _Debates) -> str:
    """A sentence on what a verdict concerns that the run does not have; "" if it has all."""
    if known is not None and verdict.id not in known[0]:
        what = "it is an evaluation question" if verdict.id in known[1] else "the run has no such question"
        return f"A verdict on the question {verdict.id} is left out: {what}; verdicts are given on training questions."
    if verdict.place is not None and not debates.has(verdict.id, verdict.place):
        iteration, agent, round = verdict.place
        return (
            f"A verdict on the question {verdict.id} is left out: its training debate of iteration {iteration} has no "
            f"answer of agent {agent} in round {round}."
        )
    return ""


def _is_selected(store: Store, iteration: int) -> bool:
    """Whether the training sets of an iteration were selected already.

    If it has no record of feedback, they were selected without feedback. Damaged ones are then selected again without it,
    even if verdicts were given since.
    """
    return any(map(store.exists, (layout.training_set_checksums(iteration), layout.checkpoint(iteration))))


def _few(sentences: Sequence[str], what: str) -> list[str]:
    more = len(sentences) - MAX_REMARKS
    return [*sentences[:MAX_REMARKS], *([f"There are {more} more {what}."] if more > 0 else [])]
