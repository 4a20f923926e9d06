import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.stage_file import StageFile, find_chunks, journal_name, read_stage
from mft_jax.runs.store import Store
from tests.runs.disk import FAULTS, Stopped, fail_with, stopped_before

NAME = "iteration_1/debate/train.jsonl"
TOTAL = 7
TEXTS = ["a", "b", "ü \u2028 c", "d", "", "f", "g"]  # with text beyond ASCII, and an empty one
LINES = [json.dumps({"id": text, "correct": True}, ensure_ascii=False) for text in TEXTS]
WHOLE = "".join(line + "\n" for line in LINES).encode()


def cost_of(lines: range) -> Cost:
    return Cost(new_tokens=sum(lines), wall_seconds=0.5 * len(lines))


COST = cost_of(range(TOTAL))


def work(store: Store, size: int = 2, until: int = TOTAL, say=lambda text: None) -> StageFile:
    """What a run does: opens the stage, and does the lines that are missing."""
    stage = StageFile(store, NAME, say)
    for lines in stage.missing(until, size):
        stage.commit(lines.start, LINES[lines.start : lines.stop], cost_of(lines), {"cut": len(lines)})
    if until == TOTAL:
        stage.seal(TOTAL)
    return stage


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def chunk_file(start: int) -> str:
    return f"iteration_1/debate/train.chunks/{start:06}.jsonl"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them would take seconds
    return Store(tmp_path / "run")


def test_chunks_are_objects_until_the_stage_is_sealed(store):
    stage = work(store, until=3)
    assert (stage.done, stage.sealed) == (3, False)
    assert files(store) == [chunk_file(0), chunk_file(2)]
    header, *lines = store.read(chunk_file(0)).decode().split("\n")[:-1]
    assert lines == LINES[:2]
    record = json.loads(header)
    assert (record["start"], record["lines"], record["counts"]) == (0, 2, {"cut": 2})
    assert (record["cost"]["new_tokens"], len(record["sha256"])) == (1, 64)

    stage = work(store)
    assert stage.sealed
    assert files(store) == [journal_name(NAME), NAME]
    assert store.read(NAME) == WHOLE
    records = [json.loads(line) for line in store.read(journal_name(NAME)).splitlines()]
    assert [(r["start"], r["lines"]) for r in records] == [(0, 2), (2, 1), (3, 2), (5, 2)]
    assert records[-1]["bytes"] == len(WHOLE)
    for opened in (stage, StageFile(store, NAME)):
        assert (opened.done, opened.cost, opened.counts) == (TOTAL, COST, {"cut": TOTAL})
        assert [line["id"] for line in opened.lines()] == TEXTS
        assert opened.missing(TOTAL, 2) == []
    assert read_stage(store, NAME) == ([json.loads(line) for line in LINES], COST, {"cut": TOTAL})


