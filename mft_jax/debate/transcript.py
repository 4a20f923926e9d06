"""What one question's debate leaves behind: a frozen value in memory, one JSON line on disk."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from mft_jax.prompts import Message
from mft_jax.sampling import Completion, Reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """How one sampled text came about."""

    end: Reason
    """stop: the model ended it; limit, context: it was cut; unanswerable: the prompt left no room, nothing was sampled."""
    prompt_tokens: int
    new_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion: Completion) -> "Turn":
        return cls(end=completion.reason, prompt_tokens=prompt_tokens, new_tokens=completion.new_tokens)

    @property
    def complete(self) -> bool:
        """The model itself ended the text: only such texts are trained on."""
        return self.end == "stop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentTranscript:
    """One agent's side of a debate."""

    messages: tuple[Message, ...]
    """user, assistant, user, assistant, ...: both of every round in which the agent gave an answer."""
    answers: tuple[str | None, ...]
    """The answer parsed from each round's text; None where there was none, or no text."""
    turns: tuple[Turn, ...]
    """Of each round. After an unanswerable turn the agent takes no further part, and all its turns are unanswerable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """The debate of N agents on one question, over M rounds or fewer, where it ended early."""

    id: str
    question: str
    gold: str | None
    agents: tuple[AgentTranscript, ...]  # [N]
    summaries: tuple[tuple[str | None, ...], ...]  # [M - 1][N]: what agent n was shown before a round; None: no summary
    summary_turns: tuple[tuple[Turn | None, ...], ...]  # [M - 1][N]
    votes: tuple[str | None, ...]  # [M]: the majority after each round
    vote: str | None  # the last of them: the society's answer
    correct: bool | None  # the vote equals gold; never used to make training data. None: gold is not known

    def to_json(self) -> str:
        """One line, fields in the order above, so that equal debates are equal bytes."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Transcript":
        """The inverse of `to_json`, after json.loads."""
        turn = lambda fields: None if fields is None else Turn(**fields)
        fields = dict(raw)
        fields["agents"] = tuple(
            AgentTranscript(
                messages=tuple(agent["messages"]),
                answers=tuple(agent["answers"]),
                turns=tuple(Turn(**own) for own in agent["turns"]),
            )
            for agent in raw["agents"]
        )
        fields["summaries"] = tuple(map(tuple, raw["summaries"]))
        fields["summary_turns"] = tuple(tuple(map(turn, row)) for row in raw["summary_turns"])
        fields["votes"] = tuple(raw["votes"])
        return cls(**fields)


def turn_counts(transcripts: Iterable[Transcript]) -> dict[str, int]:
    """{"cut": answers that a limit cut, "unanswered": answers and summaries for which the context had no room}."""
    cut = unanswered = 0
    for transcript in transcripts:
        answers = [turn for agent in transcript.agents for turn in agent.turns]
        summaries = [turn for row in transcript.summary_turns for turn in row if turn is not None]
        cut += sum(turn.end in ("limit", "context") for turn in answers)
        unanswered += sum(turn.end == "unanswerable" for turn in answers + summaries)
    return {"cut": cut, "unanswered": unanswered}
