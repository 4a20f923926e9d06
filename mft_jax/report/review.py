"""What `mft review` shows: questions with their answers and votes, and the verdicts on them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from mft_jax.report.text import literal
from mft_jax.runs.review import Review, Reviewed
from mft_jax.runs.rulings import describe, remarks_on

MAX_TEXT = 600  # characters of a question


def render_review(review: Review, limit: int) -> RenderableType:
    """The first proposals, best first, and what is known already."""
    proposed = review.proposals()
    shown = [render_question(own) for own in proposed[:limit]]
    known = len(review.questions) - len(proposed)
    tail = f"{len(review.questions)} debated questions, {known} of them settled by verdicts; {len(shown)} are shown."
    return Group(*shown, *map(literal, remarks_on(review.feedback)), literal(tail))


def render_question(question: Reviewed) -> RenderableType:
    """One question: why a verdict is worth something, its text, and the answers and the vote of each iteration."""
    reasons = {
        "split vote": question.worth.split, "flips between rounds": question.worth.flips,
        "votes that changed between iterations": question.worth.changes,
    }  # fmt: skip
    why = ", ".join(f"{name} {100 * share:.0f} %" for name, share in reasons.items() if share)
    head = Text.assemble(literal(question.id, "bold"), f"  {why or 'the agents agree'}")
    text = question.text if len(question.text) <= MAX_TEXT else question.text[:MAX_TEXT] + " ..."
    lines = [literal(text), *(_debate(k, debate) for k, debate in question.debates.items())]
    lines += [literal(f"verdict: {describe(own)}", "italic") for own in question.verdicts]
    return Group(head, Padding(Group(*lines), (0, 0, 1, 4)))


def _debate(iteration: int, debate: Mapping[str, Any]) -> Text:
    """One line, such as "iteration 1, vote 5: agent 1 4 → 5, agent 2 5 → 5"."""
    agents = [f"agent {n} {_path(own['answers'])}" for n, own in enumerate(debate["agents"], start=1)]
    return literal(f"iteration {iteration}, vote {_shown(debate['vote'])}: {', '.join(agents)}")


def _path(answers: Sequence[str | None]) -> str:
    return " → ".join(map(_shown, answers))


def _shown(answer: str | None) -> str:
    return "(none)" if answer is None else answer
