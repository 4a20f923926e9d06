"""Every random stream of the project. A stream is named by where it is used, so that no two places ever share one.

Each function gives the same numbers on every machine, with every version of Python, numpy and JAX that is supported, and
whatever the environment says: Python's streams are used through `random()` alone, the one method whose values are
promised; JAX's generator is pinned here instead of following `jax_default_prng_impl`.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

JAX_IMPLEMENTATION = "threefry2x32"
_EXAMPLES, _PACKING = 0, 1  # the last part of a training stream's name


def pin_jax() -> None:
    """Makes JAX draw by the pinned generator, whatever JAX_THREEFRY_PARTITIONABLE says. Before anything is compiled."""
    import jax

    jax.config.update("jax_threefry_partitionable", True)


def adapter_key(seed: int):
    """The JAX key that a society's fresh adapters are drawn from; adapter number i folds i into it."""
    import jax

    return jax.random.key(seed, impl=JAX_IMPLEMENTATION)


def row_key(*parts: object) -> np.ndarray:
    """The key of one sampled row, [2] uint32, from its (seed, debate, stage, question, agent).

    The token at place i of the row folds i into it, and draw number d of that token folds d into the result.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u4")


def wrap_row_keys(keys):
    """Row keys [..., 2] uint32 as JAX keys, inside a compiled program."""
    import jax

    return jax.random.wrap_key_data(keys, impl=JAX_IMPLEMENTATION)


def tie(seed: int, question_id: str, round: int) -> float:
    """The draw in [0, 1) that decides a tied vote after a round (counted from 1)."""
    return random.Random(f"{seed}/{question_id}/{round}").random()  # of text: hash() differs between processes


def question_pool(name: str) -> random.Random:
    """The stream that a generated task's pool of questions is drawn from: the same pool for every seed of a run."""
    return random.Random(name)


def question_order(items: Sequence[T], seed: int, name: str) -> tuple[T, ...]:
    """All items in an order that depends only on their number, `seed` and `name`.

    A subset is a prefix of it, so a smaller run's questions are among a larger run's.
    """
    draws = random.Random(f"{seed}/{name}")
    keys = [draws.random() for _ in items]
    return tuple(items[index] for index in sorted(range(len(items)), key=lambda index: keys[index]))


def example_choice(seed: int, iteration: int, agent: int) -> np.random.Generator:
    """Which of an agent's dialogues become training examples."""
    return np.random.default_rng([seed % 2**64, iteration, agent, _EXAMPLES])


def packing(seed: int, iteration: int, adapter: int, epoch: int) -> np.random.Generator:
    """The order in which an adapter's examples are packed into rows. `adapter` is its place in the society."""
    return np.random.default_rng([seed % 2**64, iteration, adapter, _PACKING, epoch])
