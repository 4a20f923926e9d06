"""Diversity of small societies with a tiny model: known values, and a run that measures it."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mft_jax.config import MetricsConfig
from mft_jax.debate import Transcript
from mft_jax.diversity_stage import BASE_STATES, DiversityStage
from mft_jax.errors import UserError
from mft_jax.experiment import run
from mft_jax.models.society import Society
from mft_jax.report.progress import SilentReporter
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import read_results
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.store import Store
from mft_jax.sampling import Text, score_texts
from mft_jax.setup import prepare
from tests.small_run import SMALL, adapters_of, lines

ALL = MetricsConfig(diversity=("nll", "embedding", "kl"), diversity_questions=3)


@pytest.fixture(scope="module")
def setup(answering):
    return prepare(dataclasses.replace(SMALL, metrics=ALL), answering)


@pytest.fixture(scope="module")
def transcripts(finished):
    return [Transcript.from_dict(line) for line in lines(finished[0].evaluation_file(1))]


def measured(stage, measure, transcripts, path):
    """The values of a measure for each transcript."""
    store = Store(path)
    store.hold()
    file = StageFile(store, "values.jsonl")
    stage.run(measure, transcripts, file, "test")
    store.release()
    return file.lines()


def society(setup, finished, *names):
    """A society whose adapters have the weights of the named ones, after the first iteration of the finished run.

    Few steps hardly move an adapter, so its update is made a hundred times larger.
    """
    weights = adapters_of(finished[0], 1)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(weights[name] for name in names))
    lora = dataclasses.replace(setup.config.lora, alpha=100 * setup.config.lora.alpha)
    return setup.session.society([f"copy_{n}" for n in range(len(names))], stacked, lora)


def test_equal_agents_do_not_diverge_and_judge_each_other_as_themselves(setup, finished, transcripts, tmp_path):
    equal = society(setup, finished, "critic_0", "critic_0")
    stage = DiversityStage(setup, equal, equal.names, SilentReporter())
    divergences = measured(stage, "kl", transcripts, tmp_path / "kl")
    assert [line["id"] for line in divergences] == [transcript.id for transcript in transcripts[:3]]
    for line in divergences:
        assert line["kl"] == pytest.approx(0, abs=1e-6)
        assert line["kl_to_base"] > 1e-4
    chat, session = setup.session.chat, setup.session
    examples = [chat.examples(own.messages, learned=[-1])[-1] for t in transcripts[:3] for own in t.agents]
    own = score_texts(session.programs, session.base, [Text("copy_0", ids.tolist()) for ids, _ in examples], equal)
    nll = [-score.log_probs[mask].mean() for score, (_, mask) in zip(own, examples, strict=True)]
    found = [line["nll"] for line in measured(stage, "nll", transcripts, tmp_path / "nll")]
    np.testing.assert_allclose(found, np.mean(np.reshape(nll, (3, 2)), axis=1), rtol=1e-4)


def test_different_agents_diverge(setup, finished, transcripts, tmp_path):
    different = society(setup, finished, "critic_0", "generator_1")
    stage = DiversityStage(setup, different, different.names, SilentReporter())
    assert min(line["kl"] for line in measured(stage, "kl", transcripts, tmp_path)) > 1e-4


def test_the_base_model_as_every_agent(setup, transcripts, tmp_path):
    stage = DiversityStage(setup, Society(), (None, None), SilentReporter())
    assert {(line["kl"], line["kl_to_base"]) for line in measured(stage, "kl", transcripts, tmp_path)} == {(0.0, 0.0)}


def test_more_questions_are_measured_after_those_that_are_done(setup, transcripts, tmp_path):
    stage = DiversityStage(setup, Society(), (None, None), SilentReporter())
    first = measured(stage, "kl", transcripts, tmp_path)
    settings = dataclasses.replace(setup.config.metrics, diversity_questions=5)
    larger = dataclasses.replace(setup, config=dataclasses.replace(setup.config, metrics=settings))
    both = measured(dataclasses.replace(stage, setup=larger), "kl", transcripts, tmp_path)
    assert (both[:3], [line["id"] for line in both]) == (first, [transcript.id for transcript in transcripts[:5]])


def test_the_same_text_has_no_dissimilarity(setup, transcripts, tmp_path):
    stage = DiversityStage(setup, Society(), (None, None), SilentReporter())
    first = transcripts[0].agents[0]
    twice = dataclasses.replace(transcripts[0], agents=(first, first), vote=first.answers[-1])
    undecided = dataclasses.replace(twice, vote=None)
    same, none = measured(stage, "embedding", [twice, undecided], tmp_path)
    assert same == {"id": transcripts[0].id, "embedding": pytest.approx(0, abs=1e-6), "encoder": BASE_STATES}
    assert none["embedding"] is None


def test_a_run_measures_what_is_asked_for_later_and_resumes(answering, finished, tmp_path):
    """Measures can be added to a finished run. What is measured is not measured again."""
    shutil.copytree(finished[0].path, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    config = dataclasses.replace(
        SMALL, run_dir=str(directory.path), metrics=dataclasses.replace(ALL, diversity_questions=100)
    )
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, chunk_questions=2))
    results = run(config, session=answering)
    assert results == read_results(directory.results_file)
    base, majority, _, _, last = [result for result in results if result.task == SMALL.task.name]
    assert base.diversity is None
    assert majority.diversity["kl"] == 0
    assert set(last.diversity) == {
        "consensus", "diversity", "nll", "embedding", "kl", "kl_to_base", "encoder", "questions"
    }  # fmt: skip
    assert (last.diversity["questions"], last.diversity["encoder"]) == (8, BASE_STATES)
    for name in ("nll", "kl", "kl_to_base"):
        file = directory.path / f"iteration_2/eval/diversity_{name.removesuffix('_to_base')}.jsonl"
        assert last.diversity[name] == pytest.approx(np.mean([line[name] for line in lines(file)]), abs=1e-12)
    assert last.diversity["nll"] > 0
    before = [dataclasses.replace(result, diversity=None) for result in finished[1]]
    own = [result for result in results if result.task == SMALL.task.name]
    assert [dataclasses.replace(result, diversity=None) for result in own] == before

    file = directory.path / "iteration_2/eval/diversity_kl.jsonl"
    values = file.read_bytes()
    file.unlink()  # found at the next start, and made again
    assert run(config, session=answering) == results
    assert file.read_bytes() == values


def test_a_method_with_one_agent_has_no_pairs_to_compare(tmp_path):
    config = dataclasses.replace(
        SMALL,
        run_dir=str(tmp_path / "run"),
        method="single_agent_ft_no_debate",
        metrics=MetricsConfig(diversity=("nll",)),
    )
    with pytest.raises(
        UserError, match=r"metrics.diversity is nll, .* single_agent_ft_no_debate answers with one agent"
    ):
        run(config)
    assert not (tmp_path / "run").exists()
