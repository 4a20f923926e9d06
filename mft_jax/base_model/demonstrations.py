"""Generated dialogues about a + b * c + d - e * f, from which the shipped base model learns everything it knows.

Several solvers answer one question, each in its own style (a way to multiply and an order to add), read a summary of the
others' answers, and answer again. A step may have a slip: one digit of its result is wrong by one, and the next steps use
the wrong result. Slips are the noise that a vote can remove. Each changes a single digit, with a probability above 0.1,
because sampling with top-p 0.9 leaves out rarer tokens. In a later round the solvers check the products, and mostly correct
a wrong one on which they differ. With `Noise()`, every step is true.

The words around the steps are those of `mft_jax.prompts`. Questions that the arithmetic task may ask never appear.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mft_jax.prompts import GENERAL, Message, assistant
from mft_jax.tasks.arithmetic_split import LARGEST, question_text, reserved

METHODS = ("direct", "tens", "first")  # how to multiply
ORDERS = ("forward", "positives", "early")  # how to add up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """Probabilities of a slip, each for one step. The defaults make no slips."""

    direct: float = 0.0
    """A product of two numbers above 10 that is written without intermediate steps."""
    split: float = 0.0
    """The last sum of a product that is split into two, and a product with a single digit."""
    sum: float = 0.0
    """A sum of two numbers above 9."""
    difference: float = 0.0
    """A difference of two numbers above 9."""
    differ: float = 0.0
    """A later round repeats a wrong product on which the solvers differ."""
    agreed: float = 0.0
    """A later round repeats a wrong product on which all solvers agree."""
    later_sum: float = 0.0
    """As `sum`, in a later round, where the answers differ."""
    later_difference: float = 0.0
    """As `difference`, in a later round, where the answers differ."""


CLEAN = Noise()
NOISY = Noise(
    direct=0.30, split=0.15, sum=0.14, difference=0.14, differ=0.30, agreed=0.6, later_sum=0.14, later_difference=0.14
)
# Differences need no slips: the model finds them hardest, and makes mistakes of its own.
CALMER = dataclasses.replace(NOISY, difference=0.0, differ=0.25, later_sum=0.12, later_difference=0.0)
# For the last training run: first answers have more slips, later rounds no more than before.
SHIPPED = dataclasses.replace(CALMER, direct=0.36, split=0.18, sum=0.17, later_sum=0.115)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What one training run learns from."""

    shares: tuple[float, float, float, float]
    """Of first answers, second-round answers, third-round answers, and summaries."""
    targets: Noise
    """In the turns to learn."""
    context: Noise
    """In the turns before those; they are learnt too if their noise is the targets'."""


