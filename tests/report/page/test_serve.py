"""The server of a report: what it answers to whom, and what it writes."""

import contextlib
import http.client
import json
import re
import threading

import pytest

from mft_jax import cli
from mft_jax.config import Cell
from mft_jax.errors import UserError
from mft_jax.report.page import document, serve
from mft_jax.report.page.serve import MAX_BODY, ReportServer
from mft_jax.report.page.write import make_report
from mft_jax.runs import layout
from mft_jax.runs.feedback import read_verdicts
from mft_jax.runs.grid_directory import GridDirectory
from tests.report.page.made_run import data_of, make_run, small_config

ANSWER = {"id": "t1", "answer": "5", "time": "2000-01-01T00:00:00Z"}
MARK = {"id": "t2", "iteration": 1, "agent": 2, "round": 1, "mark": "wrong", "time": "2000-01-01T00:00:00Z"}


@contextlib.contextmanager
def serving(run):
    with ReportServer(run.path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An unfinished run. Another process works on it."""
    run = make_run(tmp_path_factory.mktemp("served") / "run", finished=False)
    run.store.hold()
    yield run
    run.store.release()


@pytest.fixture(scope="module")
def server(run):
    with serving(run) as server:
        yield server


def ask(server, method="GET", path=None, body=None, **headers):
    """(status, headers, body) of a request that the page could make, with other headers: Content_Type="..."."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    own = {"Host": server.hosts[0], "Origin": f"http://{server.hosts[0]}", "Content-Type": "application/json"}
    given = own | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, f"/{server.token}/" if path is None else path, skip_host=True)
    data = json.dumps(body).encode() if not isinstance(body, bytes) else body
    given = {"Content-Length": str(len(data)), **given} if body is not None else given
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(data if body is not None else None)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def send(server, verdict, run="run", **headers):
    status, _, content = ask(server, "POST", f"/{server.token}/verdicts?run={run}", verdict, **headers)
    return status, json.loads(content)


def test_the_page_is_made_anew_each_time(server, run):
    status, headers, content = ask(server)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Cache-Control"] == "no-store"
    assert b"connect-src &#x27;self&#x27;" in content
    assert data_of(content.decode(), "summary")["served"] is True
    send(server, ANSWER)
    (shown,) = data_of(ask(server)[2].decode(), "summary")["runs"]
    assert [own["answer"] for own in shown["feedback"]["verdicts"]] == ["5"]
    run.store.delete(layout.FEEDBACK)


def test_verdicts_are_written_beside_the_run_at_work(server, run):
    assert run.store.is_held()
    assert send(server, ANSWER)[0] == 200
    status, feedback = send(server, MARK)
    assert status == 200
    assert [(own["id"], own.get("mark")) for own in feedback["verdicts"]] == [("t1", None), ("t2", "wrong")]
    assert [own.id for own in read_verdicts(run.store, "arithmetic")] == ["t1", "t2"]
    assert all(own.time > "2026" for own in read_verdicts(run.store, "arithmetic"))  # of this machine
    _, feedback = send(server, ANSWER | {"answer": "7"})
    assert feedback["overruled"] == [0]
    run.store.delete(layout.FEEDBACK)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (ANSWER | {"id": "t9"}, "the run has no such question|no such"),
        (MARK | {"agent": 3}, "has no answer of agent 3 in round 1"),
        (MARK | {"mark": "good"}, "the mark is 'good'"),
        (b"{", "the verdict: not valid JSON"),
        (b"\xff\xfe", "the verdict: not valid UTF-8"),
        (b'{"id": "t1"}\n{"id": "t1"}', "the verdict: not valid JSON"),
        (b"[" * 60_000, "the verdict: not valid JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_verdict_on_the_run_is_refused(server, run, verdict, reason):
    run.store.write(layout.QUESTIONS, json.dumps({"train": ["t1", "t2"], "eval": ["e1", "e2"]}).encode())
    status, answer = send(server, verdict)
    assert status == 400
    assert re.search(reason, answer["error"])
    assert not run.store.exists(layout.FEEDBACK)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": None}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Length": None}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": str(MAX_BODY + 1)}, 413),
        ({"Content_Length": "9" * 4000}, 413),
    ],
    ids=str,
)
def test_requests_of_others_are_refused(server, run, headers, status):
    assert send(server, ANSWER, **headers)[0] == status
    assert not run.store.exists(layout.FEEDBACK)


