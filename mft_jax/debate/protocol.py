"""The rules of a debate: who speaks in which round, what each agent is shown before it, and when the debate ends."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of a debate of N agents over M rounds.

    An agent keeps its own chat history through all rounds, even if different adapters speak for it.
    """

    speakers: tuple[tuple[str | None, ...], ...]
    """[M][N]: the adapter that speaks for each agent in each round; None: the base model."""
    shows: Literal["summary", "answers", "nothing"] = "summary"
    """What an agent is shown before rounds 2..M.

    summary: a summary of the other agents' answers in the previous round, written by the base model. answers: these
    answers themselves. nothing: only a prompt to reconsider its own answer."""
    spirit: Literal["debate", "cooperate"] = "debate"
    """What the agents are asked to do with what they are shown.

    debate: to find the mistakes in it and in their own answer. cooperate: to build on it and agree on one solution."""
    named: bool = False
    """Whether the first message to agent n (from 0) starts with its name, "Agent n + 1"."""
    stops: Literal["never", "agreement"] = "never"
    """agreement: the debate on a question ends after the first round in which all agents give equivalent answers."""

    @property
    def agents(self) -> int:
        """N, the number of agents."""
        return len(self.speakers[0])

    @property
    def rounds(self) -> int:
        """M, the maximum number of rounds."""
        return len(self.speakers)

    def speaker(self, round: int, agent: int) -> str | None:
        """The adapter that speaks for `agent` (from 0) in `round` (from 1); None: the base model."""
        return self.speakers[round - 1][agent]

    @property
    def samples(self) -> int:
        """The maximum number of texts sampled for one question: the answers of all rounds and the summaries."""
        summaries = self.agents * (self.rounds - 1) if self.agents > 1 and self.shows == "summary" else 0
        return self.agents * self.rounds + summaries


def everyone(speaker: str | None, agents: int, rounds: int) -> tuple[tuple[str | None, ...], ...]:
    """`Protocol.speakers` in which one adapter, or the base model (None), speaks for all agents in all rounds."""
    return ((speaker,) * agents,) * rounds
