"""The rules of a debate: who speaks in which round, what each is shown before it, and when the debate ends."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """N agents over M rounds. An agent keeps its own chat history through all rounds, whoever speaks for it."""

    speakers: tuple[tuple[str | None, ...], ...]
    """[M][N]: the adapter that speaks for an agent in a round; None: the base model."""
    shows: Literal["summary", "answers", "nothing"] = "summary"
    """What an agent is shown before rounds 2..M: a summary, by the base model, of the other agents' answers of the round
    before; those answers themselves; or nothing, so that it only reconsiders."""
    stops: Literal["never", "agreement"] = "never"
    """agreement: a question's debate ends after the first round in which all agents give equivalent answers."""

    @property
    def agents(self) -> int:
        return len(self.speakers[0])

    @property
    def rounds(self) -> int:
        return len(self.speakers)

    def speaker(self, round: int, agent: int) -> str | None:
        """Who speaks for an agent (from 0) in a round (from 1)."""
        return self.speakers[round - 1][agent]

    @property
    def samples(self) -> int:
        """Texts sampled for one question at most: answers of all rounds, and the summaries between them."""
        summaries = self.agents * (self.rounds - 1) if self.agents > 1 and self.shows == "summary" else 0
        return self.agents * self.rounds + summaries


def everyone(speaker: str | None, agents: int, rounds: int) -> tuple[tuple[str | None, ...], ...]:
    """The table of speakers in which one adapter, or the base model (None), speaks for everyone."""
    return ((speaker,) * agents,) * rounds
