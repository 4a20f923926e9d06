"""Generates dialogues about a + b * c + d - e * f, the complete training data of the base model in the package.

Several solvers answer one question, read a summary of the other solvers' answers, and answer again. Each answer has a
random style: a way to multiply and an order of addition. A step may have a slip, a deliberate mistake: one digit of its
result is wrong by one, and the next steps use the wrong result. Slips are independent noise, which a majority vote can
remove. Each slip changes a single digit with a probability above 0.1, because sampling with top-p 0.9 may exclude less
likely tokens. In later rounds the solvers check the products, and usually correct a wrong product on which they differ.
With `Noise()` all steps are correct.

The prompts are those of `mft_jax.prompts`. Questions that are reserved for the arithmetic task never occur.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mft_jax.prompts import GENERAL, Message, assistant
from mft_jax.seeds import demonstration_stream
from mft_jax.tasks.arithmetic_split import LARGEST, question_text, reserved

METHODS = ("direct", "tens", "first")  # ways to compute a product, see `partial_products`
ORDERS = ("forward", "positives", "early")  # orders of addition, see `add_up`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The probability of a slip in each kind of step. With the defaults there are no slips."""

    direct: float = 0.0
    """A product of two numbers above 10, computed directly."""
    split: float = 0.0
    """The sum at the end of a split product, and a direct product with a factor from 2 to 10."""
    sum: float = 0.0
    """A sum of two numbers above 9."""
    difference: float = 0.0
    """A difference of two numbers above 9."""
    differ: float = 0.0
    """In a later round: repeats a wrong product on which the solvers differ."""
    agreed: float = 0.0
    """In a later round: repeats a wrong product on which all solvers agree."""
    later_sum: float = 0.0
    """As `sum`, in a later round, if the final answers differ."""
    later_difference: float = 0.0
    """As `difference`, in a later round, if the final answers differ."""


CLEAN = Noise()
NOISY = Noise(
    direct=0.30, split=0.15, sum=0.14, difference=0.14, differ=0.30, agreed=0.6, later_sum=0.14, later_difference=0.14
)
# No slips in differences: they are the hardest step, and the model makes mistakes in them anyway.
CALMER = dataclasses.replace(NOISY, difference=0.0, differ=0.25, later_sum=0.12, later_difference=0.0)
# For the last training run: more slips in first answers, slightly fewer in later rounds.
SHIPPED = dataclasses.replace(CALMER, direct=0.36, split=0.18, sum=0.17, later_sum=0.115)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The training data of one training run."""

    shares: tuple[float, float, float, float]
    """Shares of dialogues with one round, two rounds and three rounds, and of summaries."""
    targets: Noise
    """Slips in the last turn."""
    context: Noise
    """Slips in the turns before it, which are targets too if this equals `targets`."""


STAGES = {
    "answers": Stage(shares=(1.0, 0.0, 0.0, 0.0), targets=CLEAN, context=NOISY),
    "debates": Stage(shares=(0.40, 0.40, 0.05, 0.15), targets=NOISY, context=NOISY),
    "critics": Stage(shares=(0.22, 0.49, 0.05, 0.24), targets=NOISY, context=NOISY),
    "polish": Stage(shares=(0.30, 0.45, 0.05, 0.20), targets=CALMER, context=CALMER),
    "shipped": Stage(shares=(0.30, 0.45, 0.05, 0.20), targets=SHIPPED, context=SHIPPED),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """The text of an answer, and the values that a summary mentions."""

    products: tuple[int, int]  # b * c and e * f, as written
    result: int
    text: str


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One dialogue, and whether only its last turn is a training target."""

    messages: list[Message]
    final_turn_only: bool


def demonstrations(seed: int, stage: Stage) -> Iterator[Demonstration]:
    """Generates an endless stream of random dialogues for a training run."""
    rng = demonstration_stream(seed)
    while True:
        numbers = draw_numbers(rng)
        kind = rng.choice(4, p=stage.shares)
        if kind == 3:
            yield summary_demonstration(rng, numbers, stage.context)
        else:
            yield debate_demonstration(rng, numbers, 1 + kind, stage.targets, stage.context)


def draw_numbers(rng: np.random.Generator) -> tuple[int, ...]:
    """The six random numbers a..f of a question that is not reserved for the arithmetic task."""
    while True:
        numbers = tuple(rng.integers(0, LARGEST + 1, 6).tolist())
        if not reserved(numbers):
            return numbers


