"""GSM8K from the user's files, from the network, and from the cache.

The tests run on small files in the original's form. Where MFT_GSM8K_DIR names a directory with the original files, the
tests of whole data sets run on those too.
"""

import hashlib
import json
import os
import pathlib
import shutil

import pytest
from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import GSM8K
from mft_jax.tasks import answers, gsm8k, load_task, prepared
from mft_jax.tasks.parsing import parse_number

REAL = os.environ.get("MFT_GSM8K_DIR")
GOLDS = ["18", "1,080", "-10", "3", "54,000", "7"]


def record(split, number):
    gold = GOLDS[number % len(GOLDS)]
    return {
        "question": f"Ada\u2019s {split} basket holds {number} eggs.  How many?",
        "answer": f"She has <<{number}+0={number}>>{number}.\nSo that is it.\n#### {gold}",
    }


def write(directory, sizes=(8, 5)):
    directory.mkdir(parents=True, exist_ok=True)
    for split, size in zip(("train", "test"), sizes, strict=True):
        lines = "".join(json.dumps(record(split, number)) + "\n" for number in range(size))
        (directory / f"{split}.jsonl").write_text(lines)
    return directory


def believe(monkeypatch, directory):
    """Takes the files of a directory for the original ones."""
    for split in gsm8k.COUNTS:
        data = (directory / f"{split}.jsonl").read_bytes()
        monkeypatch.setitem(gsm8k.COUNTS, split, data.count(b"\n"))
        monkeypatch.setitem(gsm8k.CHECKSUMS, split, hashlib.sha256(data).hexdigest())


@pytest.fixture
def files(tmp_path, monkeypatch):
    directory = write(tmp_path / "files")
    believe(monkeypatch, directory)
    return directory


@pytest.fixture(params=["small", "original"] if REAL else ["small"])
def whole(request, tmp_path, monkeypatch):
    """A directory of files that are taken for the original, and are it if it is there."""
    if request.param == "original":
        return pathlib.Path(REAL)
    directory = write(tmp_path / "whole")
    believe(monkeypatch, directory)
    return directory


def config(tmp_path, files=None, train=4, evaluation=3):
    return TaskConfig(
        name="gsm8k",
        data_dir=None if files is None else str(files),
        cache_dir=str(tmp_path / "cache"),
        train_questions=train,
        eval_questions=evaluation,
    )


def test_every_question_comes_with_its_gold_answer_which_equals_itself(whole, tmp_path):
    task = load_task(config(tmp_path, whole, gsm8k.COUNTS["train"], gsm8k.COUNTS["test"]), 0)
    for split, questions in (("train", task.train), ("test", task.eval)):
        lines = [json.loads(line) for line in (whole / f"{split}.jsonl").read_text().splitlines()]
        assert len(questions) == len(lines) == gsm8k.COUNTS[split]
        by_id = {question.id: question for question in questions}
        for number, line in enumerate(lines, start=1):
            question = by_id[f"gsm8k-{split}-{number:05d}"]
            solution, _, written = line["answer"].partition("#### ")
            assert question.text == line["question"].strip()
            assert answers.number(question.gold) == int(written.replace(",", ""))
            for text in (
                line["answer"],
                rf"{solution} \boxed{{{written}}}",
                rf"\boxed{{{written} dollars}}, 0",
                written,
            ):
                assert task.equivalent(task.parse(text), question.gold), (text, question)
            assert not task.equivalent(question.gold, str(int(written.replace(",", "")) + 1))
    assert not {question.text for question in task.train} & {question.text for question in task.eval}


def test_the_librarys_own_builder_makes_the_data_set(files, tmp_path):
    task = load_task(config(tmp_path, files), 0)
    assert issubclass(gsm8k.MftGsm8k, Gsm8k)
    assert gsm8k.MftGsm8k._generate_examples is Gsm8k._generate_examples
    (built,) = (tmp_path / "cache").glob("gsm8k-*/mft_gsm8k/1.0.0")
    assert {path.name for path in built.glob("*.array_record*")} == {
        f"mft_gsm8k-{split}.array_record-00000-of-00001" for split in ("train", "test")
    }
    assert (task.name, task.prompts, task.parse) == ("gsm8k", GSM8K, parse_number)
    assert {question.id[:12] for question in task.train} == {"gsm8k-train-"}
    assert {question.id[:11] for question in task.eval} == {"gsm8k-test-"}


def test_the_seed_chooses_and_a_smaller_set_is_part_of_a_larger(files, tmp_path):
    small, other = (load_task(config(tmp_path, files, 4, 3), seed) for seed in (0, 1))
    large = load_task(config(tmp_path, files, 8, 5), 0)
    assert (small.train, small.eval) == (large.train[:4], large.eval[:3])
    assert small.train != other.train
    with pytest.raises(UserError, match=r"task\.train_questions is 9, but .* has 8 questions: set it to 8 or less"):
        load_task(config(tmp_path, files, 9, 3), 0)


def test_files_in_a_directory_that_cannot_be_written_are_left_as_they_are(files, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    files.chmod(0o555)
    try:
        load_task(config(tmp_path, files), 0)
    finally:
        files.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in files.iterdir()} == before


