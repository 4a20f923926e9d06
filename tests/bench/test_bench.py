"""`mft bench` measures real work, and its numbers agree with each other."""

import dataclasses
import io
import itertools
import json

import jax
import pytest
from rich.console import Console

from mft_jax.bench import Limits, device, run_bench, sampling
from mft_jax.bench.measurement import Work, measure, read_report, write_report
from mft_jax.bench.sampling import decode_work, prefill_work
from mft_jax.bench.stopwatch import timed
from mft_jax.bench.table import render_bench
from mft_jax.config import MeshConfig, ModelSource, TaskConfig
from mft_jax.errors import UserError
from mft_jax.metrics.flops import sampling_flops
from mft_jax.session import open_session
from mft_jax.setup import prepare
from tests.small_run import SMALL

# Six questions in the four slots of each agent.
CONFIG = dataclasses.replace(
    SMALL,
    task=TaskConfig(train_questions=6, eval_questions=4),
    sampling=dataclasses.replace(SMALL.sampling, rows=4, chunk_questions=6),
)
LIMITS = Limits(flops_per_second=1e9, bytes_per_second=1e8)


@pytest.fixture(scope="module")
def session():
    return open_session(CONFIG.model, MeshConfig())


@pytest.fixture(scope="module")
def report(session, tmp_path_factory):
    """A report, and what it said it measures, with each measurement when it was made.

    The shapes are those of tests.small_run, to compile little.
    """
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "NEW_TOKENS", SMALL.sampling.max_new_tokens)
        patch.chdir(tmp_path_factory.mktemp("empty"))
        found = run_bench(CONFIG, repeats=1, say=said.append, show=said.append, session=session)
    return found, said


def test_every_kind_of_work_is_measured(report):
    found, said = report
    together, base, alone = "2 adapters x 4 rows", "base model, 8 rows", "1 adapter x 4 rows"
    sampled = [(name, case) for case in (together, base, alone) for name in ("prefill", "decode", "sample")]
    rest = [("finetune", "4 adapters"), ("finetune", "one at a time"), ("score", "12 dialogues")]
    assert [(own.name, own.case) for own in found.measurements] == [*sampled, *rest]
    shown = iter(found.measurements)
    assert said == [
        "the limits of the devices",
        *(line for case in (together, base, alone) for line in (f"sampling: {case}", *itertools.islice(shown, 3))),
        "a debate", "finetuning", *itertools.islice(shown, 2), "scoring", *shown, "grading",
    ]  # fmt: skip
    tokens = {(own.name, own.case): own.tokens for own in found.measurements}
    assert tokens["sample", together] == tokens["decode", base] == 8 * 96
    assert tokens["decode", alone] == 4 * 96
    assert found.debate["questions"] == 6
    assert found.compilations["train"] >= 2
    assert found.peak_memory_bytes > 100e6


def test_shares_and_ratios_are_possible_and_agree_with_the_measurements(report):
    found, _ = report
    rate = {(own.name, own.case): own.tokens_per_second for own in found.measurements}
    for own in found.measurements:
        assert own.tokens_per_second == pytest.approx(own.tokens / own.seconds)
        assert 0 < own.share_of_peak <= own.share_of_roofline < 1.2
    assert found.ratios == {
        "sampling: all adapters together to one at a time": pytest.approx(
            rate["sample", "2 adapters x 4 rows"] / rate["sample", "1 adapter x 4 rows"]
        ),
        "sampling: with adapters to without": pytest.approx(
            rate["sample", "2 adapters x 4 rows"] / rate["sample", "base model, 8 rows"]
        ),
        "finetuning: all adapters in one step to one at a time": pytest.approx(
            rate["finetune", "4 adapters"] / rate["finetune", "one at a time"]
        ),
    }
    shares = [found.debate[name] for name in ("time_in_programs", "live_slots", "prefilled_tokens_without_padding")]
    assert all(0 < share <= 1 for share in shares)
    assert 0.7 < shares[1] < 0.8  # all answers have the same length, and the last two questions leave two slots free


