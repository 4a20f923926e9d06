"""What the prompts of a pass have in common, so that the model reads it once."""

import collections
import itertools
from collections.abc import Hashable, Iterable, Sequence

from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import projection_shapes

# Another program is compiled only if it saves so many FLOPs: those of a second or two, which compilation takes at least.
_WORTH_ON_CPU, _WORTH_ELSEWHERE = 2e11, 1e14
# Fewer different prompts may begin with the same tokens by chance; each such length would need programs of its own.
_FEWEST_PROMPTS = 8


def is_worth_a_program(saved: float, model: ModelConfig, platform: str) -> bool:
    """Whether to read `saved` fewer tokens of prompts saves more time than a program that does so costs."""
    per_token = 2 * model.layers * sum(size_in * size_out for size_in, size_out in projection_shapes(model).values())
    return saved * per_token > (_WORTH_ON_CPU if platform == "cpu" else _WORTH_ELSEWHERE)


def shared_prefix(prompts: Iterable[tuple[int, ...]]) -> int:
    """How many tokens all of these prompts begin with, less than the shortest has; 0 if few of them differ."""
    if len(different := set(prompts)) < _FEWEST_PROMPTS:
        return 0
    first, last = min(different), max(different)  # in lexicographic order, the others are between these two
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in same), min(map(len, different)) - 1)


def deal_out(prompts: Sequence[Hashable], lanes: int) -> list[int]:
    """A lane for each prompt, such that equal prompts are in the same lane as far as all lanes get equally many."""
    groups: dict[Hashable, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(number)
    dealt, counts, most = [0] * len(prompts), [0] * lanes, -(-len(prompts) // lanes)
    for own in groups.values():
        left = collections.deque(own)
        while left:
            lane = counts.index(min(counts))
            for _ in range(min(len(left), most - counts[lane])):
                dealt[left.popleft()] = lane
                counts[lane] += 1
    return dealt


def places_for(queues: Sequence[Sequence[Hashable]], slots: int) -> int:
    """How many different prompts a program must read to fill `slots` slots of each lane, whose prompts come in this order.

    `slots`, or half of it, a quarter, and so on, rounded up, so that few programs are compiled.
    """
    most, places = max(_most_different(queue, slots) for queue in queues), slots
    while places > 1 and most <= -(-places // 2):
        places = -(-places // 2)
    return places


def _most_different(queue: Sequence[Hashable], size: int) -> int:
    """The largest number of different prompts among `size` that follow each other."""
    return max((len(set(queue[start : start + size])) for start in range(max(1, len(queue) - size + 1))), default=0)
