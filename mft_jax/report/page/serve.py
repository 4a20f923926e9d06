"""`mft report --serve`: the report of a run or grid on this machine, which writes a person's verdicts into the runs.

It listens on the loopback address only. Its URL has a random token, without which every request is refused. A verdict
is taken only from the page itself: the headers Host and Origin must name this server, so that a page of another site,
which a browser on this machine has open, can neither read the report nor send verdicts.
"""

import dataclasses
import hmac
import http.server
import json
import pathlib
import secrets
import sys
import threading
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from mft_jax.errors import UserError
from mft_jax.report.page.document import Document
from mft_jax.report.page.feedback import feedback_data
from mft_jax.report.page.write import make_report, runs_in
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.environment import now
from mft_jax.runs.feedback import add_verdicts, parse_verdict
from mft_jax.runs.rulings import feedback_on
from mft_jax.tasks.answers import equivalent

HOST = "127.0.0.1"
MAX_BODY = 64 * 1024  # bytes of a verdict
_FOLDER = "debates"  # of the debates that do not fit into the page
_SECONDS = 30  # after which a connection that says nothing is closed

Answer = tuple[HTTPStatus, str, bytes]  # (status, content type, body)


class ReportServer(http.server.ThreadingHTTPServer):
    """Serves the report of a run or grid until `shutdown`. Each time the page is opened, the report is made anew."""

    daemon_threads = True

    def __init__(self, run_dir: str | pathlib.Path, port: int = 0):
        """Binds the address; port 0 is a free one. Raises UserError if there is no run, or if the port is taken."""
        self.path = run_dir
        for run in self.runs().values():
            run.store.check_local("mft report --serve")
            run.config()
        self.token = secrets.token_urlsafe(24)
        self._making, self._document = threading.Lock(), None
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"The report cannot be served on port {port} ({error}): give another --port.") from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports an error in the terminal, except that a browser has gone away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """The address to open in a browser."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of this server in a header Host."""
        return tuple(f"{name}:{self.server_port}" for name in (HOST, "localhost"))

    def runs(self) -> dict[str, RunDirectory]:
        """The runs of the report by their names in the page: the run, or the cells of the grid that have been started."""
        return {name: RunDirectory(path) for path, name in runs_in([self.path])[0]}

    def document(self, *, anew: bool) -> Document:
        """The report; `anew`: made again from the files of the runs. Raises UserError as `make_report` does."""
        with self._making:
            if anew or self._document is None:
                self._document, _ = make_report([self.path], _FOLDER, served=True)
            return self._document

    def record(self, name: str, body: bytes) -> dict[str, Any]:
        """Adds the verdict in `body` (JSON) to feedback.jsonl of the run with this name.

        Returns all verdicts on the run, as data of the page. The time of the verdict is that of this machine. Raises
        UserError if there is no such run, if `body` is not a verdict on a debate of the run, or if it cannot be written.
        """
        run = self.runs().get(name)
        if run is None:
            raise UserError(f"The report has no run {name!r}: open its address again.")
        task = run.config().task.name
        verdict = dataclasses.replace(parse_verdict(body, "the verdict", task), time=now())
        problems = feedback_on(run.store, [verdict], equivalent).problems
        if problems:
            raise UserError(problems[0])
        add_verdicts(run.store, [verdict], task)
        return feedback_data(run.store, task, lambda problem: None)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _SECONDS
    server_version, sys_version = "mft", ""

    @property
    def report(self) -> ReportServer:
        return cast("ReportServer", self.server)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the terminal shows the address only."""

    def _answer(self, make: Callable[[], Answer]) -> None:
        try:
            status, kind, body = self._refusal() or make()
        except UserError as error:
            status, kind, body = _problem(HTTPStatus.BAD_REQUEST, str(error))
        self.close_connection = True
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Connection": "close",
            "Cross-Origin-Resource-Policy": "same-origin", "Content-Security-Policy": "frame-ancestors 'none'",
        }  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refusal(self) -> Answer | None:
        """The answer to a request that is not meant for this server, or does not know its token."""
        if self.headers.get("Host") not in self.report.hosts:
            return _problem(HTTPStatus.FORBIDDEN, "This server is for this machine only.")
        if not hmac.compare_digest(self._parts()[0].encode(), self.report.token.encode()):
            return _problem(HTTPStatus.NOT_FOUND, "Nothing is here: open the whole address that mft report has shown.")
        return None

    def _parts(self) -> tuple[str, str, str]:
        """(the token, the rest of the path, the query)."""
        path, _, query = self.path.partition("?")
        token, _, rest = path.lstrip("/").partition("/")
        return token, rest, query

    def _get(self) -> Answer:
        name = self._parts()[1]
        if not name:
            return HTTPStatus.OK, "text/html; charset=utf-8", self.report.document(anew=True).page
        part = self.report.document(anew=False).parts.get(name.removeprefix(f"{_FOLDER}/"))
        if part is None:
            return _problem(HTTPStatus.NOT_FOUND, "There is no such file.")
        return HTTPStatus.OK, "text/javascript; charset=utf-8", part

    def _post(self) -> Answer:
        if self._parts()[1] != "verdicts":
            return _problem(HTTPStatus.NOT_FOUND, "Verdicts are taken at another address.")
        if self.headers.get("Origin") not in [f"http://{host}" for host in self.report.hosts]:
            return _problem(HTTPStatus.FORBIDDEN, "Verdicts are taken from this report only.")
        if self.headers.get_content_type() != "application/json":
            return _problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A verdict is sent as application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            return _problem(HTTPStatus.LENGTH_REQUIRED, "The length of the verdict is missing.")
        if len(length) > 9 or int(length) > MAX_BODY:
            return _problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A verdict has at most {MAX_BODY} bytes.")
        (name,) = urllib.parse.parse_qs(self._parts()[2]).get("run", [""])[:1]
        return _json(HTTPStatus.OK, self.report.record(name, self.rfile.read(int(length))))


def _json(status: HTTPStatus, value: Any) -> Answer:
    return status, "application/json", json.dumps(value).encode()


def _problem(status: HTTPStatus, sentence: str) -> Answer:
    return _json(status, {"error": sentence})
