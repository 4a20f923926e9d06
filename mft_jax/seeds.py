"""All random streams of the project. Each use has its own seed or key, so that no two uses share a stream.

The streams depend only on their arguments, not on the machine, the process or environment variables. Across library
versions:
- Python: `random.Random` is seeded with strings and used through `random()` only, whose sequence for a given seed is
  promised to stay the same in later versions.
- JAX: the PRNG implementation is pinned here (threefry2x32, partitionable) instead of following the environment. JAX
  does not promise that all versions derive the same values from it.
- numpy: a `Generator` may give other numbers in another version of numpy (NEP 19), so `example_choice`, `packing`,
  `demonstration_stream` and `bootstrap` are reproducible with the same version only.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

JAX_IMPLEMENTATION = "threefry2x32"
_EXAMPLES, _PACKING, _BOOTSTRAP = 0, 1, 2  # part of the seeds of the kinds of numpy streams


def pin_jax() -> None:
    """Pins the settings of JAX that change sampled numbers, whatever its environment variables say.

    Call it before compiling. JAX_THREEFRY_PARTITIONABLE chooses other random bits; JAX_ENABLE_X64 draws them in double
    precision; JAX_NUMPY_DTYPE_PROMOTION=strict refuses programs that the default accepts.
    """
    import jax

    jax.config.update("jax_threefry_partitionable", True)
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")


def adapter_key(seed: int):
    """The JAX key from which the adapters of a society are initialized; adapter i folds i into it."""
    import jax

    return jax.random.key(seed, impl=JAX_IMPLEMENTATION)


def base_model_key(seed: int):
    """The JAX key of the random weights that the training of the included base model starts from."""
    import jax

    return jax.random.key(seed, impl=JAX_IMPLEMENTATION)


def demonstration_stream(seed: int) -> np.random.Generator:
    """The generator that draws the dialogues that the included base model is trained on."""
    return np.random.default_rng(seed)


def row_key(*parts: object) -> np.ndarray:
    """The random key of one sampled row, [2] uint32: a hash of `parts`, which must identify the row.

    Debates pass (seed, name of the debate, kind and round, question id, agent). Token i of the answer folds i into the
    key. `programs.choose`, which may draw several times for a token, folds the number of the draw into the result.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u4")


def wrap_row_keys(keys):
    """Converts row keys [..., 2] uint32 to JAX keys [...]. Can be traced."""
    import jax

    return jax.random.wrap_key_data(keys, impl=JAX_IMPLEMENTATION)


def tie(seed: int, question_id: str, round: int) -> float:
    """The random number in [0, 1) that breaks a tied vote after `round` (from 1)."""
    # Seeded with the string itself and not with its hash(), which differs between processes.
    return random.Random(f"{seed}/{question_id}/{round}").random()


def question_pool(name: str) -> random.Random:
    """The stream from which the question pool of a generated task is drawn, the same for all seeds of a run."""
    return random.Random(name)


def question_order(items: Sequence[T], seed: int, name: str) -> tuple[T, ...]:
    """Shuffles the items. The permutation depends only on the number of items, `seed` and `name`.

    A run of n questions takes the first n, so the questions of a smaller run are a subset of those of a larger run.
    """
    draws = random.Random(f"{seed}/{name}")
    keys = [draws.random() for _ in items]
    return tuple(items[index] for index in sorted(range(len(items)), key=lambda index: keys[index]))


def example_choice(seed: int, iteration: int, agent: int) -> np.random.Generator:
    """The generator from which the selector of a lesson draws. `agent` is the `stream` of the lesson."""
    return np.random.default_rng([seed % 2**64, iteration, agent, _EXAMPLES])


def packing(seed: int, iteration: int, adapter: int, epoch: int) -> np.random.Generator:
    """The generator that shuffles an adapter's examples before packing. `adapter` is its index in the society."""
    return np.random.default_rng([seed % 2**64, iteration, adapter, _PACKING, epoch])


def bootstrap(seed: int) -> np.random.Generator:
    """The generator that resamples questions for the interval of a difference between two methods."""
    return np.random.default_rng([seed % 2**64, 0, 0, _BOOTSTRAP])  # iterations of training streams start at 1
