"""An S3 server seen through a bad line: an HTTP proxy on loopback whose faults a test chooses and counts.

* A fault meets the requests that match a pattern (method, path, range), a number of times or for good.
* What no fault meets passes unchanged; a fault that was never met has a count of nought.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal["500", "503", "silence", "cut", "flip", "full", "swap"]
_CODES = {"500": "InternalError", "503": "SlowDown", "507": "XMinioStorageFull"}


@dataclass
class Fault:
    """What goes wrong with which requests."""

    kind: Kind
    """An answer of that status; silence until the client hangs up; a body cut in its middle; one bit of it flipped;
    no room for an upload; or something done to the store just before an honest answer."""
    request: str
    """Pattern of a request as `FaultyProxy.requests` has it."""
    times: int | None = None
    """How many requests it meets; None: all."""
    swap: Callable[[], object] = object
    """What is done to the store."""
    met: int = 0

    def meets(self, request: str) -> bool:
        """Whether it meets a request; counted if so."""
        is_met = (self.times is None or self.met < self.times) and bool(re.match(self.request, request))
        self.met += is_met
        return is_met


class FaultyProxy:
    """Serves while the block runs; `faults` may be changed at any time."""

    def __init__(self, target: str) -> None:
        """`target` is the URL of the real server."""
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """Method, path with bucket, and range if there is one."""
        handler = type("Handler", (_Handler,), {"proxy": self, "target": urlsplit(target).netloc})
        self._lock, self._server = Lock(), ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_of(self, request: str) -> Fault | None:
        """Returns the first fault that meets a request, and notes both."""
        with self._lock:
            self.requests.append(request)
            return next((fault for fault in self.faults if fault.meets(request)), None)


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    target: str
    protocol_version = "HTTP/1.1"  # or the client waits a second for leave to send a body
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
        place = f"{self.command} {urlsplit(self.path).path} {self.headers['Range'] or ''}"
        fault = self.proxy.fault_of(place.rstrip())
        kind = fault.kind if fault else ""
        if kind == "silence":
            self.connection.recv(1)
            self.close_connection = True
        elif kind in ("500", "503", "full"):
            status = {"full": "507"}.get(kind, kind)
            refusal = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>".encode()
            self._answer(int(status), {"Content-Type": "application/xml"}, refusal)
        else:
            if fault and kind == "swap":
                fault.swap()
            self._pass_on(sent, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815  the names that http.server calls

    def _pass_on(self, sent: bytes, kind: str) -> None:
        server = HTTPConnection(self.target)
        server.request(self.command, self.path, sent, {k: v for k, v in self.headers.items() if k != "Expect"})
        answer = server.getresponse()
        body = answer.read()
        server.close()
        if kind == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        headers = {k: v for k, v in answer.headers.items() if k not in ("Connection", "Transfer-Encoding")}
        self._answer(answer.status, headers, body, cut=kind == "cut")

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection |= cut

    def log_message(self, *_: object) -> None:
        pass
