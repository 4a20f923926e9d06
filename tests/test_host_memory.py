"""What the host keeps of the questions of a run."""

import dataclasses
import gc
import tracemalloc

import pytest

from mft_jax.experiment import run
from tests.small_run import SMALL

FEW, MANY = 40, 520
PER_QUESTION = 50e6 / 4500  # bytes: 5,000 questions may need 50 MB more than 500


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_questions(tmp_path):
    """The peak of all that Python and NumPy hold, from the first question to the report. XLA's buffers are not traced."""
    tracemalloc.start()
    try:
        peak(tmp_path / "first", MANY)  # compiles the programs for all lengths of prompts, which JAX keeps
        few, many = peak(tmp_path / "few", FEW), peak(tmp_path / "many", MANY)
    finally:
        tracemalloc.stop()
    assert 0 < (many - few) / (MANY - FEW) < PER_QUESTION


def peak(directory, questions):
    """The bytes that a debate on this many questions, in chunks of 40, needs at most at the same time."""
    config = dataclasses.replace(
        SMALL,
        run_dir=str(directory),
        method="debate",
        iterations=1,
        baselines=(),
        task=dataclasses.replace(SMALL.task, eval_questions=questions),
        sampling=dataclasses.replace(SMALL.sampling, chunk_questions=40, steps_per_dispatch=16),
    )
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    (result,) = run(config)
    assert result.n == questions
    return tracemalloc.get_traced_memory()[1] - before
