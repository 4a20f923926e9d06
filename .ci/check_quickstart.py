"""Checks that the quickstart improved: the finetuned society must beat the untuned debate and all other baselines.

Also that its texts are about as long as `mft plan` assumes.
"""

import sys

from mft_jax.plan.lengths import assumed_lengths, measured_lengths
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import read_results

directory = RunDirectory(sys.argv[1])
results = read_results(directory.results_file)
untuned = [result for result in results if result.iteration == 0]
last = max(results, key=lambda result: result.iteration)
assert [result.method for result in untuned] == ["base", "majority", "debate"], untuned
assert last.iteration == 2, last
for result in untuned:
    assert last.accuracy > result.accuracy, f"{last.accuracy} after finetuning, {result.accuracy} by {result.method}"
measured, assumed = measured_lengths(directory.path), assumed_lengths(directory.config())
assert 0.6 < measured.answer / assumed.answer < 1.4, (measured, assumed)
print(f"quickstart: {100 * last.accuracy:.1f} % after finetuning, {100 * untuned[-1].accuracy:.1f} % by untuned debate")