def test_a_copy_with_other_line_ends_and_escapes_is_the_same_data_set(files, tmp_path):
    original = load_task(config(tmp_path, files), 0)
    for split in ("train", "test"):
        path = files / f"{split}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [json.dumps({"id": 1, **r}, ensure_ascii=False) + "\r\n" for r in records]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert load_task(config(tmp_path, files), 0) == original


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "q", "answer": "a\n', "not valid JSON"),
        (b'{"question": "q", "answer": 5}\n', '"answer" is a number, expected a string'),
        (b'{"question": "q"}\n', 'the field "answer" is missing'),
        (b'{"question": " ", "answer": "#### 5"}\n', '"question" is empty'),
        (b'{"question": "q", "answer": "so 5"}\n', '"answer" does not end with'),
        (b'{"question": "q", "answer": "#### five"}\n', '"answer" does not end with'),
        (b'{"question": "q", "answer": "#### 5 #### 6"}\n', '"answer" does not end with'),
        (b'["q", "#### 5"]\n', "got an array, expected an object"),
        (b'{"question": "\xff", "answer": "#### 5"}\n', "not valid UTF-8"),
    ],
)
def test_a_broken_line_is_named_before_any_checksum(files, tmp_path, line, message):
    path = files / "test.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:2], line, *whole[3:]]))
    with pytest.raises(UserError) as caught:
        load_task(config(tmp_path, files), 0)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named_with_the_line_or_the_count(files, tmp_path):
    path = files / "train.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"train\.jsonl, line 8: not valid JSON"):
        load_task(config(tmp_path, files), 0)
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))
    with pytest.raises(UserError, match=r"train\.jsonl has 6 questions, expected the 8 of GSM8K's train split"):
        load_task(config(tmp_path, files), 0)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"train\.jsonl has 0 questions, expected the 8"):
        load_task(config(tmp_path, files), 0)


def test_other_questions_in_the_same_number_are_refused_with_both_checksums(files, tmp_path):
    path = files / "test.jsonl"
    expected = gsm8k.CHECKSUMS["test"]
    path.write_text(path.read_text().replace("holds 2 eggs", "holds 3 eggs"))
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"test.jsonl holds other questions .*SHA-256 {got}, expected {expected}"):
        load_task(config(tmp_path, files), 0)


def test_a_prepared_data_set_is_not_taken_for_that_of_other_files(files, tmp_path, monkeypatch, offline):
    first = load_task(config(tmp_path, files), 0)
    other = tmp_path / "other"
    shutil.copytree(files, other)
    (other / "test.jsonl").write_text((files / "test.jsonl").read_text().replace("holds 2 eggs", "holds 9 eggs"))
    with pytest.raises(UserError, match="holds other questions"):
        load_task(config(tmp_path, other), 0)
    believe(monkeypatch, other)
    changed = load_task(config(tmp_path, other, evaluation=5), 0)
    assert any("holds 9 eggs" in question.text for question in changed.eval)
    assert not any("holds 9 eggs" in question.text for question in first.eval)
    believe(monkeypatch, files)
    assert load_task(config(tmp_path, files), 0) == first


def test_what_was_prepared_from_the_original_files_is_found_without_them(files, tmp_path, offline):
    first = load_task(config(tmp_path, files), 0)
    shutil.rmtree(files)
    assert load_task(config(tmp_path), 0) == first
    assert offline == []


def test_it_is_downloaded_and_verified(files, tmp_path, online):
    for split in ("train", "test"):
        online[f"{gsm8k.URL}{split}.jsonl"] = files / f"{split}.jsonl"
    downloaded = load_task(config(tmp_path), 0)
    assert downloaded == load_task(config(tmp_path / "else", files), 0)
    (files / "test.jsonl").write_text("<html>Please log in</html>")
    with pytest.raises(UserError, match=r"test\.jsonl has the SHA-256 \w{64}, expected \w{64}\): connect this machine"):
        load_task(config(tmp_path / "more"), 0)


def test_without_files_and_network_one_sentence_says_both_remedies(tmp_path, offline):
    with pytest.raises(UserError) as caught:
        load_task(config(tmp_path), 0)
    assert offline == [
        "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl"
    ]
    message = str(caught.value)
    assert "GSM8K cannot be downloaded" in message
    assert "Name or service not known" in message
    assert (
        "connect this machine to the network, or give a directory that holds GSM8K's train.jsonl and test.jsonl"
        in message
    )
    assert "--task.data-dir DIR" in message
    assert not list((tmp_path / "cache").glob("*/mft_gsm8k"))


def test_a_directory_that_is_not_one_or_lacks_a_file(files, tmp_path):
    with pytest.raises(UserError, match=r"task\.data_dir is '.*nowhere', which is not a directory"):
        load_task(config(tmp_path, tmp_path / "nowhere"), 0)
    with pytest.raises(UserError, match=r"task\.data_dir is 's3://bucket', expected a local directory"):
        load_task(config(tmp_path, "s3://bucket"), 0)
    (files / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"There is no .*test\.jsonl: give a directory that holds GSM8K's"):
        load_task(config(tmp_path, files), 0)


@pytest.mark.parametrize("name", ["dataset_info.json", "mft_gsm8k-test.array_record-00000-of-00001"])
@pytest.mark.parametrize("kept", [None, 0, 100])
def test_a_damaged_copy_in_the_cache_is_made_again(files, tmp_path, monkeypatch, name, kept):
    first = load_task(config(tmp_path, files), 0)
    (path,) = (tmp_path / "cache").rglob(name)
    whole = path.read_bytes()
    path.unlink() if kept is None else path.write_bytes(whole[:kept])
    builds, build = [], prepared._build
    monkeypatch.setattr(prepared, "_build", lambda *arguments: (builds.append(1), build(*arguments)))
    assert load_task(config(tmp_path, files), 0) == first
    assert builds == [1]