def summary_demonstration(rng: np.random.Generator, numbers: Sequence[int], noise: Noise) -> Demonstration:
    """A request to summarize 1 to 4 answers, in a quarter of the cases answers of a later round, and the summary."""
    answers = [first_answer(rng, numbers, noise) for _ in range(draw_other_solvers(rng))]
    if rng.random() < 0.25:
        seen = [*answers, first_answer(rng, numbers, noise)]
        answers = [later_answer(rng, numbers, seen, noise) for _ in answers]
    question = GENERAL.summary(question_text(numbers), [answer.text for answer in answers])
    return Demonstration([question, assistant(summarize(numbers, answers))], True)


def debate_demonstration(
    rng: np.random.Generator, numbers: Sequence[int], rounds: int, targets: Noise, context: Noise
) -> Demonstration:
    """The dialogue of one solver over `rounds` rounds.

    If `targets` differs from `context`, only its last turn is a target.
    """
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
    """A random number of other solvers: 1 to 4, usually 2."""
    return int(rng.choice((1, 2, 3, 4), p=(0.1, 0.7, 0.1, 0.1)))


def summarize(numbers: Sequence[int], answers: Sequence[Answer]) -> str:
    """A summary of answers: for each product and for the final result, one value if all agree, else one per solver."""
    _, b, c, _, e, f = numbers
    lines = [
        f"{b}*{c}={list_values([answer.products[0] for answer in answers])}",
        f"{e}*{f}={list_values([answer.products[1] for answer in answers])}",
        f"Answers: {list_values([answer.result for answer in answers])}",
    ]
    return "\n".join(lines)


def list_values(values: Sequence[int]) -> str:
    """One value if all are equal, otherwise all of them with "(they differ)"."""
    return str(values[0]) if len(set(values)) == 1 else f"{', '.join(map(str, values))} (they differ)"


def first_answer(rng: np.random.Generator, numbers: Sequence[int], noise: Noise) -> Answer:
    """The answer of a solver in round 1, in a random style."""
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
    """The answer of a solver in a later round: it checks the products of all answers in `seen`, and adds up again.

    `seen` contains its own previous answer and the other solvers' answers.
    """
    _, b, c, _, e, f = numbers
    products, lines = [], []
    for index, (x, y) in enumerate(((b, c), (e, f))):
        stated = [answer.products[index] for answer in seen]
        wrong = [value for value in stated if value != x * y]
        agree = len(set(stated)) == 1
        # If all agree, the product is copied. Otherwise it is computed again, by splitting it if possible.
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
    """An answer with these lines, followed by the boxed result."""
    return Answer((products[0], products[1]), total, "\n".join([*lines, f"\\boxed{{{total}}}"]))


def partial_products(x: int, y: int, method: str) -> str:
    """The text between "x*y=" and the product: the sum of two partial products, or nothing.

    direct: nothing. tens: y is split into tens and units, 24*13=240+72=312; if y cannot be split, x is. first: x is
    split, 24*13=260+52=312.
    """
    if method == "tens" and y > 10 and y % 10 and x > 1:
        return f"{x * (y // 10 * 10)}+{x * (y % 10)}="
    if method != "direct" and x > 10 and x % 10 and y > 1:
        return f"{x // 10 * 10 * y}+{x % 10 * y}="
    return ""


def add_up(
    rng: np.random.Generator, numbers: Sequence[int], products: Sequence[int], sum_rate: float, difference_rate: float
) -> tuple[int, list[str]]:
    """Computes a + P + d - Q in a random order, for products (P, Q). Returns the result, and one line per step.

    Only the last step can give a negative result: P - Q is computed first only if it is not negative.
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
    """Returns `number`, or with probability `rate` a number with one digit wrong by one.

    It changes the tens digit if `tens` is set and the number has one, otherwise the units digit. A slip with a rate of
    at most 0.25 always goes in one direction, up from an even digit and down from an odd one, unless the digit would
    leave its range: with two directions, each would be too rare to be sampled.
    """
    if rng.random() >= rate:
        return number
    size = abs(number)
    place = 10 if tens and size >= 10 else 1
    digit = size // place % 10
    change = -1 if digit % 2 else 1
    if rate > 0.25 and rng.random() < 0.5:
        change = -change
    least = 1 if size // place < 10 and place > 1 else 0  # a leading digit does not become 0
    if not least <= digit + change <= 9:
        change = -change
    slipped = size + place * change
    return -slipped if number < 0 else slipped
