"""Which questions are proposed, which verdicts are made and recorded, and the command that does it."""

import functools
import json
import re
import shutil

import pytest

from mft_jax.errors import UserError
from mft_jax.finetuning.feedback import Place
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.feedback import read_file_of_verdicts
from mft_jax.runs.review import Review
from tests.report.page.made_run import debate, make_run, small_config

TRAINING = (
    debate("sure", [["5", "5"], ["5", "5"], ["5", "5"]], ["5", "5"], question="What is 1+4?"),
    debate("flips", [["4", "5"], ["4", "5"], ["5", "5"]], ["4", "5"], question="What is 2+3?"),
    debate("split", [["3", "4"], ["3", "3"], ["3", None]], ["3", "3"], gold="4", question="What is 1+3?"),
    debate("open", [["1", "1"], ["1", "1"], ["1", "2"]], ["1", "1"], gold=None, question="What [red]is\x1b[31m 1?"),
)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("review") / "run", training=TRAINING, finished=False)
    listing = {"train": [own.id for own in TRAINING], "eval": ["e1", "e2"]}
    run.store.write(layout.QUESTIONS, json.dumps(listing).encode())
    return run


@pytest.fixture
def made(unfinished, tmp_path):
    """A run that is not finished, for this test alone."""
    shutil.copytree(unfinished.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def review(made, mft):
    """review("--limit", 3) is `mft review RUN_DIR --limit 3`: (exit code, its output, its complaint)."""
    return functools.partial(mft, "review", made.path)


def proposed(made):
    return [own.id for own in Review(made.path).proposals()]


def test_the_questions_on_which_the_agents_are_least_sure_come_first(made):
    assert proposed(made) == ["split", "flips", "open", "sure"]
    assert [round(own.worth.total, 2) for own in Review(made.path).proposals()] == [1.33, 0.67, 0.67, 0]


def test_a_question_with_a_right_answer_is_not_proposed_again(made):
    review = Review(made.path)
    review.record(review.verdicts_on("split", answer="4") + review.verdicts_on("flips", wrong=[1]))
    assert proposed(made) == ["flips", "open", "sure"]
    review.record(review.verdicts_on("split", wrong=[1]))  # agent 1 said 4: a contradiction
    assert proposed(made)[0] == "split"


def test_marks_are_on_the_last_answer_of_the_newest_debate_or_where_it_is_said(made):
    review = Review(made.path)
    places = [own.place for own in review.verdicts_on("split", right=[1, 2], best=3)]
    assert places == [Place(1, 1, 2), Place(1, 2, 2), Place(1, 3, 2)]
    (mark,) = review.verdicts_on("split", wrong=[2], iteration=1, round=1)
    assert (mark.place, mark.mark) == (Place(1, 2, 1), "wrong")


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ({"id": "e1", "answer": "5"}, "has no training debate on the question 'e1'"),
        ({"id": "split", "answer": " "}, "The answer is ' ', expected an answer of the task arithmetic"),
        ({"id": "split", "right": [4]}, "The agent is 4, expected 1 to 3"),
        ({"id": "split", "right": [1], "iteration": 2}, "iteration is 2, but the question 'split' was debated in"),
        ({"id": "split", "right": [1], "round": 3}, "round is 3, expected 1 to 2"),
    ],
)
def test_a_verdict_on_what_is_not_there_is_refused(made, verdict, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        Review(made.path).verdicts_on(**verdict)


def test_simulated_verdicts_come_from_reference_answers(made):
    review = Review(made.path)
    best = review.simulated(2, "worth", 0)
    assert [(own.id, own.answer, own.simulated) for own in best] == [("split", "4", True), ("flips", "5", True)]
    orders = [[own.id for own in review.simulated(3, "random", seed)] for seed in range(8)]
    assert [own.id for own in review.simulated(3, "random", 3)] == orders[3]
    assert all(set(order) == {"sure", "flips", "split"} for order in orders)  # "open" has no reference answer
    assert len(set(map(tuple, orders))) > 1
    with pytest.raises(UserError, match=r"--simulate is 4, expected 0 to 3"):
        review.simulated(4, "worth", 0)


def test_a_run_without_a_debate_has_nothing_to_review(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.take(small_config(run.path))
    run.create(small_config(run.path))
    run.release()
    with pytest.raises(UserError, match="has no training debate yet"):
        Review(run.path)
    with pytest.raises(UserError, match="is not a run"):
        Review(tmp_path / "none")


def test_the_command_shows_proposals(review, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, said, _ = review("--limit", 2)
    assert code == 0
    assert [line.rstrip() for line in said.splitlines()] == [
        "split  split vote 67 %, flips between rounds 67 %",
        "    What is 1+3?",
        "    iteration 1, vote 3: agent 1 3 → 4, agent 2 3 → 3, agent 3 3 → (none)",
        "",
        "flips  flips between rounds 67 %",
        "    What is 2+3?",
        "    iteration 1, vote 5: agent 1 4 → 5, agent 2 4 → 5, agent 3 5 → 5",
        "",
        "4 debated questions, 0 of them settled by verdicts; 2 are shown.",
    ]
    assert "What [red]is 1?" in review("--question", "open")[1]  # neither markup nor a terminal escape
    shown = json.loads(review("--json")[1])
    assert [own["id"] for own in shown] == ["split", "flips", "open", "sure"]
    assert shown[0]["debates"] == [
        {"iteration": 1, "answers": [["3", "4"], ["3", "3"], ["3", None]], "votes": ["3", "3"]}
    ]
    assert "gold" not in json.dumps(shown)


def test_the_command_records_verdicts(review, made, tmp_path):
    path = made.store.path(layout.FEEDBACK)
    assert review("--question", "split", "--answer", "4.0") == (
        0, f"1 new verdict is in {path}; the next iteration uses it.\n", "",
    )  # fmt: skip
    assert review("--question", "flips", "--wrong", 1, 2, "--best", 3, "--round", 1)[0] == 0
    marks = [json.loads(line) for line in path.read_text().splitlines()]
    assert [own.get("answer", own.get("mark")) for own in marks] == ["4", "wrong", "wrong", "best"]
    code, said, _ = review("--simulate", 1, "--out", tmp_path / "some.jsonl")
    assert (code, said) == (0, f"1 simulated verdicts are in {tmp_path / 'some.jsonl'}.\n")
    assert read_file_of_verdicts(tmp_path / "some.jsonl", "arithmetic")[0].simulated
    assert len(path.read_text().splitlines()) == 4
    assert review("--add", tmp_path / "some.jsonl")[0] == 0
    assert len(path.read_text().splitlines()) == 5
    assert "0 new verdicts" in review("--add", path)[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--answer", "4"), "A verdict concerns a question: give its id with --question."),
        (("--question", "split", "--simulate", 1), "do different things: give one of them"),
        (("--out", "x.jsonl"), "--out is the file of simulated verdicts"),
        (("--limit", 0), "limit is 0, expected at least 1"),
        (("--add", "none.jsonl"), "none.jsonl cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(review, made, arguments, complaint):
    code, said, problem = review(*arguments)
    assert (code, said) == (1, "")
    assert complaint in problem
    assert not made.store.exists(layout.FEEDBACK)


def test_a_file_of_another_run_is_refused(review, made, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "t9", "answer": "1", "time": "2026-01-01"}\n')
    code, _, problem = review("--add", other)
    assert code == 1
    assert "does not belong to" in problem
    other.write_text("{")
    assert f"{other}, line 1: not valid JSON" in review("--add", other)[2]