def test_nothing_is_answered_without_the_token(server, run):
    for path in ("/", "/verdicts", f"/{server.token[:-1]}/", "//", "//[/", "/%00/", f"/x/{server.token}/"):
        assert ask(server, path=path)[0] == 404
        assert ask(server, "POST", path, ANSWER)[0] == 404
    assert ask(server, path=f"/{server.token}/../run.json")[0] == 404
    assert ask(server, "POST", f"/{server.token}/other", ANSWER)[0] == 404
    assert ask(server, path=f"/{server.token}/", Host="evil.example")[0] == 403
    assert ask(server, "PUT", f"/{server.token}/verdicts", ANSWER)[0] == 501
    assert not run.store.exists(layout.FEEDBACK)
    with serving(run) as other:
        assert other.token != server.token


def test_a_broken_file_is_kept_and_named(server, run):
    run.store.write(layout.FEEDBACK, b"broken\n")
    status, answer = send(server, ANSWER)
    assert status == 400
    assert answer["error"].startswith(f"{run.store.path(layout.FEEDBACK)}, line 1: not valid JSON")
    assert run.store.read(layout.FEEDBACK) == b"broken\n"
    (shown,) = data_of(ask(server)[2].decode(), "summary")["runs"]
    assert any("line 1: not valid JSON" in problem for problem in shown["problems"])
    run.store.delete(layout.FEEDBACK)


def test_debates_that_do_not_fit_are_served_too(run, monkeypatch):
    with serving(run) as server:
        small = lambda *args, **named: make_report(*args, **named, max_bytes=0)
        monkeypatch.setattr(serve, "make_report", small)
        places = data_of(ask(server)[2].decode(), "places")
        assert all(document.PART.fullmatch(place.rpartition("/")[2]) for place in places)
        status, headers, content = ask(server, path=f"/{server.token}/{places[0]}")
        assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
        assert content.startswith(b"receivePart(0,")


def test_a_verdict_on_a_grid_goes_to_its_cell(tmp_path):
    names = ("maca-seed_0", "star-seed_0", "ttrl-seed_0")
    labels = {"method": "multiagent_ft", "model": "m", "task": "arithmetic", "override": ""}
    cells = [Cell(name=name, **labels, config=small_config(tmp_path / name)) for name in names]
    GridDirectory(tmp_path).write(cells, {})
    first, second = (make_run(tmp_path / name) for name in names[:2])
    with serving(GridDirectory(tmp_path)) as server:
        shown = data_of(ask(server)[2].decode(), "summary")["runs"]
        assert [run["name"] for run in shown] == list(names[:2])
        status, feedback = send(server, ANSWER, run="star-seed_0")
        assert (status, [own["id"] for own in feedback["verdicts"]]) == (200, ["t1"])
        for other in ("ttrl-seed_0", "../star-seed_0", ""):  # the first of these has not been started
            status, answer = send(server, ANSWER, run=other)
            assert status == 400
            assert "The report has no run" in answer["error"]
    assert [own.id for own in read_verdicts(second.store, "arithmetic")] == ["t1"]
    assert not first.store.exists(layout.FEEDBACK)


def test_what_cannot_be_served_is_one_sentence(run, server, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="is not a run"):
        ReportServer(tmp_path)
    with pytest.raises(UserError, match=r"cannot be served on port \d+ .*: give another --port"):
        ReportServer(run.path, server.server_port)
    with pytest.raises(UserError, match="cannot be served on port 99999"):
        ReportServer(run.path, 99999)
    monkeypatch.setattr("sys.argv", ["mft", "report", "a", "b", "--serve"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--serve shows one run or grid, got 2" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(run, monkeypatch, capsys):
    def interrupted(server):
        assert server.server_address[0] == "127.0.0.1"
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportServer, "serve_forever", interrupted)
    monkeypatch.setattr("sys.argv", ["mft", "report", str(run.path), "--serve"])
    cli.main()
    assert re.fullmatch(
        r"The report is at http://127\.0\.0\.1:\d+/[\w-]{32}/ until Ctrl-C\.\n", capsys.readouterr().out
    )
