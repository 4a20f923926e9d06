"""feedback.jsonl: what is read and refused, how it is written, and what an iteration remembers of it."""

import json
import re
import threading

import pytest

from mft_jax.errors import UserError
from mft_jax.finetuning.feedback import Place, Verdict
from mft_jax.runs import layout
from mft_jax.runs.feedback import add_verdicts, encode_verdict, parse_verdicts, read_verdicts, write_new_file
from mft_jax.runs.lock import DirectoryLock
from mft_jax.runs.rulings import describe, read_feedback, remarks_on, take_feedback
from mft_jax.runs.store import DamagedFile, Store
from mft_jax.runs.training_sets import write_training_sets
from mft_jax.runs.used_feedback import FeedbackUse, read_used
from mft_jax.tasks.answers import equivalent
from tests.report.page.made_run import commit, debate

TIME = "2026-01-31T12:00:00Z"
WRITTEN = Verdict(id="t1", time=TIME, answer="6")
MARKED = Verdict(id="t2", time=TIME, place=Place(1, 2, 1), mark="wrong")


@pytest.fixture
def store(tmp_path) -> Store:
    """Of a run with one training debate, on two questions."""
    store = Store(tmp_path)
    debates = [debate("t1", [["5", "5"], ["6", "5"]], ["5", "5"]), debate("t2", [["3", None], ["4", "4"]], ["3", "4"])]
    commit(type("Directory", (), {"store": store}), layout.debate(1), debates)
    store.write(layout.QUESTIONS, json.dumps({"train": ["t1", "t2"], "eval": ["e1"]}).encode())
    return store


def line(**fields):
    return json.dumps({"id": "t1", "time": TIME} | fields)


def test_what_was_added_is_read_back(store):
    assert read_verdicts(store, "arithmetic") == []
    assert add_verdicts(store, [WRITTEN, MARKED, WRITTEN], "arithmetic") == 2
    assert add_verdicts(store, [MARKED], "arithmetic") == 0
    assert read_verdicts(store, "arithmetic") == [WRITTEN, MARKED]
    assert [json.loads(own) for own in store.read(layout.FEEDBACK).splitlines()] == [
        {"id": "t1", "answer": "6", "time": TIME},
        {"id": "t2", "iteration": 1, "agent": 2, "round": 1, "mark": "wrong", "time": TIME},
    ]
    made = Verdict(id="t1", time=TIME, answer=None, simulated=True)
    assert parse_verdicts(encode_verdict(made).encode(), "x", "arithmetic") == [made]


def test_a_line_of_a_person_is_completed_and_kept(store):
    """Without a line break at its end, with a byte order mark, with blank lines, and an answer in a box."""
    by_hand = ("\ufeff\n" + line(answer=" $\\boxed{ 6.0 }$ ") + "\n\n" + line(answer="7")).encode()
    store.write(layout.FEEDBACK, by_hand)
    add_verdicts(store, [MARKED], "arithmetic")
    assert store.read(layout.FEEDBACK).startswith(by_hand + b"\n{")
    assert [own.answer for own in read_verdicts(store, "arithmetic")] == ["6", "7", None]
    assert parse_verdicts(line(answer="(b)").encode(), "x", "mmlu")[0].answer == "B"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "got an array, expected an object"),
        (line(), "expected either a mark or an answer"),
        (line(answer="5", mark="right"), "expected either a mark or an answer"),
        (line(answer="5", agent=1), "an answer concerns the question, but 'agent' is given"),
        (line(answer=""), "the answer '' is empty"),
        (line(answer=5), "the answer is a number, expected a text"),
        (line(answer="5", colour="red"), "there is no field 'colour'"),
        (line(mark="good", iteration=1, agent=1, round=1), "the mark is 'good', expected one of right, wrong, best"),
        (line(mark="right", iteration=1, agent=1), "the field 'round' is missing, expected a number from 1"),
        (line(mark="right", iteration=1, agent=0, round=1), "the agent is '0', expected a number from 1"),
        (line(mark="right", iteration=True, agent=1, round=1), "the iteration is 'True', expected a number"),
        (line(answer="5", time="yesterday"), "the time is 'yesterday', expected ISO 8601"),
        ('{"id": "t1", "answer": "5"}', "the field 'time' is missing, expected a text"),
        (line(answer="5", simulated="yes"), "the simulated is 'yes', expected true or false"),
        (line(answer="5", id=7), "the id is '7', expected a text"),
        (line(answer="5", id="x" * 1001), "the id has 1001 characters"),
        ('{"id": "\\ud800", "answer": "5"}', "not valid UTF-8"),
    ],
)
def test_a_broken_line_is_named(store, broken, reason):
    store.write(layout.FEEDBACK, f"{encode_verdict(WRITTEN)}\n\n{broken}\n".encode())
    where = re.escape(f"{store.path(layout.FEEDBACK)}, line 3: ") + ".*" + re.escape(reason)
    with pytest.raises(UserError, match=where):
        read_verdicts(store, "arithmetic")
    before = store.read(layout.FEEDBACK)
    with pytest.raises(UserError, match="line 3"):
        add_verdicts(store, [MARKED], "arithmetic")
    assert store.read(layout.FEEDBACK) == before


