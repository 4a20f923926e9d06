"""Multiagent debate: rounds of answers and summaries, the majority vote, and the transcript."""

from mft_jax.debate.debate import Debate
from mft_jax.debate.protocol import Protocol, everyone
from mft_jax.debate.question_debate import QuestionDebate, SampledText, TextRequest
from mft_jax.debate.transcript import AgentTranscript, Transcript, Turn, turn_counts
from mft_jax.debate.vote import vote
from mft_jax.debate.watcher import Watcher

__all__ = [
    "AgentTranscript", "Debate", "Protocol", "QuestionDebate", "SampledText", "TextRequest", "Transcript", "Turn",
    "Watcher", "everyone", "turn_counts", "vote",
]  # fmt: skip
