import itertools

import pytest

from mft_jax.programs.slots import bucket
from mft_jax.sampling.lengths import choose_lengths, padded_length


def test_padded_lengths():
    assert [padded_length(n) for n in (1, 32, 33, 41, 64, 65, 200, 1025)] == [32, 32, 40, 48, 64, 80, 224, 1280]
    for tokens in range(1, 3000):
        padded = padded_length(tokens)
        assert tokens <= padded <= bucket(tokens, 32)  # the cache, whose columns follow `bucket`, holds a padded prompt
        assert padded == 32 or padded - tokens < tokens / 4
        assert padded_length(padded) == padded


def padding(prompts, lengths):
    return sum(min(own for own in lengths if own >= tokens) for tokens in prompts)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_other_choice_needs_less_padding(most):
    prompts = [35, 36, 44, 70, 71, 90, 120, 121, 122, 123, 200, 201, 390]
    chosen = choose_lengths(prompts, most)
    assert chosen == sorted(chosen)
    assert len(chosen) == most
    possible = sorted({padded_length(tokens) for tokens in prompts})
    others = [own for own in itertools.combinations(possible, most) if max(own) >= max(prompts)]
    assert padding(prompts, chosen) == min(padding(prompts, own) for own in others)


def test_no_more_lengths_than_save_padding():
    assert choose_lengths([100] * 5, 3) == [112]
    assert choose_lengths([100, 105, 112], 3) == [112]
    assert choose_lengths(iter([33, 200]), 3) == [40, 224]