STAGES = {
    "answers": Stage(shares=(1.0, 0.0, 0.0, 0.0), targets=CLEAN, context=NOISY),
    "debates": Stage(shares=(0.40, 0.40, 0.05, 0.15), targets=NOISY, context=NOISY),
    "critics": Stage(shares=(0.22, 0.49, 0.05, 0.24), targets=NOISY, context=NOISY),
    "polish": Stage(shares=(0.30, 0.45, 0.05, 0.20), targets=CALMER, context=CALMER),
    "shipped": Stage(shares=(0.30, 0.45, 0.05, 0.20), targets=SHIPPED, context=SHIPPED),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """The text of an answer, and what a summary says of it."""

    products: tuple[int, int]  # b * c and e * f, as written
    result: int
    text: str


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One dialogue, and whether only its last turn is to be learnt (an earlier one may show slips that are not)."""

    messages: list[Message]
    final_turn_only: bool


def demonstrations(seed: int, stage: Stage) -> Iterator[Demonstration]:
    """An endless stream of dialogues."""
    rng = np.random.default_rng(seed)
    while True:
        numbers = draw_numbers(rng)
        kind = rng.choice(4, p=stage.shares)
        if kind == 3:
            yield summary_demonstration(rng, numbers, stage.context)
        else:
            yield debate_demonstration(rng, numbers, 1 + kind, stage.targets, stage.context)


def draw_numbers(rng: np.random.Generator) -> tuple[int, ...]:
    while True:
        numbers = tuple(rng.integers(0, LARGEST + 1, 6).tolist())
        if not reserved(numbers):
            return numbers


def summary_demonstration(rng: np.random.Generator, numbers: Sequence[int], noise: Noise) -> Demonstration:
    """One call of the summarizer, on 1 to 4 answers, sometimes of a later round."""
    answers = [first_answer(rng, numbers, noise) for _ in range(draw_other_solvers(rng))]
    if rng.random() < 0.25:
        seen = [*answers, first_answer(rng, numbers, noise)]
        answers = [later_answer(rng, numbers, seen, noise) for _ in answers]
    question = GENERAL.summary(question_text(numbers), [answer.text for answer in answers])
    return Demonstration([question, assistant(summarize(numbers, answers))], True)


def debate_demonstration(
    rng: np.random.Generator, numbers: Sequence[int], rounds: int, targets: Noise, context: Noise
) -> Demonstration:
    """One solver's dialogue over `rounds` rounds; its earlier turns are learnt too where their noise is the targets'."""
    society = [first_answer(rng, numbers, context) for _ in range(1 + draw_other_solvers(rng))]
    if rounds == 1:
        society[0] = first_answer(rng, numbers, targets)
    messages = [GENERAL.first(question_text(numbers)), assistant(society[0].text)]
    for played in range(2, rounds + 1):
        messages.append(GENERAL.later(summarize(numbers, society[1:])))
        own = later_answer(rng, numbers, society, targets if played == rounds else context)
        messages.append(assistant(own.text))
        society = [own, *(later_answer(rng, numbers, society, context) for _ in society[1:])]
    return Demonstration(messages, targets != context)


def draw_other_solvers(rng: np.random.Generator) -> int:
    """How many other solvers there are: 2 in most debates."""
    return int(rng.choice((1, 2, 3, 4), p=(0.1, 0.7, 0.1, 0.1)))


def summarize(numbers: Sequence[int], answers: Sequence[Answer]) -> str:
    """The value of each product, once where all solvers agree, else one for each in turn; then the results likewise."""
    _, b, c, _, e, f = numbers
    lines = [
        f"{b}*{c}={list_values([answer.products[0] for answer in answers])}",
        f"{e}*{f}={list_values([answer.products[1] for answer in answers])}",
        f"Answers: {list_values([answer.result for answer in answers])}",
    ]
    return "\n".join(lines)


def list_values(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{', '.join(map(str, values))} (they differ)"


def first_answer(rng: np.random.Generator, numbers: Sequence[int], noise: Noise) -> Answer:
    """An answer from nothing but the question, in a style drawn at random."""
    _, b, c, _, e, f = numbers
    products, lines = [], []
    for x, y in ((b, c), (e, f)):
        method = METHODS[rng.integers(len(METHODS))]
        partial = partial_products(x, y, method)
        rate = noise.direct if not partial and min(x, y) > 10 else noise.split if min(x, y) > 1 else 0.0
        product = slip(rng, x * y, rate, tens=True)
        products.append(product)
        lines.append(f"{x}*{y}={partial}{product}")
    total, sums = add_up(rng, numbers, products, noise.sum, noise.difference)
    return make_answer(products, total, lines + sums)


def later_answer(rng: np.random.Generator, numbers: Sequence[int], seen: Sequence[Answer], noise: Noise) -> Answer:
    """An answer of a solver that has `seen` its own last answer and the others': it checks the products, then adds up again."""
    _, b, c, _, e, f = numbers
    products, lines = [], []
    for index, (x, y) in enumerate(((b, c), (e, f))):
        stated = [answer.products[index] for answer in seen]
        wrong = [value for value in stated if value != x * y]
        agree = len(set(stated)) == 1
        # Where all agree nothing is recomputed; else the product is computed, mostly by splitting it.
        method = "direct" if agree else METHODS[rng.integers(1, len(METHODS))]
        rate = 0.0 if not wrong else noise.agreed if agree else noise.differ
        product = wrong[rng.integers(len(wrong))] if rng.random() < rate else x * y
        products.append(product)
        lines.append(f"{x}*{y}={partial_products(x, y, method)}{product}")
    agree = len({answer.result for answer in seen}) == 1
    rates = (0.0, 0.0) if agree else (noise.later_sum, noise.later_difference)
    total, sums = add_up(rng, numbers, products, *rates)
    return make_answer(products, total, lines + sums)


def make_answer(products: Sequence[int], total: int, lines: Sequence[str]) -> Answer:
    return Answer((products[0], products[1]), total, "\n".join([*lines, f"\\boxed{{{total}}}"]))


def partial_products(x: int, y: int, method: str) -> str:
    """What stands between "x*y=" and the product: two parts to add or subtract, or nothing.

    tens: 24*13=240+72=312, y is split. first: 24*13=260+52=312, x is split, also where y has no tens and units.
    """
    if method == "tens" and y > 10 and y % 10 and x > 1:
        return f"{x * (y // 10 * 10)}+{x * (y % 10)}="
    if method != "direct" and x > 10 and x % 10 and y > 1:
        return f"{x // 10 * 10 * y}+{x % 10 * y}="
    return ""


def add_up(
    rng: np.random.Generator, numbers: Sequence[int], products: Sequence[int], sum_rate: float, difference_rate: float
) -> tuple[int, list[str]]:
    """The sum of a, d and the products in a random order: its value, and one line a step.

    Only the last result can be below zero: a product is subtracted earlier only where the result stays at least zero.
    """
    a, _, _, d, _, _ = numbers
    plus, minus = products
    lines: list[str] = []

    def step(x: int, y: int, sign: str = "+") -> int:
        true = x + y if sign == "+" else x - y
        rate = 0.0 if min(abs(x), abs(y)) < 10 else sum_rate if sign == "+" else difference_rate
        result = slip(rng, true, rate, tens=False)
        lines.append(f"{x}{sign}{y}={result}")
        return result

    match ORDERS[rng.integers(len(ORDERS))]:
        case "forward":
            total = step(step(step(a, plus), d), minus, "-")
        case "early" if plus >= minus:
            total = step(step(plus, minus, "-"), step(a, d))
        case _:
            total = step(step(plus, step(a, d)), minus, "-")
    return total, lines


def slip(rng: np.random.Generator, number: int, rate: float, tens: bool) -> int:
    """`number`, or with probability `rate` a number with one digit wrong by one: its tens digit, if `tens` and it has one.

    A rare slip always goes one way, up from an even digit and down from an odd one: with two ways, each would be too rare
    to be sampled.
    """
    if rng.random() >= rate:
        return number
    size = abs(number)
    place = 10 if tens and size >= 10 else 1
    digit = size // place % 10
    change = -1 if digit % 2 else 1
    if rate > 0.25 and rng.random() < 0.5:
        change = -change
    least = 1 if size // place < 10 and place > 1 else 0  # a leading digit stays above 0
    if not least <= digit + change <= 9:
        change = -change
    slipped = size + place * change
    return -slipped if number < 0 else slipped
