"""What the answers of the agents say when the right answers are known: pass@k, changes between rounds, vote quality.

The functions take transcripts as parsed JSON lines, with the fields of `mft_jax.debate.Transcript`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.metrics.diversity import Equivalent

Speakers = Sequence[Sequence[str | None]]  # [M][N]: the adapter that speaks; None: the base model
Graded = Sequence[Sequence[bool]]  # [rounds][N]: whether each answer to one question is right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transition:
    """How often an agent's answer changed between right and wrong from one round to the next."""

    round: int  # of the later answer, from 2
    agent: int  # from 0
    speaker: str | None  # the adapter that gave the later answer; None: the base model
    wrong_to_right: int  # number of questions
    right_to_wrong: int
    kept_right: int
    kept_wrong: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSummary:
    """The answers to the questions with a known right answer. All shares are 0..1."""

    n: int  # number of these questions
    # Element k - 1: probability that at least one of k agents, drawn without replacement, is right in the last round.
    pass_at_k: tuple[float, ...]  # [N]
    best_of_agents: float  # share of questions that at least one agent answers correctly in the last round
    vote_accuracy: tuple[float, ...]  # [M]: of the majority answer of each round
    agent_accuracy: tuple[tuple[float, ...], ...]  # [M][N]: of each agent's answer in each round
    transitions: tuple[Transition, ...]  # by round, then by agent

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "AnswerSummary":
        """Rebuilds a summary from JSON. Raises TypeError or KeyError for other fields."""
        fields = dict(raw)
        for name in ("pass_at_k", "vote_accuracy"):
            fields[name] = tuple(raw[name])
        fields["agent_accuracy"] = tuple(map(tuple, raw["agent_accuracy"]))
        fields["transitions"] = tuple(Transition(**own) for own in raw["transitions"])
        return cls(**fields)


def pass_at_k(right: int, n: int, k: int) -> float:
    """The unbiased estimate of pass@k from n samples of which `right` are right: 1 - C(n - right, k) / C(n, k).

    As in Chen et al. 2021 (arXiv 2107.03374). Raises ValueError unless 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= right <= n and 1 <= k <= n, got right = {right}, n = {n}, k = {k}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def grade(transcript: Mapping[str, Any], equivalent: Equivalent) -> list[list[bool]]:
    """[rounds][N]: whether each answer is equivalent to the known right answer. A missing answer is wrong."""
    agents, gold = transcript["agents"], transcript["gold"]
    rounds = range(len(agents[0]["answers"]))
    is_right = lambda answer: answer is not None and equivalent(answer, gold)
    return [[is_right(agent["answers"][round]) for agent in agents] for round in rounds]


def summarize_answers(
    transcripts: Sequence[Mapping[str, Any]], equivalent: Equivalent, speakers: Speakers = ()
) -> AnswerSummary | None:
    """The summary of debates; None if no right answer is known. `speakers` is empty if the base model speaks for all.

    A debate that ended early keeps its last answers in the later rounds; these rounds have no transitions.
    """
    known = [line for line in transcripts if line["gold"] is not None]
    if not known:
        return None
    graded = [grade(line, equivalent) for line in known]
    rounds, agents = max(map(len, graded)), max(len(rows[-1]) for rows in graded)
    at = lambda rows, round: rows[min(round, len(rows) - 1)]
    mean = lambda values: sum(values) / len(known)
    return AnswerSummary(
        n=len(known),
        pass_at_k=tuple(mean([pass_at_k(sum(rows[-1]), agents, k) for rows in graded]) for k in range(1, agents + 1)),
        best_of_agents=mean([any(rows[-1]) for rows in graded]),
        vote_accuracy=tuple(
            mean([_is_vote_right(line, rows, round, equivalent) for line, rows in zip(known, graded, strict=True)])
            for round in range(rounds)
        ),
        agent_accuracy=tuple(
            tuple(mean([at(rows, round)[agent] for rows in graded]) for agent in range(agents))
            for round in range(rounds)
        ),
        transitions=tuple(
            _count_transitions(graded, round, agent, speakers) for round in range(1, rounds) for agent in range(agents)
        ),
    )


def _is_vote_right(transcript: Mapping[str, Any], graded: Graded, round: int, equivalent: Equivalent) -> bool:
    """Whether the majority answer of a round is right. The last one was graded when the debate ended."""
    if round >= len(graded) - 1:
        return bool(transcript["correct"])
    vote = transcript["votes"][round]
    return vote is not None and equivalent(vote, transcript["gold"])


def _count_transitions(graded: Sequence[Graded], round: int, agent: int, speakers: Speakers) -> Transition:
    """The transitions of an agent to `round`, counted from 0."""
    changes = [(rows[round - 1][agent], rows[round][agent]) for rows in graded if round < len(rows)]
    return Transition(
        round=round + 1,
        agent=agent,
        speaker=speakers[round][agent] if speakers else None,
        wrong_to_right=changes.count((False, True)),
        right_to_wrong=changes.count((True, False)),
        kept_right=changes.count((True, True)),
        kept_wrong=changes.count((False, False)),
    )


def count_unparsed(transcripts: Sequence[Mapping[str, Any]]) -> int:
    """The number of answers, over all rounds and agents, that the model ended itself but that could not be parsed."""
    agents = [agent for line in transcripts for agent in line["agents"]]
    ended = [pair for own in agents for pair in zip(own["turns"], own["answers"], strict=True)]
    return sum(turn["end"] == "stop" and answer is None for turn, answer in ended)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteQuality:
    """How good the votes are that serve as labels of the training questions."""

    questions: int
    coverage: float  # share of questions with a majority answer, 0..1
    precision: float | None  # share of right ones among the majority answers; None: no right answer is known
    unparsed: int  # answers in the debate that could not be parsed, cut ones excluded
    cut: int  # answers cut off by a limit


def vote_quality(transcripts: Sequence[Mapping[str, Any]], cut: int = 0) -> VoteQuality:
    """The quality of the votes of a debate. Raises ValueError if there are no transcripts."""
    if not transcripts:
        raise ValueError("the quality of votes needs at least one question, got none")
    voted = [line for line in transcripts if line["vote"] is not None]
    known = [line["correct"] for line in voted if line["correct"] is not None]
    return VoteQuality(
        questions=len(transcripts),
        coverage=len(voted) / len(transcripts),
        precision=sum(known) / len(known) if known else None,
        unparsed=count_unparsed(transcripts),
        cut=cut,
    )