def test_missing_lines_are_gaps_first_in_pieces_of_at_most_the_size(store):
    stage = StageFile(store, NAME)
    assert stage.missing(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert stage.missing(0, 3) == []
    stage.commit(2, LINES[2:4], Cost(), {})
    assert stage.missing(7, 100) == [range(0, 2), range(4, 7)]
    assert stage.missing(7, 1) == [range(i, i + 1) for i in (0, 1, 4, 5, 6)]
    stage.commit(0, LINES[0:1], Cost(), {})
    assert [line["id"] for line in stage.lines()] == [TEXTS[0], TEXTS[2], TEXTS[3]]


def test_what_cannot_be_committed_or_sealed(store):
    stage = work(store, until=4)
    for start, lines in ((1, ["{}"]), (3, ["{}", "{}"])):
        with pytest.raises(ValueError, match="overlap"):
            stage.commit(start, lines, Cost(), {})
    for lines in (["one\ntwo"], []):
        with pytest.raises(ValueError, match="lines without line breaks"):
            stage.commit(4, lines, Cost(), {})
    for total in (3, 5):
        with pytest.raises(ValueError, match=f"has 4 committed lines, expected {total}"):
            stage.seal(total)
    assert files(store) == [chunk_file(0), chunk_file(2)]


def test_an_empty_stage(store):
    stage = StageFile(store, NAME)
    stage.seal(0)
    assert (store.read(NAME), StageFile(store, NAME).sealed, read_stage(store, NAME)) == (b"", True, ([], Cost(), {}))


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (3, 100), (4, 1)])
def test_a_kill_at_every_instant_leaves_no_trace(tmp_path, sizes):
    """Stopped before each disk step of the whole stage; redone with another chunk size: the same bytes, no stray file."""
    step, is_killed = 0, True
    while is_killed:
        store = Store(tmp_path / str(step))
        try:
            with stopped_before(step):
                work(store, sizes[0])
            is_killed = False
        except Stopped:
            pass
        committed, cost, counts = read_stage(store, NAME)
        assert [line["id"] for line in committed] == TEXTS[: len(committed)]
        assert (cost, counts.get("cut", 0)) == (cost_of(range(len(committed))), len(committed))
        store.hold()
        heard = []
        stage = work(store, sizes[1], say=heard.append)
        store.release(discard=True)
        assert (heard, store.read(NAME), files(store)) == ([], WHOLE, [journal_name(NAME), NAME])
        assert (stage.cost, stage.counts, StageFile(store, NAME).sealed) == (COST, {"cut": TOTAL}, True)
        step += 1
    assert step > 20


