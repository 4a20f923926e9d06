"""A finished run is compared with the plan of its configuration, and lends its lengths to other plans."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from mft_jax.errors import UserError
from mft_jax.plan.against import Difference, as_dict, compare, render_differences
from mft_jax.plan.estimate import StageEstimate
from mft_jax.plan.lengths import assumed_lengths, measured_lengths
from mft_jax.plan.plan import Plan
from mft_jax.plan.workload import stages_of
from mft_jax.runs.directory import RunDirectory
from tests.small_run import lines


@pytest.fixture(scope="module")
def estimated(finished):
    """A plan whose stages all take a second, for the run of the tests: its tokens follow from the run's own lengths."""
    directory, _, _ = finished
    config, lengths = directory.config(), measured_lengths(directory.path)
    stages = [
        StageEstimate(own.name, 0, own.new_tokens, 0, 1.0)
        if hasattr(own, "new_tokens")
        else StageEstimate(own.name, 0, 0, own.train_tokens, 1.0)
        for own in stages_of(config, lengths)
    ]
    return Plan(config, None, (2,), False, lengths, (), (), None, {}, tuple(stages), 0.0)


def test_the_tokens_are_those_of_the_run(finished, estimated):
    """With lengths that were measured in its first debate, the tokens of that debate are exact, and the others are near."""
    directory, results, _ = finished
    found = {own.stage: own for own in compare(estimated, directory)}
    assert len(found) == 3 + 2 * 3
    debate = found["iteration 1: debate"]
    assert debate.tokens[0] == pytest.approx(debate.tokens[1])
    final = found["iteration 2: evaluation"]
    assert final.tokens[0] == pytest.approx(final.tokens[1], rel=0.3)
    base = next(own for own in results if own.method == "base")
    assert found["base (untuned)"].tokens[1] == base.new_tokens
    assert found["base (untuned)"].seconds == (1.0, base.device_seconds)
    assert found["iteration 1: finetuning"].tokens[1] > 0


def test_the_lengths_of_the_run(finished):
    directory, _, _ = finished
    lengths, assumed = measured_lengths(directory.path), assumed_lengths(directory.config())
    assert lengths.source == f"measured in {directory.path}, 12 debates"
    assert lengths.question == pytest.approx(assumed.question, rel=0.1)  # which depends on the tokenizer alone
    turns = [turn for line in lines(directory.debate_file(1)) for own in line["agents"] for turn in own["turns"]]
    assert lengths.answer == pytest.approx(np.mean([turn["new_tokens"] for turn in turns]))
    assert 0 < lengths.kept <= 1


def test_the_table_and_the_sum(estimated):
    differences = [Difference("a", (100.0, 120), (2.0, 3.0)), Difference("b", (50.0, 50), (2.0, 5.0))]
    out = io.StringIO()
    Console(file=out, width=80).print(render_differences(differences))
    assert "All together: 4 s were estimated, it took 8 s: 2.00 times as long." in out.getvalue()
    assert json.dumps(as_dict(differences[0])) == (
        '{"stage": "a", "tokens": {"estimated": 100.0, "real": 120}, "seconds": {"estimated": 2.0, "real": 3.0}}'
    )


def test_a_run_without_finished_stages(finished, estimated, tmp_path):
    directory, _, _ = finished
    shutil.copy(directory.path / "config.yaml", tmp_path / "config.yaml")
    shutil.copy(directory.path / "run.json", tmp_path / "run.json")
    begun = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="has no finished stage to compare with: let `mft run` finish one first"):
        compare(dataclasses.replace(estimated, config=begun.config()), begun)
    with pytest.raises(UserError, match="has no debate to measure the lengths of texts in: let `mft run` finish one"):
        measured_lengths(tmp_path)
