"""The transcript of the debate on one question: a frozen dataclass in memory, one JSON line on disk."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from mft_jax.prompts import Message
from mft_jax.sampling import Completion, Reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """How one sampled text ended, and its size in tokens."""

    end: Reason
    """stop: the model ended it. limit, context: it was truncated by max_new_tokens or by the model's context.
    unanswerable: the prompt filled the context, so nothing was sampled."""
    prompt_tokens: int
    new_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion: Completion) -> "Turn":
        """The turn of a completion of a prompt of `prompt_tokens` tokens."""
        return cls(end=completion.reason, prompt_tokens=prompt_tokens, new_tokens=completion.new_tokens)

    @property
    def complete(self) -> bool:
        """Whether the model ended the text itself. Only such texts are used as training targets."""
        return self.end == "stop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentTranscript:
    """The part of one agent in a debate."""

    messages: tuple[Message, ...]
    """user, assistant, user, assistant, ...: one pair for every round in which the agent gave an answer."""
    answers: tuple[str | None, ...]
    """The parsed answer of each round; None if the text has no answer, or there is no text."""
    turns: tuple[Turn, ...]
    """One per round. After an unanswerable turn the agent leaves the debate: its later turns are unanswerable too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """The debate of N agents on one question, over M rounds, or fewer if it ended early."""

    id: str  # of the question
    question: str  # its text
    gold: str | None  # the reference answer; None: not known
    agents: tuple[AgentTranscript, ...]  # [N]
    # [M - 1][N], or fewer rows if nothing was summarized: shown to each agent before rounds 2..M; None: no summary.
    summaries: tuple[tuple[str | None, ...], ...]
    summary_turns: tuple[tuple[Turn | None, ...], ...]  # of the same shape
    votes: tuple[str | None, ...]  # [M]: the majority answer after each round; None: no parsed answer, or an open tie
    vote: str | None  # the last of `votes`: the answer of the society
    # Whether `vote` is equivalent to `gold`; None: gold is not known. Never used to make training data.
    correct: bool | None

    def to_json(self) -> str:
        """One JSON line with the fields in the order above, so that equal transcripts give equal bytes."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Transcript":
        """Rebuilds a transcript from the parsed JSON of `to_json`.

        Raises KeyError, TypeError or ValueError if `raw` is not such JSON.
        """
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
    """Counts the texts that did not end at a stop token.

    "cut": answers truncated by max_new_tokens or by the context. "unanswered": answers and summaries whose prompt
    filled the context, so that nothing was sampled.
    """
    cut = unanswered = 0
    for transcript in transcripts:
        answers = [turn for agent in transcript.agents for turn in agent.turns]
        summaries = [turn for row in transcript.summary_turns for turn in row if turn is not None]
        cut += sum(turn.end in ("limit", "context") for turn in answers)
        unanswered += sum(turn.end == "unanswerable" for turn in answers + summaries)
    return {"cut": cut, "unanswered": unanswered}
