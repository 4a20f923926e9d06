"""What each adapter of a society is trained on: which examples of the debates, with which settings."""

import dataclasses
from collections.abc import Sequence

from mft_jax.config import RoleConfig
from mft_jax.debate.transcript import Transcript
from mft_jax.finetuning.examples import Equivalent, Example, Selector, agrees
from mft_jax.finetuning.rewards import Embed
from mft_jax.seeds import example_choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
    """How one adapter is finetuned in each iteration."""

    adapter: str
    """Its name."""
    select: Selector
    """Selects its training examples."""
    settings: RoleConfig
    """Learning rate and epochs."""
    field: str
    """The name of the configuration field with these settings, for messages."""
    stream: int
    """The number of the random stream of `select` within an iteration."""
    min_vote_share: float = 0.0
    """It learns only from questions on which at least this share of the agents agrees with the final vote, 0..1."""
    restart: bool = False
    """True: in each iteration it starts as in the first one, even if the method does not restart."""


def select_examples(
    lessons: Sequence[Lesson],
    transcripts: Sequence[Transcript],
    equivalent: Equivalent,
    *,
    seed: int,
    iteration: int,
    embed: Embed | None = None,
) -> dict[str, list[Example]]:
    """Selects the training set of every adapter. An adapter with an empty training set is not changed by finetuning.

    The random draws of a lesson depend only on (seed, iteration, stream of the lesson) and on its own examples. `embed`
    is passed to selectors that have `uses_embeddings`.
    """
    sets, shares = {}, []
    if any(lesson.min_vote_share for lesson in lessons):
        shares = [vote_share(transcript, equivalent) for transcript in transcripts]
    for lesson in lessons:
        least = lesson.min_vote_share
        used = [own for own, share in zip(transcripts, shares, strict=True) if share >= least] if least else transcripts
        more = {"embed": embed} if getattr(lesson.select, "uses_embeddings", False) else {}
        rng = example_choice(seed, iteration, lesson.stream)
        sets[lesson.adapter] = lesson.select(used, equivalent, rng, **more)
    return sets


def vote_share(transcript: Transcript, equivalent: Equivalent) -> float:
    """The share of all agents whose last answer agrees with the final vote; 0 without a vote."""
    last = [own.answers[-1] for own in transcript.agents]
    return sum(agrees(answer, transcript.vote, equivalent) for answer in last) / len(last)
