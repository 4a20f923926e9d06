import dataclasses
import pathlib
import re
import sys

import numpy as np
import pytest

from mft_jax import cli
from mft_jax.config import from_dict
from mft_jax.metrics.ledger import Cost, Ledger
from mft_jax.metrics.vote_curve import VotePoint
from mft_jax.report import plot_style
from mft_jax.report.plot_style import looks
from mft_jax.report.plots import NO_CURVE, encode_plots, make_plots
from mft_jax.report.plotted_runs import PlottedRun, merge_runs
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import write_results
from tests.report.made import result


def measured(method, iteration, accuracy, test, training=0, **changes):
    """A result on 200 questions, whose evaluation and training took these FLOPs."""
    ledger = Ledger(debate=Cost(), finetuning=Cost(), evaluation=Cost(flops=test), training=Cost(flops=training))
    return result(method=method, iteration=iteration, accuracy=accuracy, stderr=0.03, ledger=ledger, **changes)


CURVE = tuple(VotePoint(k=k, accuracy=0.5 + 0.05 * k, stderr=0.03, flops=2000 * k) for k in (1, 2, 3))
BASE = measured("base", 0, 0.55, 2000)
MAJORITY = measured("majority", 0, 0.65, 6000, vote_curve=CURVE)
TUNED = [measured("multiagent_ft", k, 0.6 + 0.1 * k, 20_000, 10**6 * k) for k in (1, 2)]


def lines(figure):
    """{label: (x, y)} of what is drawn with error bars."""
    (axes,) = figure.axes
    bars = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    curves = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    return {name: tuple(map(list, line.get_data())) for name, line in (curves | bars).items()}


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_accuracy_against_compute_with_the_majority_curve():
    figures = make_plots([BASE, MAJORITY, *TUNED])
    assert list(figures) == ["arithmetic_test_compute", "arithmetic_all_compute", "arithmetic_iterations"]
    test, spent = lines(figures["arithmetic_test_compute"]), lines(figures["arithmetic_all_compute"])
    assert set(test) == {"majority@k", "base", "majority", "multiagent_ft"}
    assert test["majority@k"] == ([10, 20, 30], pytest.approx([55, 60, 65]))
    assert spent["majority@k"] == ([2000, 4000, 6000], pytest.approx([55, 60, 65]))
    assert test["multiagent_ft"] == ([100, 100], pytest.approx([70, 80]))
    assert spent["multiagent_ft"] == ([1_020_000, 2_020_000], pytest.approx([70, 80]))
    axes = figures["arithmetic_all_compute"].axes[0]
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "accuracy (%)")
    (bar,) = [bar for bar in axes.containers if bar.get_label() == "base"]
    assert bar.lines[2][0].get_segments()[0][:, 1] == pytest.approx([52, 58])  # one standard error
    assert texts(figures["arithmetic_all_compute"]) == ["k=3", "1", "2"]
    assert texts(figures["arithmetic_test_compute"]) == ["k=3", "2"]


