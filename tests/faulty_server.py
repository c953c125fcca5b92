"""A local web server for the files of a folder, with faults that tests choose.

with FaultyServer(folder) as server:
    server.faults["a.tar"] = [cut(5000), busy(), ...]      # faults of the next requests
    server.always["b.tar"] = flip(17)                      # fault of all further requests
    server.url("a.tar"); server.requests("a.tar")          # requested ranges; None for all
"""

import http.server
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

PIECE = 4096


@dataclass
class Response:
    """A response of the server, which a fault may change.

    Attributes:
        content: content of the file.
        begin: first byte of the range.
        status: status code.
        ranges: whether Range headers are honored.
        length: whether Content-Length is sent.
        n_sent: number of body bytes after which the connection is cut.
        stall_at: number of body bytes after which nothing more is sent on the open connection.
        pause_s: pause between two pieces.
        piece: size of a piece in bytes.
        endless: whether zeros follow the body forever.
        headers: further headers.
    """

    content: bytes
    begin: int = 0
    status: int = 200
    ranges: bool = True
    length: bool = True
    n_sent: int | None = None
    stall_at: int | None = None
    pause_s: float = 0.0
    piece: int = PIECE
    endless: bool = False
    headers: dict[str, str] = field(default_factory=dict)


Fault = Callable[[Response], None]


def cut(after: int) -> Fault:
    """Cut the connection after a number of bytes of the body."""

    def change(response: Response) -> None:
        response.n_sent = after

    return change


def stall(after: int) -> Fault:
    """Send nothing after a number of bytes of the body."""

    def change(response: Response) -> None:
        response.stall_at = after

    return change


def slowly(pause_s: float) -> Fault:
    """Pause before each piece."""

    def change(response: Response) -> None:
        response.pause_s = pause_s

    return change


def dripping(pause_s: float) -> Fault:
    """Send one byte at a time, with pauses."""

    def change(response: Response) -> None:
        response.pause_s, response.piece = pause_s, 1

    return change


def endless(response: Response) -> None:
    """Send no length, and zeros after the body forever."""
    response.length, response.endless = False, True


def status(code: int, **headers: str) -> Fault:
    """Respond with a status; headers: names have underscores for hyphens."""

    def change(response: Response) -> None:
        response.status = code
        response.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    return change


def flip(at: int) -> Fault:
    """Flip a bit of the file's byte `at`."""

    def change(response: Response) -> None:
        content = bytearray(response.content)
        content[at] ^= 1
        response.content = bytes(content)

    return change


def replaced(content: bytes) -> Fault:
    """Serve other content."""

    def change(response: Response) -> None:
        response.content = content

    return change


def without_ranges(response: Response) -> None:
    """Ignore Range headers."""
    response.ranges = False


def without_length(response: Response) -> None:
    """Send no length: the end of the connection is the end of the body."""
    response.length = False


def another_range(response: Response) -> None:
    """Respond with another range than requested."""
    response.headers["Content-Range"] = f"bytes 7-9/{len(response.content)}"


def of(*faults: Fault) -> Fault:
    """Return several faults as one."""

    def change(response: Response) -> None:
        for fault in faults:
            fault(response)

    return change


class FaultyServer:
    """The server; see the docstring of the module."""

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self._scheme = "http" if tls is None else "https"
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.ended = threading.Event()
        self._requests: list[tuple[str, str | None]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.respond(self)

            def do_HEAD(self) -> None:
                outer.respond_to_head(self)

            def log_message(self, format: str, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def url(self, name: str = "") -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}/{name}"

    def requests(self, name: str) -> list[str | None]:
        """Return the Range header, or None, of each request for a file."""
        with self._lock:
            return [span for asked, span in self._requests if asked == name]

    def respond_to_head(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Send the length of a file, without faults and without counting the request."""
        path = self.folder / unquote(urlsplit(handler.path).path).lstrip("/")
        handler.send_response(200 if path.is_file() else 404)
        if path.is_file():
            handler.send_header("Content-Length", str(path.stat().st_size))
            handler.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        handler.end_headers()

    def respond(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = unquote(urlsplit(handler.path).path).lstrip("/")
        span = handler.headers.get("Range")
        with self._lock:
            self._requests.append((name, span))
            waiting = self.faults.get(name, [])
            fault = waiting.pop(0) if waiting else self.always.get(name)
        path = self.folder / name
        response = Response(content=path.read_bytes() if path.is_file() else b"")
        if not path.is_file():
            response.status = 404
        if fault is not None:
            fault(response)
        _send(handler, response, span, self.ended)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _send_status(handler: http.server.BaseHTTPRequestHandler, response: Response) -> None:
    handler.send_response(response.status)
    for name, value in response.headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def _send(
    handler: http.server.BaseHTTPRequestHandler,
    response: Response,
    span: str | None,
    ended: threading.Event,
) -> None:
    handler.close_connection = True
    if response.status != 200:
        _send_status(handler, response)
        return
    body = response.content
    if span is not None and response.ranges:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", span)
        assert match is not None, span
        begin, end = int(match[1]), min(int(match[2] or len(body) - 1), len(body) - 1)
        if begin >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206)
        content_range = f"bytes {begin}-{end}/{len(body)}"
        handler.send_header("Content-Range", response.headers.get("Content-Range", content_range))
        body = body[begin : end + 1]
    else:
        handler.send_response(200)
    # Clients of object stores require these headers.
    handler.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
    handler.send_header("ETag", '"1"')
    if response.length:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    sent = 0
    try:
        while sent < len(body):
            piece = body[sent : sent + response.piece]
            if response.stall_at is not None and sent + len(piece) > response.stall_at:
                handler.wfile.write(body[sent : response.stall_at])
                handler.wfile.flush()
                ended.wait(100)
                return
            if response.n_sent is not None and sent + len(piece) > response.n_sent:
                handler.wfile.write(body[sent : response.n_sent])
                handler.wfile.flush()
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            handler.wfile.write(piece)
            sent += len(piece)
            time.sleep(response.pause_s)
        while response.endless and not ended.is_set():
            handler.wfile.write(bytes(2**16))
    except OSError:
        # The client has closed the connection.
        return
