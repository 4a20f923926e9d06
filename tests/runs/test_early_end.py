from mft_jax.config import from_dict
from mft_jax.metrics.monitor import Monitor, Signals
from mft_jax.runs import layout
from mft_jax.runs.early_end import last_iteration, record_end
from mft_jax.runs.store import Store
from mft_jax.runs.survey import list_stages

SIGNALS = Signals(diversity=0, unanimous=1, vote_entropy=0, concentration=1, flips=0, unparsed=0)
MONITOR = Monitor(
    verdict="collapsing", reason="made", compared_with=1, settled=0, lost=9, invented=0, signals=SIGNALS
)  # fmt: skip


def test_a_run_that_ended_early_has_no_later_stages(tmp_path):
    baselines = ["base", "majority@iteration_3", "majority@iteration_2"]
    config = from_dict({"iterations": 3, "stop_when_collapsing": True, "baselines": baselines})
    unguarded = from_dict({"iterations": 3, "baselines": baselines})
    store = Store(tmp_path)
    store.hold()
    assert last_iteration(store, config) == 3
    assert len(list_stages(store, config)) == 3 + 3 * 3
    record_end(store, 2, MONITOR)
    assert (last_iteration(store, config), last_iteration(store, unguarded)) == (2, 3)
    names = [stage.name for stage in list_stages(store, config)]
    assert names[:2] == ["base (untuned)", "majority@iteration_2 (untuned)"]
    assert (len(names), names[-1]) == (2 + 2 * 3, "iteration 2: evaluation")
    store.write(layout.verdict(2), b"\x00")  # only its existence counts
    assert last_iteration(store, config) == 2
    store.release()
