"""The texts and the optimizer steps of a run, and their time, equal a calculation by hand."""

import dataclasses

import pytest

from mft_jax.config import DebateConfig, ExperimentConfig, FinetuningConfig, RoleConfig, SamplingConfig, TaskConfig
from mft_jax.methods import make_method
from mft_jax.plan.cases import ADAPTERS, CACHE, WEIGHTS, Sizes
from mft_jax.plan.counting import Counts
from mft_jax.plan.estimate import Clock, chunk_sizes
from mft_jax.plan.figures import TEMPORARIES, Figures
from mft_jax.plan.lengths import Lengths, assumed_lengths, lengths_of
from mft_jax.plan.memory import advice, phases_of
from mft_jax.plan.workload import (
    DebateStage,
    FinetuningStage,
    Texts,
    baseline_rules,
    cache_columns,
    row_targets,
    stages_of,
    texts_of,
)
from tests.plan.conftest import SPEEDS

LENGTHS = Lengths(question=100, answer=200, summary=50, message=10, longest=1.5, kept=0.5, source="made up")
CONFIG = ExperimentConfig(
    iterations=2,
    task=TaskConfig(train_questions=40, eval_questions=30),
    debate=DebateConfig(agents=3, rounds=2),
    sampling=SamplingConfig(rows=8, prefill_rows=4, max_new_tokens=250, chunk_questions=16),
    finetuning=FinetuningConfig(
        batch_rows=2, row_tokens=1000, generator=RoleConfig(epochs=2), critic=RoleConfig(epochs=3)
    ),
)


def test_the_texts_of_a_debate():
    """Answer, summary of the two other answers by the base model, answer with the whole dialogue as its prompt."""
    assert texts_of(make_method("multiagent_ft", CONFIG).protocol, LENGTHS) == (
        Texts(3, 100, 200, 3, True),
        Texts(3, 100 + 2 * 200 + 10, 50, 1, False),
        Texts(3, 100 + 200 + 50 + 10, 200, 3, True),
    )
    direct = texts_of(make_method("multiagent_ft_no_summary", CONFIG).protocol, LENGTHS)
    assert direct[1:] == (Texts(3, 100 + 200 + 2 * 200 + 10, 200, 3, True),)
    assert texts_of(make_method("majority@5", CONFIG).evaluation, LENGTHS, tuned=False) == (
        Texts(5, 100, 200, 1, False),
    )


