"""What each adapter of a society is trained on: which examples of the debates, with which settings."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mft_jax.config import RoleConfig
from mft_jax.debate.transcript import Transcript
from mft_jax.debate.vote import Ties, Voted
from mft_jax.errors import UserError, describe_failure
from mft_jax.finetuning.examples import Equivalent, Example, Selector, agrees
from mft_jax.finetuning.feedback import Ruling, ruled, weighted
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
    support: float = 0.0
    """It learns only from debates in which more than this share of all rounds' answers agrees with the final vote; 0: all."""
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
    rulings: Mapping[str, Ruling] | None = None,
    weight: float = 1.0,
    ties: Ties = "random",
    voted: Voted = "last",
) -> dict[str, list[Example]]:
    """Selects the training set of every adapter. An adapter with an empty training set is not changed by finetuning.

    The random draws of a lesson depend only on (seed, iteration, stream of the lesson) and on its own examples. `embed`
    is passed to selectors that have `uses_embeddings`.

    `rulings` {id of a question: the ruling that follows from people's verdicts} replace the final votes on their questions, and
    `weight` multiplies the weights of these questions' examples. A question whose right answer is known from them
    passes every `min_vote_share` and `support`. Selectors that have `uses_rulings` also get the rulings themselves. `ties` and
    `voted` are as in `Protocol`.
    """
    rulings, sets = rulings or {}, {}
    if rulings:
        transcripts = [
            ruled(own, rulings[own.id], equivalent, seed=seed, ties=ties, voted=voted) if own.id in rulings else own
            for own in transcripts
        ]
    is_known = lambda own: own.id in rulings and rulings[own.id].answer is not None
    are_sure = functools.cache(
        lambda least, support: [own for own in transcripts if is_known(own) or is_sure(own, least, support, equivalent)]
    )
    for lesson in lessons:
        used = are_sure(lesson.min_vote_share, lesson.support)
        offered = {"embed": ("uses_embeddings", embed), "rulings": ("uses_rulings", rulings)}
        more: dict[str, Any] = {
            name: value for name, (wanted, value) in offered.items() if getattr(lesson.select, wanted, False)
        }
        rng = example_choice(seed, iteration, lesson.stream)
        own = _selected(lesson, used, equivalent, rng, more)
        sets[lesson.adapter] = [weighted(each, weight) if each["id"] in rulings else each for each in own]
    return sets


def _selected(
    lesson: Lesson,
    transcripts: Sequence[Transcript],
    equivalent: Equivalent,
    rng: np.random.Generator,
    more: Mapping[str, Any],
) -> list[Example]:
    """The examples that the selector of a lesson returns. Raises UserError if it fails, or returns something else."""
    what = f"The selector of the adapter {lesson.adapter}"
    try:
        own = lesson.select(transcripts, equivalent, rng, **more)
        if isinstance(own, Iterable) and not isinstance(own, str | Mapping):
            own = list(own)  # inside try: a lazy selector computes its examples only now
    except UserError:
        raise
    except Exception as error:
        raise UserError(describe_failure(what, error)) from error
    if not isinstance(own, list):
        raise UserError(f"{what} returned {own!r:.80}, expected a list of examples.")
    for example in own:
        if not _is_example(example):
            raise UserError(
                f'{what} returned the example {example!r:.80}, expected {{"id": text, "messages": chat messages, "kind": '
                'text}, and chat messages as "counterpart" if it has one.'
            )
    return own


def _is_example(value: Any) -> bool:
    is_text = lambda owner, name: isinstance(owner, Mapping) and isinstance(owner.get(name), str)
    is_dialogue = lambda own: (
        isinstance(own, Sequence)
        and len(own) > 0
        and all(is_text(one, "role") and is_text(one, "content") for one in own)
    )
    return (
        is_text(value, "id")
        and is_text(value, "kind")
        and is_dialogue(value.get("messages"))
        and ("counterpart" not in value or is_dialogue(value["counterpart"]))
    )


def is_sure(transcript: Transcript, min_vote_share: float, support: float, equivalent: Equivalent) -> bool:
    """Whether enough answers of a debate agree with its vote; both limits are as in `Lesson`."""
    share = lambda answers: sum(agrees(answer, transcript.vote, equivalent) for answer in answers) / len(answers)
    if min_vote_share and share([own.answers[-1] for own in transcript.agents]) < min_vote_share:
        return False
    return not support or share([answer for own in transcript.agents for answer in own.answers]) > support
