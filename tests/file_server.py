"""A web server for files that logs its responses: python file_server.py FOLDER PORT LOG.

nginx is used if it is installed. Both write lines of "address status bytes path".
"""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = """
daemon off; master_process off; worker_processes 1; user root;
pid {work}/nginx.pid; error_log {work}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format responses '$remote_addr $status $body_bytes_sent $uri';
    access_log {log} responses;
    client_body_temp_path {work}/a; proxy_temp_path {work}/b; fastcgi_temp_path {work}/c;
    uwsgi_temp_path {work}/d; scgi_temp_path {work}/e;
    server {{ listen {port}; root {folder}; }}
}}
"""


@contextmanager
def served(folder: Path, port: int, work: Path, before: Sequence[str] = ()) -> Iterator[Path]:
    """Serve a folder while the block runs, and yield the log.

    Args:
        folder: the folder.
        port: port of the server.
        work: folder for the log and the files of nginx.
        before: words before the command of the server, as in ("ip", "netns", "exec", NAME).
    """
    log = work / "access.log"
    if shutil.which("nginx") is not None:
        text = CONFIGURATION.format(work=work, log=log, port=port, folder=folder)
        (work / "nginx.conf").write_text(text)
        command = ["nginx", "-p", str(work), "-c", str(work / "nginx.conf")]
    else:
        command = [sys.executable, __file__, str(folder), str(port), str(log)]
    running = subprocess.Popen([*before, *command])
    try:
        _wait_for(port, before)
        yield log
    finally:
        running.terminate()
        running.wait()


def _wait_for(port: int, before: Sequence[str]) -> None:
    """Wait until the server listens; the connection is made where the server runs."""
    connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
    for _ in range(100):
        done = subprocess.run([*before, sys.executable, "-c", connect], capture_output=True)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise TimeoutError(f"no server listens at port {port}")


def downloads(log: Path, address: str) -> dict[str, list[int]]:
    """Return the bytes of each response for each tar that an address requested."""
    found: dict[str, list[int]] = {}
    for line in log.read_text().splitlines():
        who, status, n_bytes, path = line.split()
        if who == address and path.endswith(".tar") and status in {"200", "206"}:
            found.setdefault(path.rpartition("/")[2], []).append(int(n_bytes))
    return found


class _LoggingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs a line for each response."""

    log: Path
    lock = threading.Lock()

    def log_request(self, code: object = "-", _size: object = "-") -> None:
        path = Path(self.translate_path(self.path))
        n_bytes = path.stat().st_size if path.is_file() else 0
        with self.lock, self.log.open("a") as file:
            status = int(code) if isinstance(code, int) else code
            file.write(f"{self.client_address[0]} {status} {n_bytes} {self.path}\n")


def main(folder: str, port: str, log: str) -> None:
    handler = type("Handler", (_LoggingHandler,), {"log": Path(log)})
    server = http.server.ThreadingHTTPServer(
        ("0.0.0.0", int(port)), functools.partial(handler, directory=folder)
    )
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