def test_kill_9(tmp_path):
    """A real process, killed again and again while it works, ends with the bytes of one that was left alone."""
    script = """
import sys
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.store import Store
store = Store(sys.argv[1])
store.hold()
stage = StageFile(store, "train.jsonl", print)
print("open", flush=True)
for lines in stage.missing(200 * 20, int(sys.argv[2])):
    stage.commit(lines.start, [f'{{"line": {line}}}' for line in lines], Cost(new_tokens=len(lines)), {})
stage.seal(200 * 20)
"""
    command = lambda name, size: [sys.executable, "-c", script, str(tmp_path / name), str(size)]
    seen = []
    for delay, size in ((0.0, 20), (0.05, 7), (0.1, 50), (0.2, 20)):
        process = subprocess.Popen(command("killed", size), stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"open\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        seen.append(len(read_stage(Store(tmp_path / "killed"), "train.jsonl")[0]))
    assert seen == sorted(seen)
    assert seen[0] < 200 * 20
    for name in ("killed", "whole"):
        done = subprocess.run(command(name, 20), check=True, capture_output=True, text=True)
        assert done.stdout == "open\n"
        assert files(Store(tmp_path / name)) == ["run.lock", "train.journal.jsonl", "train.jsonl"]
    killed, whole = (Store(tmp_path / name) for name in ("killed", "whole"))
    assert killed.read("train.jsonl") == whole.read("train.jsonl")
    assert StageFile(killed, "train.jsonl").cost == Cost(new_tokens=200 * 20)


# How the second chunk (lines 3 and 4) can be spoilt, as a change of its lines' bytes.
SPOILT = {
    "a flipped bit": lambda body: body.replace(b'"d"', b'"e"'),
    "a flipped verdict": lambda body: body.replace(b"true", b"false", 1),
    "broken JSON": lambda body: body.replace(b'{"id": "d"', b'{"id": "d', 1),
    "an empty object": lambda body: body.replace(b'{"id": "d", "correct": true}', b"{}"),
    "a lost line break": lambda body: body.replace(b"\n", b" ", 1),
    "a lost line": lambda body: body.split(b"\n", 1)[1],
    "a longer line": lambda body: body.replace(b"true", b"true" + b" " * 100, 1),
    "not UTF-8": lambda body: body.replace(b'"d"', b'"\xff"'),
    "zeros": lambda body: bytes(len(body)),
}


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_damaged_chunk_is_named_set_aside_and_alone_redone(store, spoil, is_sealed):
    work(store, until=TOTAL if is_sealed else 6)
    piece, body = (NAME, "".join(line + "\n" for line in LINES[2:4]).encode()) if is_sealed else (chunk_file(2), b"")
    data = store.read(piece)
    body = body or data.split(b"\n", 1)[1]
    spoilt = data.replace(body, SPOILT[spoil](body))
    assert spoilt != data
    store.write(piece, spoilt)

    with pytest.raises(UserError, match=r"train\.\S+ is damaged \(.*start the run again, which sets it aside"):
        read_stage(store, NAME)
    heard = []
    stage = StageFile(store, NAME, heard.append)
    assert len(heard) == 1
    assert heard[0].startswith(f"{store.path(piece)} is damaged (")
    assert f"it was moved to {store.path('damaged/' + piece)}" in heard[0]
    if is_sealed:
        assert "the checksum of lines 3 to 4 is wrong" in heard[0]
    assert store.read(f"damaged/{piece}") == spoilt
    assert stage.missing(6, 100) == [range(2, 4)]
    assert stage.done == (5 if is_sealed else 4)
    stage = work(store, size=100)
    assert store.read(NAME) == WHOLE
    assert (stage.cost, stage.counts) == (COST, {"cut": TOTAL})
    assert StageFile(store, NAME, pytest.fail).sealed


def test_every_flipped_bit_of_a_chunk_object_is_noticed(store):
    work(store, until=2)
    data = store.read(chunk_file(0))
    for place in range(len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 1
        store.path(chunk_file(0)).write_bytes(spoilt)
        found = find_chunks(store, NAME)
        assert (found.chunks, [name for name, _ in found.damaged]) == ((), [chunk_file(0)]), (place, bytes(spoilt))


def test_every_flipped_bit_of_a_sealed_stage_is_noticed(store):
    work(store)
    for name in (NAME, journal_name(NAME)):
        data = store.read(name)
        for place in range(len(data)):
            spoilt = bytearray(data)
            spoilt[place] ^= 1
            store.path(name).write_bytes(spoilt)
            found = find_chunks(store, NAME)
            assert found.damaged, (name, place)
            assert not found.is_sealed
            starts = {chunk.start for chunk in found.chunks}
            assert all(chunk.body.decode() == "".join(f"{line}\n" for line in LINES[chunk.start : chunk.stop])
                       for chunk in found.chunks)  # fmt: skip
            assert name != NAME or len(starts) == 3, "one flipped bit of the lines costs one chunk of four"
        store.write(name, data)
    assert not find_chunks(store, NAME).damaged


def test_a_kill_while_a_damaged_chunk_is_set_aside_loses_no_other(tmp_path):
    step, is_killed = 0, True
    while is_killed:
        store = Store(tmp_path / str(step))
        work(store)
        store.write(NAME, WHOLE.replace(b'"d"', b'"e"'))
        try:
            with stopped_before(step):
                StageFile(store, NAME)
            is_killed = False
        except Stopped:
            pass
        assert StageFile(store, NAME).missing(TOTAL, 100) == [range(2, 4)]
        assert work(store).cost == COST
        assert store.read(NAME) == WHOLE
        step += 1
    assert step > 10


def test_a_sealed_file_with_more_than_its_lines_is_composed_anew(store):
    work(store)
    store.write(NAME, WHOLE + b"{}\n")
    heard = []
    stage = StageFile(store, NAME, heard.append)
    assert (stage.done, stage.missing(TOTAL, 2), stage.sealed) == (TOTAL, [], False)
    assert "its length is not what its journal says" in heard[0]
    work(store)
    assert store.read(NAME) == WHOLE


def test_two_damaged_chunks_of_a_sealed_file_leave_the_one_between(store):
    work(store)
    store.write(NAME, WHOLE.replace(b'"a", "correct": true', b'"a", "correct": false').replace(b'"f"', b'"longer"'))
    stage = StageFile(store, NAME)
    assert stage.missing(TOTAL, 100) == [range(0, 2), range(4, 6)]


@pytest.mark.parametrize("how", ["missing", "garbled", "cut", "empty", "other numbers"])
def test_a_damaged_journal_beside_a_sealed_file_is_set_aside_with_it(store, how):
    work(store)
    journal = store.read(journal_name(NAME))
    if how == "missing":
        store.delete(journal_name(NAME))
    else:
        spoilt = {
            "garbled": b"hello\n",
            "cut": journal[:-5],
            "empty": b"",
            "other numbers": journal.replace(b'"start": 2', b'"start": 3'),
        }
        store.write(journal_name(NAME), spoilt[how])
    with pytest.raises(UserError, match="is damaged"):
        read_stage(store, NAME)
    heard = []
    stage = StageFile(store, NAME, heard.append)
    assert (stage.done, len(heard)) == (0, 1)
    assert store.read(f"damaged/{NAME}") == WHOLE
    assert not store.exists(NAME)
    work(store)
    assert store.read(NAME) == WHOLE


def test_the_file_is_gone_but_not_its_journal(store):
    work(store)
    store.delete(NAME)
    heard = []
    assert StageFile(store, NAME, heard.append).missing(TOTAL, 100) == [range(TOTAL)]
    assert "the file beside it is missing" in heard[0]


def test_a_sealed_file_with_fewer_lines_than_asked_for_is_continued(store):
    """As after the end of both files was lost: what is there stays."""
    work(store, size=3, until=3)
    StageFile(store, NAME).seal(3)
    stage = work(store, size=3)
    assert store.read(NAME) == WHOLE
    assert stage.cost == COST


def test_chunks_that_do_not_belong_are_set_aside(store):
    work(store, size=3, until=6)
    store.write(chunk_file(1), store.read(chunk_file(0)))
    other = Store(store.root.parent / "other")
    stage = StageFile(other, NAME)
    stage.commit(2, LINES[2:4], Cost(), {})
    store.write(chunk_file(2), other.read(chunk_file(2)))
    store.write("iteration_1/debate/train.chunks/notes.txt", b"mine")
    heard = []
    stage = StageFile(store, NAME, heard.append)
    assert (stage.done, len(heard)) == (6, 3)
    assert [line["id"] for line in stage.lines()] == TEXTS[:6]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ["chunk", "seal"])
def test_a_disk_that_refuses_changes_nothing_and_can_be_repeated(store, monkeypatch, fault, action):
    number, functions, reason, remedy = FAULTS[fault]
    stage = work(store, until=4)
    if action == "seal":
        stage.commit(4, LINES[4:], cost_of(range(4, 7)), {})
    before = files(store)
    act = {"chunk": lambda: stage.commit(4, LINES[4:], Cost(), {}), "seal": lambda: stage.seal(TOTAL)}[action]
    with monkeypatch.context() as patch:
        fail_with(patch, number, functions)
        with pytest.raises(UserError, match=rf"cannot be written \({reason}\): {remedy}"):
            act()
    assert files(store) == before
    act()
    assert StageFile(store, NAME).done == TOTAL


def test_reading_works_beside_a_process_that_seals(store):
    """The reader lists the chunks, and the writer seals the stage before they are read."""
    stage = work(store, until=6)
    stage.commit(6, LINES[6:], cost_of(range(6, 7)), {"cut": 1})

    class Late(Store):
        def names(self, folder: str = "") -> list[str]:
            names = super().names(folder)
            stage.seal(TOTAL)
            return names

    lines, cost, _ = read_stage(Late(store.root), NAME)
    assert ([line["id"] for line in lines], cost) == (TEXTS, COST)


def test_reading_what_is_not_there(store):
    assert read_stage(store, NAME) == ([], Cost(), {})
    assert not store.root.exists()


def test_a_cost_of_another_version_is_not_damage(store):
    stage = StageFile(store, NAME)
    future = pathlib.Path(store.path(chunk_file(0)))
    stage.commit(0, LINES[:1], Cost(), {})
    header, body = store.read(chunk_file(0)).split(b"\n", 1)
    from mft_jax.runs import chunks

    record = json.loads(header)
    record["cost"] = {"coins": 3}
    record["sha256"] = chunks._sha256(record, body)
    future.write_bytes(json.dumps(record).encode() + b"\n" + body)
    with pytest.raises(UserError, match=r"000000\.jsonl: 'coins' is not a field of a cost"):
        StageFile(store, NAME)
    assert store.exists(chunk_file(0))
