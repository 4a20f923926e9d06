"""MATH in each of its layouts, on small files in the original's form."""

import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import MATH
from mft_jax.tasks import load_task, math

COUNTS = {"Algebra": (6, 4), "Geometry": (3, 3)}
LEVELS = {"train": ["Level 1", "Level 2", "Level 3", "Level 4", "Level 5", "Level ?"], "test": ["Level 3", "Level 5"]}


def problem(split, subject, number):
    levels = LEVELS[split]
    return {
        "problem": f"In {subject} of the {split} set, what is $\\frac{{{number}}}{{2}}$?",
        "level": levels[number % len(levels)],
        "type": subject,
        "solution": f"Halve it: $\\boxed{{\\frac{{{number}}}{{2}}}}$, as 7 shows.",
    }


def problems():
    """{split: its problems}."""
    return {
        split: [problem(split, subject, n) for subject, counts in COUNTS.items() for n in range(counts[index])]
        for index, split in enumerate(("train", "test"))
    }


def write_tree(directory, found):
    for split, records in found.items():
        for number, record in enumerate(records):
            path = directory / split / record["type"].lower() / f"{7 * number}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=4))
    return directory


def write_jsonl(directory, found):
    directory.mkdir(parents=True, exist_ok=True)
    for split, records in found.items():
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[::-1]))
    return directory


def write_parquet(directory, found):
    for split, records in found.items():
        for subject in {record["type"] for record in records}:
            path = directory / subject.lower() / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pyarrow.Table.from_pylist([record for record in records if record["type"] == subject])
            pyarrow.parquet.write_table(table, path)
    return directory


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(math, "SUBJECTS", COUNTS)


@pytest.fixture
def files(tmp_path):
    return write_tree(tmp_path / "files", problems())


def config(tmp_path, files=None, train=2, evaluation=2, levels=(1, 2, 3)):
    return TaskConfig(
        name="math",
        data_dir=None if files is None else str(files),
        cache_dir=str(tmp_path / "cache"),
        train_questions=train,
        eval_questions=evaluation,
        math_levels=levels,
    )


def test_the_original_has_7500_and_5000_problems(monkeypatch):
    monkeypatch.undo()
    assert [math._expected_counts(split).total() for split in math.SPLITS] == [7500, 5000]
    assert len(math.SUBJECTS) == 7


def test_levels_and_golds(files, tmp_path):
    task = load_task(config(tmp_path, files, 6, 4), 0)
    assert sorted(question.gold for question in task.train) == ["0", "0", "1", "1", "1/2", "1/2"]
    assert (task.name, task.prompts) == ("math", MATH)
    assert task.parse(r"so $x=\boxed{0.5}$, not 3") == "0.5"
    assert task.equivalent(task.parse(r"\boxed{\dfrac12}"), "1/2")
    with pytest.raises(UserError, match="has 6 questions: set it to 6 or less"):
        load_task(config(tmp_path, files, 7, 4), 0)
    everything = load_task(config(tmp_path, files, 8, 7, levels=(1, 2, 3, 4, 5)), 0)
    assert {"3/2", "2"} <= {question.gold for question in everything.train}
    assert "5/2" not in {question.gold for question in everything.train}  # its level is "?"
    hard = load_task(config(tmp_path, files, 1, 3, levels=(5,)), 0)
    assert [question.gold for question in hard.train] == ["2"]


def test_every_layout_gives_the_same_questions_in_the_same_order(files, tmp_path):
    task = load_task(config(tmp_path, files), 3)
    layouts = [
        write_jsonl(tmp_path / "jsonl", problems()),
        write_parquet(tmp_path / "parquet", problems()),
        write_tree(tmp_path / "archive" / "MATH", problems()).parent,
    ]
    for directory in layouts:
        assert load_task(config(tmp_path / directory.name, directory), 3) == task
    assert len({question.id for question in (*task.train, *task.eval)}) == 4
    assert task.train != load_task(config(tmp_path, files), 4).train


