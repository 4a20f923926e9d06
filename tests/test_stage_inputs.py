"""Debates with equal inputs are sampled once, over all methods; every input that changes a transcript counts."""

import dataclasses

import jax
import pytest

from mft_jax.experiment import Experiment
from mft_jax.methods import make_method
from mft_jax.models.fingerprint import adapter_digest, checkpoint_digest
from mft_jax.models.society import Society
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.shared_stages import read_record
from mft_jax.sampling import Sampler
from mft_jax.setup import prepare
from mft_jax.stage_inputs import stage_inputs
from tests.conftest import NAMES
from tests.small_run import SMALL, Remarks


@pytest.fixture
def sampled(monkeypatch):
    """The speakers of all requests that are sampled."""
    speakers, sample = [], Sampler.sample

    def record(self, requests, *rest, **options):
        speakers.extend(request.speaker for request in requests)
        return sample(self, requests, *rest, **options)

    monkeypatch.setattr(Sampler, "sample", record)
    return speakers


def open_experiment(path, session, siblings=(), **changes):
    config = dataclasses.replace(SMALL, run_dir=str(path), **changes)
    directory = RunDirectory(path)
    directory.take(config)
    stores = tuple(RunDirectory(sibling).store for sibling in siblings)
    return Experiment(prepare(config, session), directory, Remarks(), stores)


def test_the_first_training_debate_of_all_methods_is_sampled_once(finished, answering, tmp_path, sampled):
    """And without adapters: those of the first iteration have no effect yet."""
    record = read_record(finished[0].store, "iteration_1/debate/train.jsonl")
    assert record.inputs["protocol"]["speakers"] == [["base", "base"]] * 2
    assert (
        read_record(finished[0].store, "iteration_2/debate/train.jsonl").inputs["protocol"]["speakers"]
        != [["base", "base"]] * 2
    )
    methods = ("multiagent_ft", "multiagent_ft_no_critic", "single_agent_ft", "single_agent_ft_no_debate")
    for method in methods:
        experiment = open_experiment(tmp_path / method, answering, [finished[0].path], method=method)
        debates = experiment.debate(1, experiment.initial_society())
        assert debates.done == 12
        assert experiment.directory.debate_file(1).read_bytes() == finished[0].debate_file(1).read_bytes()
        assert "iteration 1: debate: copied from" in experiment.reporter.said[0]
        experiment.directory.release()
    assert sampled == []
    other = open_experiment(tmp_path / "other", answering, [finished[0].path], method="cooperative")
    other.debate(1, other.initial_society())
    assert len(sampled) == 12 * other.setup.method.protocol.samples
    assert set(sampled) == {None}
    other.directory.release()


def test_equal_evaluations_of_a_run_are_sampled_once(answering, tmp_path, sampled):
    experiment = open_experiment(tmp_path / "run", answering)
    for name in ("majority", "majority@2"):
        experiment.evaluate(make_method(name, experiment.config), 0, Society())
        assert len(sampled) == 8 * 2
    one, two = (experiment.directory.baseline_file(name).read_bytes() for name in ("majority", "majority@2"))
    assert one == two
    experiment.directory.release()


def test_inputs_differ_in_whatever_changes_a_transcript(answering):
    setup = prepare(SMALL, answering)
    debate, questions = setup.debate(Society(), "eval"), setup.task.eval
    inputs = stage_inputs(debate, questions, setup)
    assert inputs == stage_inputs(debate, questions, setup)
    faster = dataclasses.replace(SMALL, sampling=dataclasses.replace(SMALL.sampling, rows=3, chunk_questions=2))
    assert stage_inputs(debate, questions, dataclasses.replace(setup, config=faster)) == inputs
    hotter = dataclasses.replace(SMALL, sampling=dataclasses.replace(SMALL.sampling, temperature=0.5))
    prompts = dataclasses.replace(setup.task.prompts, again="Again.")
    others = [
        stage_inputs(dataclasses.replace(debate, name="train/1"), questions, setup),
        stage_inputs(dataclasses.replace(debate, seed=1), questions, setup),
        stage_inputs(dataclasses.replace(debate, task=dataclasses.replace(debate.task, prompts=prompts)), questions, setup),
        stage_inputs(dataclasses.replace(debate, protocol=dataclasses.replace(debate.protocol, named=True)), questions, setup),
        stage_inputs(debate, questions[1:], setup),
        stage_inputs(debate, [dataclasses.replace(questions[0], text="?"), *questions[1:]], setup),
        stage_inputs(debate, questions, dataclasses.replace(setup, config=hotter)),
    ]  # fmt: skip
    differing = [{name for name in inputs if inputs[name] != other[name]} for other in others]
    assert differing == [
        {"stage"}, {"seed"}, {"prompts"}, {"protocol"}, {"questions"}, {"questions"}, {"sampling"}
    ]  # fmt: skip


def test_adapters_count_by_their_weights_and_not_by_their_names(tiny):
    first = adapter_digest(tiny.society.adapter("ann"))
    renamed = dataclasses.replace(tiny.society, names=("cy", "dee", "ed"))
    assert adapter_digest(renamed.adapter("cy")) == first
    digests = {first, *(adapter_digest(tiny.society.adapter(name)) for name in ("bob", "cy"))}
    ann = tiny.society.adapter("ann")
    digests.add(adapter_digest(ann._replace(scale=ann.scale * 2)))
    digests.add(adapter_digest(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), ann)))
    assert len(digests) == 5


def test_adapters_without_effect(tiny, answering):
    assert tiny.society.without_effect == ()
    assert Society().without_effect == ()
    assert answering.fresh_society(NAMES, SMALL.lora, 0).without_effect == NAMES
    weights = jax.tree.map(lambda leaf: leaf, tiny.society.stacked.weights)
    for pair in weights.values():
        pair["b"] = pair["b"].at[1].set(0)
    weights["q_proj"]["b"] = weights["q_proj"]["b"].at[0, 1, 2, 3].set(float("nan"))
    some = dataclasses.replace(tiny.society, adapters=tiny.society.stacked._replace(weights=weights))
    assert some.without_effect == ("bob",)


def test_the_checksum_of_a_checkpoint(tmp_path):
    for name, text in {"config.json": "{}", "model.safetensors": "weights", "readme.md": "text"}.items():
        (tmp_path / name).write_text(text)
    before = checkpoint_digest(tmp_path)
    (tmp_path / "readme.md").write_text("other text")
    assert checkpoint_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_text("weightz")
    assert checkpoint_digest(tmp_path) != before
