"""Rounds of answers and summaries, the vote, and the transcript they leave."""

from mft_jax.debate.rounds import Debate, Society
from mft_jax.debate.transcript import AgentTranscript, Transcript
from mft_jax.debate.vote import vote

__all__ = ["AgentTranscript", "Debate", "Society", "Transcript", "vote"]
