"""Verdicts of a person in a real browser: marked and written in the report, saved as a file, or sent to its server."""

import contextlib
import dataclasses
import json

import pytest
from playwright.sync_api import expect

from mft_jax.report.page import write_report
from mft_jax.runs import layout
from mft_jax.runs.feedback import add_verdicts, parse_verdicts, read_verdicts
from mft_jax.runs.results import read_results, write_results
from mft_jax.runs.review import Review
from mft_jax.runs.used_feedback import FeedbackUse
from tests.report.page.made_run import TRAINING, debate, make_run
from tests.report.page.test_browser import HOSTILE, opened
from tests.report.page.test_serve import serving

pytestmark = pytest.mark.browser

DEBATE = "#debate?run=run&stage=iteration_1/debate/train&id=t1"
HOSTILE_ID = "t3<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with verdicts that contradict each other, also on a question whose id and answers want to be more than text."""
    hostile = debate(HOSTILE_ID, [["5", HOSTILE], ["5", "6"]], ["5", "6"], question=HOSTILE)
    run = make_run(tmp_path_factory.mktemp("marking") / "run", training=(*TRAINING, hostile))
    lines = [
        {"id": "t2", "answer": "4", "time": "2026-01-01T00:00:00Z"},
        {"id": "t2", "answer": "3", "time": "2026-01-02T00:00:00Z", "simulated": True},
        {"id": HOSTILE_ID, "answer": HOSTILE, "time": "2026-01-01T00:00:00Z"},
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    add_verdicts(run.store, parse_verdicts(data, "test", "arithmetic"), "arithmetic")
    *others, last = read_results(run.results_file)
    use = FeedbackUse(questions=1, verdicts=1, simulated=0, conflicts=0, weight=1.0)
    run.store.hold()
    write_results(run.store, [*others, dataclasses.replace(last, feedback=use)])
    run.store.release()
    return run


@pytest.fixture(scope="module")
def report(run):
    write_report([run.path], run.path.parent / "report.html")
    return run.path.parent / "report.html"


def buttons(page, cell):
    """{mark: whether it is pressed} in the cell with this index."""
    found = page.locator(".cell").nth(cell).locator(".say").all()
    return {button.get_attribute("data-mark"): button.get_attribute("aria-pressed") == "true" for button in found}


def press(page, cell, mark):
    page.locator(".cell").nth(cell).locator(f"[data-mark={mark}]").click()


def test_verdicts_are_saved_as_a_file_that_the_run_takes(chromium, report, run, tmp_path):
    with opened(chromium, report, DEBATE) as page:
        assert buttons(page, 0) == {"right": False, "wrong": False, "best": False}
        press(page, 2, "right")
        expect(page.locator("#save-verdicts")).to_have_text("Save 1 verdict")
        press(page, 1, "wrong")
        press(page, 2, "best")
        expect(page.locator(".verdicts li")).to_have_count(3)
        assert buttons(page, 2) == {"right": False, "wrong": False, "best": True}
        press(page, 1, "wrong")  # withdrawn
        expect(page.locator(".verdicts li")).to_have_count(4)
        assert buttons(page, 1)["wrong"] is False
        page.fill("#right-answer", " 5.0 ")
        page.keyboard.press("Enter")
        expect(page.locator(".verdicts li").first).to_contain_text("the answer is 5.0")
        with page.expect_download() as download:
            page.click("#save-verdicts")
        assert download.value.suggested_filename == "feedback.jsonl"
        download.value.save_as(tmp_path / "feedback.jsonl")
        expect(page.locator("#save-verdicts")).to_be_hidden()
    verdicts = Review(run.path).from_file(str(tmp_path / "feedback.jsonl"))
    assert verdicts[:3] == read_verdicts(run.store, "arithmetic")  # the earlier ones are in the file too
    assert [own.mark or own.answer for own in verdicts[3:]] == ["right", "wrong", "best", "none", "5"]
    assert [tuple(own.place) for own in verdicts[3:7]] == [(1, 1, 2), (1, 2, 1), (1, 1, 2), (1, 2, 1)]


def test_earlier_verdicts_and_contradictions_are_shown(chromium, report):
    with opened(chromium, report, DEBATE.replace("t1", "t2"), viewport={"width": 360, "height": 700}) as page:
        newer, older = page.locator(".verdicts li").all_text_contents()
        assert newer == "the answer is 3 · 2026-01-02T00:00:00Zsimulated"
        assert older == "the answer is 4 · 2026-01-01T00:00:00Zcontradicted by a newer verdict"
        press(page, 2, "wrong")
        expect(page.locator(".verdicts li")).to_have_count(3)
        press(page, 2, "right")
        expect(page.locator(".verdicts li").nth(1)).to_contain_text("wrong")
        expect(page.locator(".verdicts li").nth(1)).to_contain_text("contradicted by a newer verdict")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_summary_counts_verdicts(chromium, report):
    with opened(chromium, report) as page:
        assert page.locator("dt:text-is('verdicts') + dd").text_content() == "2 of people, 1 simulated"
        columns = page.locator(".results th").all_text_contents()
        column = columns.index("verdicts")
        cells = page.locator(f".results tbody td:nth-child({column + 1})").all_text_contents()
        assert cells == ["\N{EN DASH}", "1"]  # untuned, and after the iteration that used one


def test_evaluation_debates_take_no_verdicts(chromium, report):
    with opened(chromium, report, "#debate?run=run&stage=iteration_1/eval/eval&id=e1") as page:
        assert page.locator(".cell").count() == 4
        assert page.locator(".say, #right-answer").count() == 0


def test_hostile_verdicts_are_shown_as_text(chromium, report):
    with opened(chromium, report, "#debates?split=train") as page:
        page.locator(".row").nth(2).click()
        shown = page.locator(".verdicts li b").text_content()
        assert "<img src=x" in shown
        assert "U+001B" in shown
        assert page.locator("main img, main script").count() == 0


@contextlib.contextmanager
def served(chromium, server):
    """The served page at a debate. It may ask its own server only."""
    context = chromium.new_context()
    context.set_default_timeout(10_000)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((server.address, "data:")) else said.append(request.url),
    )
    page.goto(f"{server.address}{DEBATE}")
    page.wait_for_selector("html[data-ready]", state="attached")
    yield page, said
    context.close()


def test_a_served_report_writes_into_the_run(chromium, tmp_path):
    run = make_run(tmp_path / "run")
    with serving(run) as server, served(chromium, server) as (page, said):
        press(page, 0, "wrong")
        expect(page.locator(".verdicts li")).to_have_count(1)
        page.fill("#right-answer", "7")
        page.get_by_role("button", name="Give the right answer").click()
        expect(page.locator(".verdicts li")).to_have_count(2)
        assert page.locator("#save-verdicts").count() == 0
        assert [own.mark or own.answer for own in read_verdicts(run.store, "arithmetic")] == ["wrong", "7"]
        page.reload()
        page.wait_for_selector(".verdicts li")
        assert buttons(page, 0)["wrong"] is True
        assert said == []
        run.store.write(layout.FEEDBACK, b"broken\n")
        press(page, 1, "right")
        expect(page.locator(".cell").nth(1).locator(".problem")).to_contain_text("line 1: not valid JSON")
        assert run.store.read(layout.FEEDBACK) == b"broken\n"