def test_accuracy_over_iterations():
    figure = make_plots([BASE, MAJORITY, *TUNED])["arithmetic_iterations"]
    found = lines(figure)
    assert found["multiagent_ft"] == ([1, 2], pytest.approx([70, 80]))
    assert found["base"] == ([0], pytest.approx([55]))
    assert found["majority"] == ([0.04], pytest.approx([65]))  # beside the other
    levels = [line.get_ydata() for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert [list(level) for level in levels] == [pytest.approx([55, 55]), pytest.approx([65, 65])]
    assert figure.axes[0].get_xticks().tolist() == [0, 1, 2]
    colours = [
        {bar.get_label(): bar.lines[0].get_color() for bar in own.axes[0].containers}["multiagent_ft"]
        for own in make_plots([BASE, MAJORITY, *TUNED]).values()
    ]
    assert len(set(colours)) == 1
    assert "arithmetic_iterations" not in make_plots([BASE, MAJORITY])


def test_a_plot_says_when_there_is_no_majority_curve():
    assert texts(make_plots([BASE])["arithmetic_test_compute"]) == [NO_CURVE]


def test_each_task_has_its_own_plots_and_needs_accuracies_and_costs():
    other = dataclasses.replace(BASE, task="gsm8k")
    unknown = dataclasses.replace(BASE, task="mine", accuracy=None, stderr=None)
    old = dataclasses.replace(BASE, task="old", ledger=None)
    assert list(make_plots([BASE, other, unknown, old])) == [
        "arithmetic_test_compute", "arithmetic_all_compute", "gsm8k_test_compute", "gsm8k_all_compute"
    ]  # fmt: skip


def test_equal_plots_are_equal_files():
    files = encode_plots([BASE, MAJORITY, *TUNED])
    assert len(files) == 6
    assert files == encode_plots([BASE, MAJORITY, *TUNED])
    assert files["arithmetic_iterations.png"].startswith(b"\x89PNG")
    svg = files["arithmetic_test_compute.svg"].decode()
    assert all(f">{name}<" in svg for name in ("multiagent_ft", "majority@k", "accuracy (%)"))


def plotted(name, results, **changes):
    return PlottedRun(name, from_dict({"run_dir": name, **changes}), results)


def test_runs_with_other_seeds_are_averaged():
    better = dataclasses.replace(BASE, accuracy=0.65)
    merged = merge_runs([plotted("a", [BASE], seed=1), plotted("b", [better], seed=2)])
    figure = make_plots(merged)["arithmetic_test_compute"]
    assert lines(figure)["base"] == ([10], pytest.approx([60]))
    (bar,) = figure.axes[0].containers
    np.testing.assert_allclose(bar.lines[2][0].get_segments()[0][:, 1], 60 + np.array([-3, 3]) / 2**0.5)


def test_a_baseline_of_two_methods_is_drawn_once_and_other_settings_get_other_names():
    first = plotted("a", [BASE, TUNED[0]], method="multiagent_ft")
    second = plotted("b", [BASE], method="cooperative", sampling={"rows": 2})
    assert merge_runs([first, second]) == [BASE, TUNED[0]]
    larger = plotted("c", [BASE], debate={"agents": 5})
    assert [own.method for own in merge_runs([first, second, larger])] == ["base (a)", "multiagent_ft (a)", "base (c)"]
    assert merge_runs([]) == []


def test_forty_methods_look_different():
    found = looks([str(number) for number in range(48)])
    assert len({tuple(look.values()) for look in found.values()}) == 48


def test_the_report_has_the_same_colours_and_symbols():
    page = pathlib.Path(plot_style.__file__).with_name("page")
    light = (page / "style.css").read_text().partition("@media")[0]
    assert tuple(re.findall(r"--c\d: (#\w{6});", light)) == plot_style.COLOURS
    (symbols,) = re.findall(r"const SYMBOLS = \[(.*)\];", (page / "script" / "charts.js").read_text())
    names = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "P", "star": "*"}
    assert tuple(names[symbol.strip('"')] for symbol in symbols.split(", ")) == plot_style.MARKERS


def test_the_command(tmp_path, monkeypatch, capsys):
    run = RunDirectory(tmp_path / "run")
    config = from_dict({"run_dir": str(run.path)})
    run.take(config)
    run.create(config)
    write_results(run.store, [BASE, MAJORITY])
    run.release()
    monkeypatch.setattr(sys, "argv", ["mft", "plots", str(run.path), "-o", str(tmp_path / "plots")])
    cli.main()
    names = [f"arithmetic_{name}.{kind}" for name in ("test_compute", "all_compute") for kind in ("svg", "png")]
    assert capsys.readouterr().out.split() == [str(tmp_path / "plots" / name) for name in names]
    assert {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()} == encode_plots([BASE, MAJORITY])

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["mft", "plots", "-o", str(tmp_path)])
        with pytest.raises(SystemExit):
            cli.main()
    assert capsys.readouterr().err == "mft: mft plots needs results: give the directory of at least one run or grid.\n"
    run.store.hold()
    write_results(run.store, [dataclasses.replace(BASE, accuracy=None, stderr=None)])
    run.release()
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert f"mft: There is nothing to plot in {run.path}: no result has an accuracy" in capsys.readouterr().err
