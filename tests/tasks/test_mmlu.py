"""MMLU, on small files in the original's form."""

import csv
import hashlib
import io
import tarfile

import pytest

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import MMLU
from mft_jax.tasks import load_task, mmlu

SUBJECTS = ("abstract_algebra", "world_religions")
SIZES = {"dev": 2, "val": 4, "test": 5}


def row(split, subject, number):
    question = f'Which of these, in "{subject}", is\n{split} {number}?'
    return [question, f"{number}", "a, b", 'the "third"', "none", "ABCD"[number % 4]]


def rows(split, subject):
    return [row(split, subject, number) for number in range(SIZES[split])]


def write(directory, change=lambda split, subject, found: found):
    for split in SIZES:
        for subject in SUBJECTS:
            path = directory / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows(change(split, subject, rows(split, subject)))
    return directory


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for split, size in SIZES.items():
        monkeypatch.setitem(mmlu.COUNTS, split, size * len(SUBJECTS))


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "files")


def config(tmp_path, files=None, train=5, evaluation=4):
    return TaskConfig(
        name="mmlu",
        data_dir=None if files is None else str(files),
        cache_dir=str(tmp_path / "cache"),
        train_questions=train,
        eval_questions=evaluation,
    )


def test_the_original_has_285_and_1531_and_14042_questions(monkeypatch):
    monkeypatch.undo()
    assert mmlu.COUNTS == {"dev": 285, "val": 1531, "test": 14042}


def test_questions_show_their_choices_and_golds_are_letters(files, tmp_path):
    task = load_task(config(tmp_path, files, 12, 10), 0)
    by_id = {question.id: question for question in (*task.train, *task.eval)}
    assert len(by_id) == 22
    question = by_id["mmlu-test-world_religions-0004"]
    assert question.text == (
        'Which of these, in "world_religions", is\ntest 3?\n(A) 3\n(B) a, b\n(C) the "third"\n(D) none'
    )
    assert question.gold == "D"
    assert {name.split("-")[1] for name in (question.id for question in task.train)} == {"dev", "val"}
    assert {question.id.split("-")[1] for question in task.eval} == {"test"}
    assert (task.name, task.prompts) == ("mmlu", MMLU)
    assert task.equivalent(task.parse(r"It is \boxed{\text{(D)}}."), "D")
    assert not task.equivalent("D", "B")


def test_the_seed_chooses_and_a_smaller_set_is_part_of_a_larger(files, tmp_path):
    small, large = (load_task(config(tmp_path, files, *sizes), 1) for sizes in ((5, 4), (12, 10)))
    assert (small.train, small.eval) == (large.train[:5], large.eval[:4])
    assert small.train != load_task(config(tmp_path, files), 2).train


def test_repeated_questions_are_taken_out_of_the_training_pool_alone(tmp_path):
    def change(split, subject, found):
        if (split, subject) == ("val", SUBJECTS[0]):
            found[1] = row("dev", subject, 1)  # twice in the training pool
            found[2] = row("test", SUBJECTS[1], 2)  # in both splits
        return found

    files = write(tmp_path / "files", change)
    with pytest.raises(UserError, match="training set has 10 questions: set it to 10 or less"):
        load_task(config(tmp_path, files, 11), 0)
    task = load_task(config(tmp_path, files, 10, 10), 0)
    assert len({question.text for question in (*task.train, *task.eval)}) == 20
    assert "mmlu-test-world_religions-0003" in {question.id for question in task.eval}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["q", "a", "b", "c", "D"], "got 5 fields, expected a question, four choices and a letter"),
        (["q", "a", "b", "c", "d", "E"], "the answer is 'E', expected A, B, C or D"),
        ([" ", "a", "b", "c", "d", "A"], "the question is empty"),
    ],
)
def test_a_broken_row_is_named_by_the_line_where_it_begins(tmp_path, line, message):
    change = lambda split, subject, found: [*found[:2], line, *found[3:]] if split == "test" else found
    files = write(tmp_path / "files", change)
    with pytest.raises(UserError) as caught:
        load_task(config(tmp_path, files), 0)
    # Every question before it takes two lines.
    assert str(caught.value).startswith(f"{files / 'test' / 'abstract_algebra_test.csv'}, line 5: {message}")


def test_truncated_and_missing_files(files, tmp_path):
    path = files / "val" / "world_religions_val.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    with pytest.raises(UserError, match=r"world_religions_val\.csv, line 7: got \d fields"):
        load_task(config(tmp_path, files), 0)
    path.write_bytes(b"\xff" + whole)
    with pytest.raises(UserError, match=r"world_religions_val\.csv: not valid UTF-8"):
        load_task(config(tmp_path, files), 0)
    path.unlink()
    with pytest.raises(UserError, match=r"val \(1 files\) has 4 questions, expected the 8 of MMLU's 57 files"):
        load_task(config(tmp_path, files), 0)
    (files / "val" / "abstract_algebra_val.csv").unlink()
    with pytest.raises(UserError, match="does not hold MMLU: give a directory that holds MMLU's dev, val and test"):
        load_task(config(tmp_path, files), 0)


def test_the_archive_is_downloaded_and_verified(files, tmp_path, online, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(files, "data")
        for name in ("data/auxiliary_train/more.csv", "../../test/evil_test.csv"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    online[mmlu.URL] = tmp_path / "data.tar"
    online[mmlu.URL].write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"data\.tar has the SHA-256 \w{64}, expected bec563ba\w{56}\): connect"):
        load_task(config(tmp_path), 0)
    monkeypatch.setattr(mmlu, "CHECKSUM", hashlib.sha256(buffer.getvalue()).hexdigest())
    assert load_task(config(tmp_path), 0) == load_task(config(tmp_path / "else", files), 0)
    assert not list(tmp_path.rglob("evil*"))


def test_without_files_and_network_one_sentence_says_both_remedies(tmp_path, offline):
    with pytest.raises(
        UserError, match="connect this machine to the network, or give a directory that holds MMLU's dev"
    ):
        load_task(config(tmp_path), 0)
    assert offline == ["https://people.eecs.berkeley.edu/~hendrycks/data.tar"]


def test_an_unpacked_archive_and_its_folder_data_both_serve(files, tmp_path):
    (tmp_path / "archive").mkdir()
    files.rename(tmp_path / "archive" / "data")
    inside = load_task(config(tmp_path, tmp_path / "archive" / "data"), 0)
    assert load_task(config(tmp_path, tmp_path / "archive"), 0) == inside