def test_bytes_that_are_no_utf8_are_refused(store):
    store.write(layout.FEEDBACK, b'{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"feedback\.jsonl, line 1: not valid UTF-8 .*: save the file as UTF-8"):
        read_verdicts(store, "arithmetic")


def test_writers_wait_for_each_other_and_not_for_the_run(store):
    store.hold()  # as `mft run` does
    own = [Verdict(id="t1", time=TIME, answer=str(n)) for n in range(4)]
    threads = [threading.Thread(target=add_verdicts, args=(Store(store.root), [one], "arithmetic")) for one in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.answer for one in read_verdicts(store, "arithmetic")) == [str(n) for n in range(4)]
    lock = DirectoryLock(store.root, layout.FEEDBACK_LOCK)
    lock.take()
    with pytest.raises(UserError, match="is in use by the process"):
        add_verdicts(store, [MARKED], "arithmetic")
    lock.release()
    store.release()


def test_nothing_is_created_where_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        add_verdicts(Store(tmp_path / "none"), [WRITTEN], "arithmetic")
    assert not (tmp_path / "none").exists()
    write_new_file(tmp_path / "some.jsonl", [WRITTEN])
    with pytest.raises(UserError, match="exists: give the name of a new file"):
        write_new_file(tmp_path / "some.jsonl", [MARKED])


def test_verdicts_on_what_the_run_does_not_have_are_left_out_and_reported(store):
    others = [
        Verdict(id="t9", time=TIME, answer="1"),
        Verdict(id="e1", time=TIME, answer="1"),
        Verdict(id="t1", time=TIME, place=Place(1, 3, 1), mark="right"),
        Verdict(id="t1", time=TIME, place=Place(1, 1, 3), mark="right"),
        Verdict(id="t1", time=TIME, place=Place(2, 1, 1), mark="right"),
    ]
    add_verdicts(store, [*others, MARKED], "arithmetic")
    feedback = read_feedback(store, "arithmetic", equivalent)
    assert (list(feedback.rulings), feedback.rulings["t2"].wrong) == (["t2"], ("4",))
    reasons = [
        "question t9 is left out: the run has no such question", "question e1 is left out: it is an evaluation question",
        "iteration 1 has no answer of agent 3 in round 1", "iteration 1 has no answer of agent 1 in round 3",
        "iteration 2 has no answer of agent 1 in round 1",
    ]  # fmt: skip
    assert len(feedback.problems) == 5
    assert all(reason in problem for reason, problem in zip(reasons, feedback.problems, strict=True))
    many = [Verdict(id=f"x{n}", time=TIME, answer="1") for n in range(20)]
    add_verdicts(store, many, "arithmetic")
    remarks = remarks_on(read_feedback(store, "arithmetic", equivalent))
    assert (len(remarks), remarks[-1]) == (6, "There are 20 more verdicts that are left out.")


def take(store, weight=2.0):
    said = []
    feedback, used = take_feedback(
        store, 1, task="arithmetic", weight=weight, equivalent=equivalent, say=said.append
    )  # fmt: skip
    return {id: ruling.answer for id, ruling in feedback.rulings.items()}, used, said


def test_an_iteration_remembers_the_verdicts_that_it_used(store):
    again = Verdict(id="t1", time="2026-01-31T13:00:00Z", answer="7")
    add_verdicts(store, [WRITTEN, again, MARKED], "arithmetic")
    rulings, weight, said = take(store)
    assert (rulings, weight) == ({"t1": "7", "t2": None}, 2.0)
    assert said == [
        f"Two verdicts on the question t1 contradict each other: {describe(WRITTEN)}, and {describe(again)}; the newer "
        "one counts.",
        "iteration 1: 2 verdicts of people on 2 questions count in training (feedback.weight 2).",
    ]
    assert "the answer is 6" in said[0]
    add_verdicts(store, [Verdict(id="t1", time="2026-02-01T00:00:00Z", answer="8")], "arithmetic")
    assert take(store, weight=9.0) == ({"t1": "7", "t2": None}, 2.0, [])
    recorded, use = read_used(store, 1)
    assert len(recorded) == 3
    assert use == FeedbackUse(questions=2, verdicts=2, simulated=0, conflicts=1, weight=2.0)
    assert read_used(store, 2) is None
    path = store.path(layout.used_feedback(1))
    path.write_text(path.read_text().replace('"answer": "7"', '"answer": "8"'))
    with pytest.raises(DamagedFile, match=r"feedback\.json is damaged \(its checksum is wrong\): put it back"):
        take(store)


def test_training_sets_that_were_selected_without_verdicts_are_selected_so_again(store):
    """They are damaged, for example, and a person has given verdicts since."""
    assert take(store) == ({}, 1.0, [])
    assert not store.exists(layout.used_feedback(1))
    write_training_sets(store, 1, {"writer": []})
    add_verdicts(store, [WRITTEN], "arithmetic")
    assert take(store) == ({}, 1.0, [])
    store.delete(layout.training_set_checksums(1))
    assert take(store)[0] == {"t1": "6"}


def test_debates_of_another_version_are_named(tmp_path):
    old = Store(tmp_path)
    commit(type("Directory", (), {"store": old}), layout.debate(1), [Old()])
    add_verdicts(old, [MARKED], "arithmetic")
    with pytest.raises(UserError, match="were written by another version of mft_jax"):
        read_feedback(old, "arithmetic", equivalent)


class Old:
    """A transcript without the field `agents`."""

    def to_json(self):
        return '{"id": "t2", "correct": true}'
