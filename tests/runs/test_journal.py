import itertools
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
from mft_jax.runs.journal import Journal, journal_path, read_committed

# A stage of five chunks: of two lines, one, none, one with text beyond ASCII, two.
CHUNKS = (("a1", "a2"), ("b1",), (), ("ü \u2028 c",), ("d1", "d2"))


def lines(chunk: int) -> list[str]:
    return [json.dumps({"id": text}, ensure_ascii=False) for text in CHUNKS[chunk]]


def work(path: pathlib.Path, until: int = len(CHUNKS)) -> Journal:
    """What a stage does: opens the journal, and does the chunks that are not done."""
    journal = Journal(path)
    for chunk in range(journal.chunks, until):
        journal.commit(lines(chunk), Cost(new_tokens=chunk + 1, wall_seconds=0.5))
    return journal


def test_lines_and_costs_are_there_after_reopening(tmp_path):
    path = tmp_path / "eval" / "eval.jsonl"
    assert Journal(path).chunks == 0
    work(path, until=2)
    journal = work(path)
    texts = list(itertools.chain(*CHUNKS))
    assert path.read_text(encoding="utf-8").split("\n")[:-1] == [line for c in range(5) for line in lines(c)]
    for opened in (journal, Journal(path)):
        assert opened.chunks == 5
        assert [line["id"] for line in opened.lines()] == texts
        assert opened.cost == Cost(new_tokens=15, wall_seconds=2.5)
    assert read_committed(path) == ([{"id": text} for text in texts], journal.cost)


def test_a_kill_at_any_byte_leaves_no_trace(tmp_path, monkeypatch):
    """Both files cut at every offset, alone and together as one kill does it: redoing the rest gives the same bytes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of recoveries: the disk would take seconds
    whole = tmp_path / "whole" / "train.jsonl"
    work(whole)
    data, journal = whole.read_bytes(), journal_path(whole).read_bytes()
    cuts = [(len(data), end) for end in range(len(journal))] + [(end, len(journal)) for end in range(len(data))]
    cuts += kills(data, journal)
    for number, (data_end, journal_end) in enumerate(cuts):
        path = tmp_path / str(number) / "train.jsonl"
        path.parent.mkdir()
        path.write_bytes(data[:data_end])
        journal_path(path).write_bytes(journal[:journal_end])
        opened = Journal(path)
        committed = [line for chunk in range(opened.chunks) for line in lines(chunk)]
        assert path.read_bytes() == "".join(line + "\n" for line in committed).encode()
        work(path)
        assert (path.read_bytes(), journal_path(path).read_bytes()) == (data, journal)


def kills(data: bytes, journal: bytes) -> list[tuple[int, int]]:
    """(bytes of data, bytes of journal) after a kill at every instant: a chunk's lines grow, then its record."""
    ends = [0] + [json.loads(line)["bytes"] for line in journal.splitlines()]
    records = list(itertools.accumulate((len(line) + 1 for line in journal.splitlines()), initial=0))
    states = []
    for chunk in range(len(CHUNKS)):
        states += [(end, records[chunk]) for end in range(ends[chunk], ends[chunk + 1])]
        states += [(ends[chunk + 1], end) for end in range(records[chunk], records[chunk + 1])]
    return states


def test_a_file_that_was_created_but_not_its_journal(tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_bytes(b'{"id": "half')
    work(path)
    work(tmp_path / "other" / "eval.jsonl")
    assert path.read_bytes() == (tmp_path / "other" / "eval.jsonl").read_bytes()


def test_kill_9(tmp_path):
    """A real process, killed again and again while it works, ends with the bytes of one that was left alone."""
    script = """
import pathlib, sys
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]))
print("open", flush=True)
for chunk in range(journal.chunks, 400):
    journal.commit([f'{{"chunk": {chunk}, "line": {line}}}' for line in range(50)], Cost(new_tokens=1))
"""
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    seen = []
    for delay in (0.0, 0.05, 0.1):
        process = subprocess.Popen([sys.executable, "-c", script, str(killed)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        seen.append(len(read_committed(killed)[0]))
    assert seen == sorted(seen)
    assert seen[0] < 400 * 50
    subprocess.run([sys.executable, "-c", script, str(killed)], check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", script, str(whole)], check=True, capture_output=True)
    assert killed.read_bytes() == whole.read_bytes()
    assert killed.read_bytes().count(b"\n") == 400 * 50
    assert Journal(killed).cost == Cost(new_tokens=400)


def test_an_error_while_committing_can_be_repeated(tmp_path, monkeypatch):
    path = tmp_path / "eval.jsonl"
    journal = work(path, until=1)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        journal.commit(lines(1), Cost())
    monkeypatch.setattr(os, "fsync", real)
    assert journal.chunks == 1
    journal.commit(lines(1), Cost())
    assert [line["id"] for line in Journal(path).lines()] == ["a1", "a2", "b1"]


def test_reading_leaves_an_unfinished_chunk_alone(tmp_path):
    path = tmp_path / "eval.jsonl"
    work(path, until=1)
    before = path.read_bytes() + b'{"id": "unfin'
    path.write_bytes(before)
    assert [line["id"] for line in read_committed(path)[0]] == ["a1", "a2"]
    assert path.read_bytes() == before
    assert read_committed(tmp_path / "nothing.jsonl") == ([], Cost())


def test_what_no_kill_does_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "eval.jsonl"
    work(path)
    data, journal = path.read_bytes(), journal_path(path).read_bytes()
    path.write_bytes(data.replace(b"a1", b"longer", 1))
    with pytest.raises(UserError, match="was changed after chunk 0 was written"):
        Journal(path)
    assert path.read_bytes() == data.replace(b"a1", b"longer", 1)
    path.write_bytes(data)
    journal_path(path).write_bytes(journal.replace(b'"chunk": 1', b'"chunk": 4'))
    with pytest.raises(UserError, match="line 2 is not the record of chunk 1"):
        Journal(path)
    fresh = Journal(tmp_path / "fresh.jsonl")
    with pytest.raises(ValueError, match="line break"):
        fresh.commit(["one\ntwo"], Cost())