def test_the_stages_of_a_run():
    stages = {stage.name: stage for stage in stages_of(CONFIG, LENGTHS)}
    evaluated = ["base (untuned)", "majority (untuned)", "debate (untuned)"]
    per_iteration = [f"iteration {k}: {name}" for k in (1, 2) for name in ("debate", "finetuning", "evaluation")]
    assert list(stages) == evaluated + per_iteration
    assert (stages["majority (untuned)"].prompt_tokens, stages["majority (untuned)"].new_tokens) == (9000, 18000)
    debate = stages["iteration 2: debate"]
    assert (debate.prompt_tokens, debate.new_tokens) == (40 * 3 * (100 + 510 + 360), 40 * 3 * (200 + 50 + 200))
    # Half of 40 dialogues: first answers of 300 tokens, whole dialogues of 560. Rows are filled to nine tenths.
    generator, critic = 20 * 300, 20 * 560
    assert stages["iteration 1: finetuning"] == FinetuningStage(
        "iteration 1: finetuning", -(-13 * 3 // 2), 3 * (2 * generator + 3 * critic)
    )
    untrained = stages_of(dataclasses.replace(CONFIG, method="debate"), LENGTHS)
    assert [stage.name for stage in untrained] == evaluated


def test_a_vote_at_the_budget_of_a_debate():
    """A debate has 3 x (100 + 510 + 360) tokens of prompts and 3 x 450 new ones, an answer 100 and 200."""
    config = dataclasses.replace(CONFIG, baselines=("base", "debate", "majority@debate"))
    rules = dict(baseline_rules(config, LENGTHS))
    assert rules["majority@debate"].agents == round((3 * 970 + 3 * 450) / 300)
    trained = dataclasses.replace(CONFIG, baselines=("base", "majority@iteration_1"))
    tokens = 2 * 3 * (2 * 20 * 300 + 3 * 20 * 560)  # of finetuning
    spent = 3 * 970 + 3 * 450 + (40 * (3 * 970 + 3 * 450) + tokens) / 30
    assert dict(baseline_rules(trained, LENGTHS))["majority@iteration_1"].agents == round(spent / 300)


def test_the_sizes_that_lengths_decide():
    # Of an example of 300 tokens 200 are targets, of a dialogue of 560 tokens 400: in quarters of a row of 1000.
    assert row_targets(CONFIG, make_method("multiagent_ft", CONFIG), LENGTHS) == 768
    assert cache_columns(100, CONFIG) == 128 + 256
    assert cache_columns(500, CONFIG) == 512 + 256


def figures(seconds, **memory):
    return Figures(Counts(seconds=seconds), {TEMPORARIES: 0.0, **memory}, 5.0)


SIZES = Sizes(lanes=3, rows=8, prefill_rows=4, columns=400, prompt_tokens=200, row_targets=768)


@pytest.fixture
def clock():
    decode = figures(0.01, **{WEIGHTS: 60.0, ADAPTERS: 0.0, CACHE: 40.0})
    return Clock(CONFIG, LENGTHS, SIZES, SPEEDS, decode, figures(0.2), figures(0.5))


def test_the_time_of_a_stage(clock):
    """Two chunks of 16 and 14 questions: 48 and 42 answers, 16 and 14 in each lane of 8 rows and 4 prompts a call."""
    stage = DebateStage("x", 30, (Texts(3, 90, 100, 3, True),))
    columns = cache_columns(1.25 * 90, CONFIG)
    step = 0.01 * (1 + 0.4 * (columns / 400 - 1))
    tail = 150 - 100  # the longest text is half as long again as the mean
    expected = (2 * 100 + tail) * step + 4 * 0.2 * 96 / 200 + (14 / 8 * 100 + tail) * step + 4 * 0.2 * 96 / 200
    assert clock.stage(stage).seconds == pytest.approx(expected)
    assert chunk_sizes(30, 16) == [16, 14]
    assert clock.stage(FinetuningStage("y", 7, 99.0)).seconds == pytest.approx(3.5)


def test_few_texts_wait_for_the_longest(clock):
    """Three texts for 8 rows: all are decoded at once, up to max_new_tokens."""
    stage = DebateStage("x", 1, (Texts(3, 90, 200, 3, True),))
    columns = cache_columns(1.25 * 90, CONFIG)
    step = 0.01 * (1 + 0.4 * (columns / 400 - 1))
    assert clock.stage(stage).seconds == pytest.approx(250 * step + 0.2 * 96 / 200)


def test_the_memory_of_a_run():
    """Sampling: weights, cache, 6 adapters at the start, 6 of the last iteration, 3 + 3 in stacks. Finetuning: those, and the 6
    that learn."""
    method = make_method("multiagent_ft", CONFIG)
    decode = figures(1.0, **{WEIGHTS: 100.0, ADAPTERS: 3.0, CACHE: 40.0, TEMPORARIES: 1.0})
    prefill = figures(1.0, **{WEIGHTS: 100.0, ADAPTERS: 3.0, CACHE: 40.0, TEMPORARIES: 9.0})
    train = figures(1.0, **{WEIGHTS: 100.0, ADAPTERS: 6.0, "optimizer": 12.0, TEMPORARIES: 50.0})
    sampling, finetuning = phases_of(method, decode, prefill, train, 3, 170.0)
    assert sampling.kinds == {WEIGHTS: 100.0, ADAPTERS: 18.0, CACHE: 40.0, TEMPORARIES: 9.0}
    assert (sampling.needed, sampling.fits) == (167.0, True)
    assert finetuning.kinds == {WEIGHTS: 100.0, ADAPTERS: 24.0, "optimizer": 12.0, TEMPORARIES: 50.0}
    assert (finetuning.needed, finetuning.fits) == (186.0, False)
    changes = advice(finetuning, CONFIG, 8, True)
    assert changes.startswith("finetuning.remat true, a smaller finetuning.agents_at_once, fewer finetuning.batch_rows")
    assert "mesh.model" in changes
    over = dataclasses.replace(sampling, available=156.0)  # 11 too much, and a row of each agent takes 5
    assert "sampling.rows 5 instead of 8" in advice(over, CONFIG, 8, True)


def test_lengths_of_transcripts():
    turn = lambda prompt, new, end="stop": {"prompt_tokens": prompt, "new_tokens": new, "end": end}
    agents = [
        {"turns": [turn(10, 20), turn(60, 30)], "answers": ["1", "1"]},
        {"turns": [turn(10, 40), turn(80, 10)], "answers": ["2", "1"]},
        {"turns": [turn(10, 0, "unanswerable")] * 2, "answers": [None, None]},
    ]
    line = {"agents": agents, "summary_turns": [[turn(90, 16), turn(90, 24), None]], "vote": "1"}
    found = lengths_of([line], CONFIG, "here")
    assert (found.question, found.answer, found.summary) == (10, 25, 20)
    assert found.message == (60 - 10 - 20 + 80 - 10 - 40) / 2 - 20
    assert found.longest == 40 / 25
    assert found.kept == pytest.approx(1 / 3)


def test_no_answer_is_assumed_to_be_longer_than_the_limit():
    short = dataclasses.replace(CONFIG, sampling=dataclasses.replace(CONFIG.sampling, max_new_tokens=50))
    assert (assumed_lengths(CONFIG).answer, assumed_lengths(short).answer) == (60, 50)
    assert assumed_lengths(CONFIG).source.startswith("assumed for arithmetic (measure them with --lengths-from RUN_DIR")
