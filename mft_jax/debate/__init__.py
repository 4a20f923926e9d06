"""Rounds of answers and summaries, the vote, and the transcript they leave."""

from mft_jax.debate.debate import Debate
from mft_jax.debate.protocol import Protocol, everyone
from mft_jax.debate.question_debate import Ask, QuestionDebate, Said
from mft_jax.debate.transcript import AgentTranscript, Transcript, Turn, turn_counts
from mft_jax.debate.vote import vote

__all__ = [
    "AgentTranscript", "Ask", "Debate", "Protocol", "QuestionDebate", "Said", "Transcript", "Turn", "everyone",
    "turn_counts", "vote",
]  # fmt: skip
