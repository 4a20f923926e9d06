"""The rules of a debate: who speaks in which round, what each agent is shown before it, and when the debate ends."""

import dataclasses
from collections.abc import Collection
from typing import Literal

from mft_jax.config import Speakers
from mft_jax.debate.vote import Ties, Voted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of a debate of N agents over M rounds.

    An agent keeps its own chat history through all rounds, even if different adapters speak for it.
    """

    speakers: tuple[tuple[str | None, ...], ...]
    """[M][N]: the adapter that speaks for each agent in each round; None: the base model."""
    shows: Literal["summary", "answers", "nothing", "true answer"] = "summary"
    """What an agent is shown before rounds 2..M.

    summary: a summary of the other agents' answers in the previous round. answers: these answers themselves. nothing:
    only a prompt to reconsider its own answer. true answer: the reference answer of the question, as a hint."""
    summarizer: Literal["base", "speaker"] = "base"
    """Who writes the summaries: the base model, or the speaker of the agent that is shown it in the coming round."""
    spirit: Literal["debate", "cooperate"] = "debate"
    """What the agents are asked to do with what they are shown.

    debate: to find the mistakes in it and in their own answer. cooperate: to build on it and agree on one solution."""
    named: bool = False
    """Whether the first message to agent n (from 0) starts with its name, "Agent n + 1"."""
    stops: Literal["never", "agreement", "correct"] = "never"
    """agreement: the debate on a question ends after the first round in which all agents give equivalent answers.
    correct: it ends after the first round in which all of them are equivalent to the reference answer."""
    voted: Voted = "last"
    """Which answers are voted on: those of the last round, or those of all rounds."""
    ties: Ties = "random"
    """How a tied vote is decided, as in `vote`."""
    temperature: float | None = None
    """The sampling temperature of all texts; None: that of the configuration."""
    max_new_tokens: int | None = None
    """The maximum length of all texts, in tokens; None: that of the configuration."""

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

    def with_base_for(self, adapters: Collection[str]) -> "Protocol":
        """The same rules with the base model as the speaker in the place of these adapters."""
        speakers = tuple(tuple(None if name in adapters else name for name in row) for row in self.speakers)
        return dataclasses.replace(self, speakers=speakers)

    def with_speakers(self, chosen: Speakers) -> "Protocol":
        """The same rules with these speakers, as in `DebateConfig.evaluation_speakers`.

        If a society does as well with other speakers than its own, its adapters have not specialized.
        """
        first, last = self.speakers[0], self.speakers[-1]
        speakers = {
            "own": self.speakers,
            "swapped": (last, *(first,) * (self.rounds - 1)),
            "first": tuple((row[0],) * self.agents for row in self.speakers),
        }
        return dataclasses.replace(self, speakers=speakers[chosen])

    @property
    def samples(self) -> int:
        """The maximum number of texts sampled for one question: the answers of all rounds and the summaries."""
        summaries = self.agents * (self.rounds - 1) if self.agents > 1 and self.shows == "summary" else 0
        return self.agents * self.rounds + summaries


def everyone(speaker: str | None, agents: int, rounds: int) -> tuple[tuple[str | None, ...], ...]:
    """`Protocol.speakers` in which one adapter, or the base model (None), speaks for all agents in all rounds."""
    return ((speaker,) * agents,) * rounds
