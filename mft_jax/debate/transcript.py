"""What one question's debate leaves behind: a frozen value in memory, one JSON line on disk."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mft_jax.prompts import Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentTranscript:
    """One agent's side: its whole chat, and the answer parsed from each of its turns (None: none was found)."""

    messages: tuple[Message, ...]  # user, assistant, user, assistant, ...: M turns of each
    answers: tuple[str | None, ...]  # [M]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """The debate of N agents over M rounds on one question."""

    id: str
    question: str
    gold: str | None
    agents: tuple[AgentTranscript, ...]  # [N]
    summaries: tuple[tuple[str, ...], ...]  # [M - 1][N]: what agent n was shown before round m
    votes: tuple[str | None, ...]  # [M]: the majority after each round
    vote: str | None  # the last of them: the society's answer
    correct: bool  # the vote equals gold; never used to make training data

    def to_json(self) -> str:
        """One line, fields in the order above, so that equal debates are equal bytes."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Transcript":
        fields = dict(raw)
        fields["agents"] = tuple(
            AgentTranscript(messages=tuple(agent["messages"]), answers=tuple(agent["answers"]))
            for agent in raw["agents"]
        )
        fields["summaries"] = tuple(tuple(texts) for texts in raw["summaries"])
        fields["votes"] = tuple(raw["votes"])
        return cls(**fields)
