import itertools
import types

import pytest

from mft_jax.programs.slots import bucket
from mft_jax.sampling.lengths import MOST_IN_RUN, SHORTEST, PromptLengths, choose_lengths, padded_length


def test_padded_lengths():
    assert [padded_length(n) for n in (1, 32, 33, 41, 64, 65, 200, 1025)] == [32, 32, 40, 48, 64, 80, 224, 1280]
    for tokens in range(1, 3000):
        padded = padded_length(tokens)
        assert tokens <= padded <= bucket(tokens, 32)  # the cache, whose columns follow `bucket`, holds a padded prompt
        assert padded == 32 or padded - tokens < tokens / 4
        assert padded_length(padded) == padded
        finer = padded_length(tokens, 8)
        assert tokens <= finer <= padded
        assert finer == 32 or finer - tokens < tokens / 8


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
    assert choose_lengths(iter([33, 200]), 3, 8) == [36, 208]


def lengths_on(platform):
    """The lengths of a run on a mesh of this platform, of which nothing else is asked."""
    device = types.SimpleNamespace(platform=platform)
    return PromptLengths(types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device])))


def columns_for(prompts, new=64):
    return bucket(max(prompts), SHORTEST) + new


def test_a_cpu_chooses_three_lengths_for_every_pass():
    lengths = lengths_on("cpu")
    for prompts in ([33, 50, 80, 200], [34, 60, 90, 210, 230]):
        assert lengths.choose(prompts, columns_for(prompts)) == choose_lengths(prompts, 3, 8)


def test_a_cpu_reads_few_columns_beyond_the_longest_row():
    lengths = lengths_on("cpu")
    assert lengths.choose_columns(41, 41 + 96, 96) == 144  # 48 + 96; in halves of a power of two it is 192
    assert lengths.choose_columns(204, 204 + 96, 96) == 320
    assert lengths.choose_columns(190, 190 + 96, 96) == 320  # 288 would be enough, but no programs are compiled for it
    assert lengths.choose_columns(150, 150 + 96, 96) == 256
    assert lengths.choose_columns(1000, 1024, 96) == 1024  # the end of the model's context
    coarse = lengths_on("gpu")
    assert [coarse.choose_columns(tokens, tokens + 96, 96) for tokens in (41, 204, 190)] == [144, 352, 288]


def test_an_accelerator_uses_the_lengths_of_earlier_passes_again():
    lengths = lengths_on("tpu")
    assert lengths.choose([60, 62, 100], 160) == [64, 112]
    # One prompt that needs 48 only is not worth another length; many are.
    assert lengths.choose([61, 45, 100, 100], 160) == [64, 112]
    assert lengths.choose([45] * 20, 160) == [48, 64]
    # A longer prompt needs one.
    assert lengths.choose([45, 190], 256) == [48, 64, 112, 192]
    assert lengths.choose([47, 48], 96) == [48]
    assert lengths.known == {48, 64, 112, 192}


def test_a_length_that_the_cache_does_not_hold_is_used_only_if_there_is_no_room_for_another():
    lengths = lengths_on("tpu")
    for prompts in ([100, 200], [300, 400], [500, 600]):
        lengths.choose(prompts, 1024)
        few = sorted(lengths.known)
    assert few == [112, 224, 320, 448, 512, 640]
    assert lengths.choose([230, 240], 256) == [112, 224, 320]


def test_a_run_on_an_accelerator_has_few_lengths():
    """Whatever the prompts: chunks of questions, summaries and later rounds, again and again."""
    lengths = lengths_on("tpu")
    for chunk in range(20):
        for shortest in (40, 150, 420):
            prompts = [shortest + chunk % 7 * 9 + 5 * n for n in range(30)]
            chosen = lengths.choose(prompts, columns_for(prompts))
            assert max(prompts) <= max(chosen)
            assert len(lengths.known) <= MOST_IN_RUN
    # Only prompts that are longer than all of them add more, which are those of caches.
    few = set(lengths.known)
    for longest in range(700, 3000, 20):
        assert max(lengths.choose([50, longest], columns_for([longest]))) >= longest
    assert lengths.known - few == {768, 1024, 1536, 2048, 3072}