def test_it_is_downloaded_from_the_mirror(files, tmp_path, online):
    mirror = write_parquet(tmp_path / "mirror", problems())
    for path in mirror.rglob("*.parquet"):
        online[math.URL + path.relative_to(mirror).as_posix()] = path
    assert load_task(config(tmp_path), 0) == load_task(config(tmp_path / "else", files), 0)
    path.write_text("<html>Please log in</html>")
    with pytest.raises(UserError, match=r"MATH cannot be downloaded .*not a Parquet file.*--task\.data-dir DIR"):
        load_task(config(tmp_path / "more"), 0)


def test_without_files_and_network_one_sentence_says_both_remedies(tmp_path, offline):
    with pytest.raises(
        UserError, match="connect this machine to the network, or give a directory that holds MATH's train"
    ):
        load_task(config(tmp_path), 0)
    assert offline == [
        "https://huggingface.co/datasets/EleutherAI/hendrycks_math/resolve/main/algebra/train-00000-of-00001.parquet"
    ]


def test_repeated_problems_are_taken_out_of_the_training_pool_alone(files, tmp_path):
    found = problems()
    found["train"][1] = found["train"][0] | {"solution": r"Again \boxed{0}."}
    found["train"][2] = found["test"][0] | {"level": "Level 1"}
    found["test"][2] = found["test"][0]
    directory = write_jsonl(tmp_path / "jsonl", found)
    with pytest.raises(UserError, match="training set has 4 questions"):
        load_task(config(tmp_path, directory, 5, 4), 0)
    task = load_task(config(tmp_path, directory, 4, 4), 0)
    assert len({question.text for question in (*task.train, *task.eval)}) == 7  # one of 8 comes twice in the test set
    assert len({question.id for question in task.eval}) == 4
    assert [task] * 3 == [load_task(config(tmp_path, directory, 4, 4), 0) for _ in range(3)]


@pytest.mark.parametrize(
    ("solution", "gold"),
    [(r"so $\boxed 2$.", "2"), (r"\fbox{3}", "3"), (r"\boxed{x=\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}")],
)
def test_the_boxes_of_the_originals_solutions(tmp_path, solution, gold):
    found = problems()
    for record in found["test"]:
        record["solution"] = solution
    task = load_task(config(tmp_path, write_jsonl(tmp_path / "jsonl", found)), 0)
    assert {question.gold for question in task.eval} == {gold}


def test_a_problem_without_a_gold_answer_is_not_asked(tmp_path):
    found = problems()
    found["train"][0]["solution"] = "Left to the reader."
    with pytest.raises(UserError, match="has 5 questions"):
        load_task(config(tmp_path, write_jsonl(tmp_path / "jsonl", found), 6, 4), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "Level 9"}, "\"level\" is 'Level 9', expected"),
        ({"level": 3}, '"level" is a number, expected a string'),
        ({"type": "Poetry"}, "\"type\" is 'Poetry', expected one of Algebra, Geometry"),
        ({"solution": ""}, '"solution" is empty'),
    ],
)
def test_a_broken_problem_is_named(files, tmp_path, change, message):
    broken = files / "test" / "algebra" / "14.json"
    broken.write_text(json.dumps(json.loads(broken.read_text()) | change))
    found = problems()
    found["test"][2] |= change
    lines = write_jsonl(tmp_path / "jsonl", found)  # written backwards: the third is the fifth of seven
    for directory, where in ((files, f"{broken}: "), (lines, f"{lines / 'test.jsonl'}, line 5: ")):
        with pytest.raises(UserError) as caught:
            load_task(config(tmp_path, directory), 0)
        assert str(caught.value).startswith(where)
        assert message in str(caught.value)


def test_a_truncated_problem_and_a_missing_one(files, tmp_path):
    path = files / "train" / "geometry" / "49.json"
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(UserError, match=r"49\.json: not valid JSON \(.* in line 5\): get the original file again"):
        load_task(config(tmp_path, files), 0)
    path.unlink()
    with pytest.raises(UserError, match="files: Geometry of the train split has 2 questions, expected the 3 of MATH"):
        load_task(config(tmp_path, files), 0)
    shutil.rmtree(files / "train")
    with pytest.raises(UserError, match="does not hold MATH: give a directory that holds MATH's train and test"):
        load_task(config(tmp_path, files), 0)