def test_the_work_of_sampling_is_that_of_the_ledger(session):
    """Prefill and decode together need the FLOPs that results.json counts."""
    setup = prepare(CONFIG, session)
    society, lengths = setup.fresh_society(), [17, 30, 5]
    for adapted in (False, True):
        both = [prefill_work(setup, lengths, 1, adapted), decode_work(setup, society, lengths, 9, adapted)]
        lora = setup.config.lora if adapted else None
        expected = sum(sampling_flops(session.model, lora, prompt_tokens=p, new_tokens=9) for p in lengths)
        assert sum(own.flops for own in both) == expected
        assert [own.tokens for own in both] == [52, 27]
        half = prefill_work(setup, lengths, 1, adapted, read=26)  # what the prompts share is computed once
        assert (half.tokens, half.flops) == (52, both[0].flops // 2)
    weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(session.base))
    column = 2 * 4 * session.model.layers * session.model.kv_heads * session.model.head_dim
    context = sum(range(17, 26)) + sum(range(30, 39)) + sum(range(5, 14))
    assert decode_work(setup, society, lengths, 9, False).bytes == 9 * weights + context * column


def test_compilation_is_counted_by_the_session(session, monkeypatch):
    """Not by the copies of its programs that are timed, whose seconds nobody reads."""
    copies = []
    monkeypatch.setattr(sampling, "timed", lambda programs: copies.append(timed(programs)) or copies[-1])
    monkeypatch.setattr(sampling, "NEW_TOKENS", 8)  # a shape that no other test has compiled
    setup, before = prepare(CONFIG, session), session.programs.compile_seconds
    sampling.measure_sampling(setup, setup.fresh_society(), (None,), 2, LIMITS, 1, "x")
    assert session.programs.compile_seconds > before
    ((programs, (prefill, prefix), decode),) = copies
    assert (prefill.calls, prefix.calls, decode.calls) == (1, 0, 1)
    assert programs.compile_seconds == session.programs.compile_seconds


def test_a_measurement_by_hand():
    by_flops = measure("decode", "x", Work(tokens=100, flops=5 * 10**8, bytes=10**6), LIMITS, [1.0, 4.0, 2.0])
    assert (by_flops.seconds, by_flops.tokens_per_second) == (2.0, 50.0)
    assert (by_flops.share_of_peak, by_flops.share_of_roofline) == (0.25, 0.25)
    by_bytes = measure("decode", "x", Work(tokens=100, flops=5 * 10**8, bytes=10**8), LIMITS, [2.0])
    assert (by_bytes.share_of_peak, by_bytes.share_of_roofline) == (0.25, 0.5)


def test_a_report_is_written_read_and_compared(report, tmp_path):
    found, _ = report
    write_report(found, tmp_path / "old.json")
    assert read_report(tmp_path / "old.json") == found
    slower = [dataclasses.replace(own, tokens_per_second=own.tokens_per_second / 2) for own in found.measurements]
    before = dataclasses.replace(found, measurements=tuple(slower[1:]))
    shown = rendered(found, before)
    assert shown.count("x 2.00") == len(found.measurements) - 1
    assert "x 2.00" not in rendered(found, None)
    assert f"{found.ratios['sampling: with adapters to without']:.2f}" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def rendered(report, before):
    out = io.StringIO()
    Console(file=out, width=80).print(render_bench(report, before))
    return out.getvalue()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"limits": 3}', json.dumps({"limits": {}, "measurements": []})])
def test_a_file_that_is_no_report(tmp_path, text):
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(UserError, match=r"old\.json is not a report of `mft bench --json` .*: give another file"):
        read_report(tmp_path / "old.json")


def test_what_cannot_be_measured(session, tmp_path):
    with pytest.raises(UserError, match="repeats is 0, expected at least 1"):
        run_bench(CONFIG, repeats=0, session=session)
    with pytest.raises(UserError, match="The method debate finetunes no adapters: choose one that does"):
        run_bench(dataclasses.replace(CONFIG, method="debate"), session=session)
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read \(No such file or directory\): give a file"):
        read_report(tmp_path / "nowhere.json")


def test_the_peak_of_a_run_is_measured_once_for_all_its_devices(monkeypatch):
    calls = []
    monkeypatch.setattr(device, "time_runs", lambda call, repeats: calls.append(call().dtype) or [0.5, 0.25])
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(data=2), model=ModelSource(compute_dtype="bfloat16"))
    device.peak_of_run.cache_clear()
    assert [device.peak_of_run(config) for _ in range(2)] == [
        2 * 1024**3 / 0.25
    ] * 2  # devices of a CPU share its cores
    assert calls == ["bfloat16"]


def test_without_memory_for_a_matmul_the_peak_is_not_known(monkeypatch):
    def fail(mesh, dtype):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(device, "measure_matmul", fail)
    device.peak_of_run.cache_clear()
    assert device.peak_of_run(CONFIG) is None
    device.peak_of_run.cache_clear()
