"""A web server on the loopback that serves files of a folder, faultily where it is told to.

with FaultyServer(folder) as server:
    server.faults["a.tar"] = [cut(5000), busy(), ...]      # of the next requests for it
    server.always["b.tar"] = flip(17)                      # of all further ones
    server.url("a.tar"); server.requests("a.tar")          # what was asked: ranges, None: all
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
class Answer:
    """What the server is about to send, for a fault to change.

    begin: of the range. n_sent: body bytes after which the connection is cut. stall_at: body bytes
    after which nothing more is sent, though the connection stays. pause_s: between two pieces of
    `piece` bytes. endless: whether zeros follow the body for ever.
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


Fault = Callable[[Answer], None]


def cut(after: int) -> Fault:
    """Cut the connection after so many bytes of the body."""

    def change(answer: Answer) -> None:
        answer.n_sent = after

    return change


def stall(after: int) -> Fault:
    """Fall silent after so many bytes of the body."""

    def change(answer: Answer) -> None:
        answer.stall_at = after

    return change


def slowly(pause_s: float) -> Fault:
    """Pause before each piece."""

    def change(answer: Answer) -> None:
        answer.pause_s = pause_s

    return change


def dripping(pause_s: float) -> Fault:
    """Send a byte at a time, with a pause before each."""

    def change(answer: Answer) -> None:
        answer.pause_s, answer.piece = pause_s, 1

    return change


def endless(answer: Answer) -> None:
    """Say no length, and let zeros follow the body for ever."""
    answer.length, answer.endless = False, True


def status(code: int, **headers: str) -> Fault:
    """Answer with this status; headers: with underscores for hyphens."""

    def change(answer: Answer) -> None:
        answer.status = code
        answer.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    return change


def flip(at: int) -> Fault:
    """Flip a bit of the file's byte `at`."""

    def change(answer: Answer) -> None:
        content = bytearray(answer.content)
        content[at] ^= 1
        answer.content = bytes(content)

    return change


def replaced(content: bytes) -> Fault:
    """Serve other content."""

    def change(answer: Answer) -> None:
        answer.content = content

    return change


def without_ranges(answer: Answer) -> None:
    """Ignore that a range is asked for."""
    answer.ranges = False


def without_length(answer: Answer) -> None:
    """Say no length: the end of the connection is the end of the body."""
    answer.length = False


def another_range(answer: Answer) -> None:
    """Answer with a range that begins elsewhere."""
    answer.headers["Content-Range"] = f"bytes 7-9/{len(answer.content)}"


def of(*faults: Fault) -> Fault:
    """Return several faults as one."""

    def change(answer: Answer) -> None:
        for fault in faults:
            fault(answer)

    return change


class FaultyServer:
    """See the module."""

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
                outer.answer(self)

            def do_HEAD(self) -> None:
                outer.answer_head(self)

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

    def answer_head(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Tell how long a file is; that is neither faulty nor counted."""
        path = self.folder / unquote(urlsplit(handler.path).path).lstrip("/")
        handler.send_response(200 if path.is_file() else 404)
        if path.is_file():
            handler.send_header("Content-Length", str(path.stat().st_size))
            handler.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        handler.end_headers()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = unquote(urlsplit(handler.path).path).lstrip("/")
        span = handler.headers.get("Range")
        with self._lock:
            self._requests.append((name, span))
            waiting = self.faults.get(name, [])
            fault = waiting.pop(0) if waiting else self.always.get(name)
        path = self.folder / name
        answer = Answer(content=path.read_bytes() if path.is_file() else b"")
        if not path.is_file():
            answer.status = 404
        if fault is not None:
            fault(answer)
        _send(handler, answer, span, self.ended)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _send_status(handler: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.send_response(answer.status)
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def _send(
    handler: http.server.BaseHTTPRequestHandler,
    answer: Answer,
    span: str | None,
    ended: threading.Event,
) -> None:
    handler.close_connection = True
    if answer.status != 200:
        _send_status(handler, answer)
        return
    body = answer.content
    if span is not None and answer.ranges:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", span)
        assert match is not None, span
        begin, end = int(match[1]), min(int(match[2] or len(body) - 1), len(body) - 1)
        if begin >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206)
        content_range = f"bytes {begin}-{end}/{len(body)}"
        handler.send_header("Content-Range", answer.headers.get("Content-Range", content_range))
        body = body[begin : end + 1]
    else:
        handler.send_response(200)
    # Without it, clients of object stores take nothing.
    handler.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
    handler.send_header("ETag", '"1"')
    if answer.length:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    sent = 0
    try:
        while sent < len(body):
            piece = body[sent : sent + answer.piece]
            if answer.stall_at is not None and sent + len(piece) > answer.stall_at:
                handler.wfile.write(body[sent : answer.stall_at])
                handler.wfile.flush()
                ended.wait(100)
                return
            if answer.n_sent is not None and sent + len(piece) > answer.n_sent:
                handler.wfile.write(body[sent : answer.n_sent])
                handler.wfile.flush()
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            handler.wfile.write(piece)
            sent += len(piece)
            time.sleep(answer.pause_s)
        while answer.endless and not ended.is_set():
            handler.wfile.write(bytes(2**16))
    except OSError:
        # Whoever asked has gone.
        return
