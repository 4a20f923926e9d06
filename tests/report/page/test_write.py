"""The data and the files of a report. How the page shows them is tested in test_browser.py."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import shutil

import pytest

from mft_jax.config import Cell, ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.report.page import write_grid_report, write_own_report, write_report
from mft_jax.report.page.judge import FLAGS
from mft_jax.report.page.run_page import result_row
from mft_jax.report.page.work import CURVE_POINTS
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.grid_directory import GridDirectory
from mft_jax.runs.metrics_log import MetricsLogger
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.training_sets import list_training_sets
from tests.report.made import RESULT
from tests.report.page.made_run import SPENT, data_of, debate, make_run, small_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "small")


def report_of(*directories, out):
    """(problems, the text of the page) of a report."""
    problems = write_report([directory.path for directory in directories], out)
    return problems, out.read_text()


ROW = ("question", "flags", "marks", "vote", "votes", "agreement", "tokens")


def rows_of(stage):
    return [dict(zip(ROW, row, strict=True)) for row in stage["rows"]]


def copy_of(run, path):
    shutil.copytree(run.path, path)
    return RunDirectory(path)


def test_the_data_of_a_finished_run(made, tmp_path):
    problems, page = report_of(made, out=tmp_path / "report.html")
    (run,) = data_of(page, "summary")["runs"]
    assert problems == run["problems"] == run["left"][1:] == []
    assert (run["name"], run["state"], run["method"]) == ("small", "finished", "multiagent_ft")
    assert [(row["method"], row["iteration"], row["accuracy"]) for row in run["results"]] == [
        ("debate", 0, 0.5), ("multiagent_ft", 1, 0.5)
    ]  # fmt: skip
    assert run["command"] == f"mft run {made.config_file} --run-dir {made.path}-again"
    assert run["starts"][0]["versions"]["jax"]
    assert "method: multiagent_ft" in run["config"]
    assert run["work"][0]["name"] == "debate (untuned)"
    assert run["work"][0]["flops"] == SPENT.flops


def test_the_index_of_the_debates(made, tmp_path):
    _, page = report_of(made, out=tmp_path / "report.html")
    index = data_of(page, "index")
    assert index["flags"] == list(FLAGS)
    assert [question["id"] for question in index["questions"]] == ["e1", "e2", "t1", "t2"]
    untuned, training, tuned = index["stages"][0]
    assert [stage["stage"] for stage in index["stages"][0]] == [
        "baselines/debate/eval", "iteration_1/debate/train", "iteration_1/eval/eval"
    ]  # fmt: skip
    assert untuned["speakers"] == [[None, None]] * 2
    assert tuned["speakers"] == [["generator_0", "generator_1"], ["critic_0", "critic_1"]]
    first, second = rows_of(tuned)
    named = lambda row: {name for bit, name in enumerate(FLAGS) if row["flags"] >> bit & 1}
    assert named(first) == {"wrong_to_right", "vote_right", "vote_changed"}
    assert named(second) == {"right_to_wrong", "vote_wrong", "vote_changed"}
    assert (first["marks"], first["votes"], first["agreement"]) == (["wr", "rr"], "wr", 1.0)
    assert first["tokens"] == 4 * 50 + 2 * 100  # four answers and two summaries
    assert "trained" in named(rows_of(training)[0])
    assert "trained" not in named(rows_of(training)[1])
    assert tuned["transitions"] == [{"wr": 1, "rr": 1, "rw": 1, "ww": 1}]
    assert training["votes"] == {"known": 2, "voted": 2, "right": 1}


def test_the_texts_of_a_debate(made, tmp_path):
    """The summary as the agent saw it, what was parsed, and who learned from which message."""
    _, page = report_of(made, out=tmp_path / "report.html")
    assert data_of(page, "places") == [None, None, None]
    first, second = data_of(page, "chunk-1")
    (early, late), (wrong, corrected) = first["agents"]
    assert early["shown"] == ["What is 1+4?\nSolve it."]
    assert late["shown"] == ["Others:\n", "They say t1 0.", "\nCheck."]
    assert (late["said"], late["answer"], late["mark"], late["agrees"]) == ("It is 5.", "5", "r", True)
    assert late["summary"] | {"flops": 0} == {"end": "stop", "in": 80, "out": 20, "flops": 0}
    assert late["flops"] > early["flops"] * 0.9 > late["summary"]["flops"] * 0.1 > 0
    assert early["for"] == [["generator_0", "first"]]
    assert "for" not in late
    assert "for" not in wrong  # it is a part of the example, but not learned
    assert corrected["for"] == [["critic_1", "corrected"]]
    assert second["agents"][0][1]["answer"] is None
    assert second["votes"] == ["3", "4"]


def test_cumulative_costs(tmp_path):
    run = make_run(tmp_path / "two", iterations=2)
    _, page = report_of(run, out=tmp_path / "report.html")
    results = data_of(page, "summary")["runs"][0]["results"]
    assert [row["cumulative"]["new_tokens"] for row in results] == [
        50,
        100,
        150,
    ]  # all debates so far, and its evaluation


def test_a_result_of_an_older_version_has_no_cumulative_cost():
    assert result_row(dataclasses.replace(RESULT, ledger=None))["cumulative"] is None


def test_training_curves(made, tmp_path):
    run = copy_of(made, tmp_path / "run")
    logger = MetricsLogger(run.store)
    for step in range(3, 1001):
        logger.log(1, "finetune", step, **{"generator_0/loss": 2.0})
    logger.flush()
    _, page = report_of(run, out=tmp_path / "report.html")
    curves = {curve["adapter"]: curve for curve in data_of(page, "summary")["runs"][0]["curves"]}
    assert set(curves) == {"generator_0", "critic_1"}
    assert curves["critic_1"]["loss"] == [None, None]  # not finite
    loss, steps = curves["generator_0"]["loss"], curves["generator_0"]["step"]
    assert len(loss) == len(steps) == CURVE_POINTS
    assert loss[0] == pytest.approx((1 + 1 / 2 + 3 * 2) / 5)
    assert (loss[-1], steps[-1]) == (2.0, 998.0)


def test_several_runs_side_by_side(made, tmp_path):
    other = copy_of(made, tmp_path / "elsewhere" / "small")
    _, page = report_of(made, other, out=tmp_path / "report.html")
    assert [run["name"] for run in data_of(page, "summary")["runs"]] == ["small (1)", "small (2)"]
    index = data_of(page, "index")
    assert len(index["questions"]) == 4  # the same in both runs
    assert [stage["first_chunk"] for run in index["stages"] for stage in run] == list(range(6))


# Safety


def policy_of(page):
    """{directive: sources} of the Content-Security-Policy."""
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    return dict(rule.split(" ", 1) for rule in policy.split("; "))


def test_the_policy_allows_the_scripts_of_the_page_by_hash_and_nothing_else(made, tmp_path):
    _, page = report_of(made, out=tmp_path / "report.html")
    rules = policy_of(page)
    assert rules["default-src"] == "'none'"
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    ]
    assert len(hashes) == 4
    assert rules["script-src"].split() == hashes
    assert not re.search(r"https?:|\*|unsafe-eval", " ".join(rules.values()))
    assert re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="([^"]*)"', page) == ["data:,"]


def test_no_text_of_a_run_is_in_the_page_as_html(tmp_path):
    hostile = "</script><script>alert(1)</script>{{{{SCRIPTS}}}}<img src=x onerror='alert(1)'>"
    run = make_run(
        tmp_path / "<b>{{DATA}}&amp;", evaluation=[debate("e", [["5"]], ["5"], question=hostile, said=hostile)]
    )
    _, page = report_of(run, out=tmp_path / "report.html")
    assert page.count("alert(1)") == 0
    assert page.count("<script>") == 4
    assert "<title>mft report: &lt;b&gt;{{DATA}}&amp;amp;</title>" in page
    assert data_of(page, "index")["questions"][0]["text"] == hostile


# Large reports


def test_debates_that_do_not_fit_are_beside_the_page(made, tmp_path):
    out, folder = tmp_path / "big.html", tmp_path / "big_debates"
    write_report([made.path], out, max_bytes=0)
    page = out.read_text()
    places = data_of(page, "places")
    assert "chunk-0" not in page
    assert "'strict-dynamic'" in policy_of(page)["script-src"]
    assert sorted(places) == sorted(f"big_debates/{path.name}" for path in folder.iterdir())
    for number, place in enumerate(places):
        assert re.fullmatch(rf'receivePart\({number},"[A-Za-z0-9+/=]+"\);\n', (tmp_path / place).read_text())
    (folder / "mine.txt").write_text("not part of the report")
    write_report([made.path], out)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    write_report([made.path], out)
    assert not folder.exists()


# What is missing or damaged


def test_an_unfinished_run(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    problems, page = report_of(run, out=tmp_path / "report.html")
    (found,) = data_of(page, "summary")["runs"]
    assert problems == []
    assert found["state"] == "interrupted"
    assert found["left"] == ["iteration 1: finetuning", "iteration 1: evaluation"]
    assert [stage["stage"] for stage in data_of(page, "index")["stages"][0]] == [
        "baselines/debate/eval", "iteration_1/debate/train"
    ]  # fmt: skip


def test_a_run_without_anything_yet(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.take(small_config(run.path))
    run.create(small_config(run.path))
    _, page = report_of(run, out=tmp_path / "report.html")
    (found,) = data_of(page, "summary")["runs"]
    assert found["state"] == "running"
    assert found["results"] == found["curves"] == []
    run.release()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("baselines/debate/eval.jsonl", b"{}\n", "start the run again, which sets it aside"),
        ("results.json", b"[", "results.json is not a list of results"),
        ("run.json", b"{", "run.json is damaged"),
        ("run.json", b'{"format": 1, "status": "finished", "starts": []}', "another version of mft_jax (format 1"),
        ("iteration_1/finetune/critic_1.jsonl", b"", "The training set"),
        ("iteration_1/finetune/training_sets.json", b'{"sha256": 3}', "training_sets.json is damaged"),
    ],
)
def test_damaged_files_are_left_out_and_described(made, tmp_path, file, content, said):
    run = copy_of(made, tmp_path / "run")
    run.store.write(file, content)
    problems, page = report_of(run, out=tmp_path / "report.html")
    assert [problem.count("\n") for problem in problems] == [0]
    assert said in problems[0]
    assert str(run.path) in problems[0]
    assert data_of(page, "summary")["runs"][0]["problems"] == problems
    assert len(data_of(page, "index")["stages"][0]) == (2 if "eval" in file else 3)


def test_transcripts_of_an_older_format(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    run.store.hold()
    old = json.dumps({"id": "e1", "question": "?", "answers": ["5"]})
    StageFile(run.store, layout.evaluation("multiagent_ft", 1)).commit(0, [old], SPENT, {})
    run.release()
    problems, page = report_of(run, out=tmp_path / "report.html")
    assert len(problems) == 1
    assert "eval.jsonl are left out: they were written by another version of mft_jax (KeyError" in problems[0]
    assert len(data_of(page, "index")["stages"][0]) == 2


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_config_of_another_version(made, tmp_path):
    run = copy_of(made, tmp_path / "run")
    run.config_file.write_bytes(b"nothing: 1\n")
    with pytest.raises(UserError, match=r"config\.yaml"):
        write_report([run.path], tmp_path / "report.html")


def test_a_name_that_is_no_html_file(made, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.html"):
        write_report([made.path], tmp_path / "results.json")


# The report of a run itself


def test_a_failure_does_not_spoil_the_run(made):
    said = []
    made.store.path(layout.REPORT).mkdir()
    write_own_report(made, said.append)
    assert len(said) == 1
    assert "report.html could not be written" in said[0]
    assert "`mft report` makes it" in said[0]
    made.store.path(layout.REPORT).rmdir()
    write_own_report(made, said.append)
    assert len(said) == 1
    assert data_of(made.store.path(layout.REPORT).read_text(), "summary")["runs"][0]["state"] == "finished"


def test_the_adapters_with_training_sets(made):
    assert list_training_sets(made.store, 1) == ["generator_0", "generator_1", "critic_0", "critic_1"]
    assert list_training_sets(made.store, 2) == []


def test_a_grid_is_its_cells_side_by_side(tmp_path):
    config = ExperimentConfig()
    cells = [
        Cell(name=name, method="multiagent_ft", model="m", task="arithmetic", override="", config=config)
        for name in ("a", "b/seed_1", "c")
    ]
    grid = GridDirectory(tmp_path)
    grid.write(cells, {})
    with pytest.raises(UserError, match=r"is a grid without a started cell: run `mft run` with its configuration"):
        write_report([tmp_path], tmp_path / "report.html")
    for cell in cells[:2]:
        make_run(tmp_path / cell.name)
    said = []
    write_grid_report(grid, said.append)
    assert said == []
    summary = data_of((tmp_path / "report.html").read_text(), "summary")
    assert [run["name"] for run in summary["runs"]] == ["a", "b/seed_1"]
    problems = write_report([tmp_path], tmp_path / "other.html")
    assert problems == [f"The cell c of {tmp_path} is not in the report: it has not been started."]
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()  # in the way
    write_grid_report(grid, said.append)
    (sentence,) = said
    assert "report.html could not be written" in sentence
