"""An S3-compatible store on the loopback, which turns requests away where it is told to.

with ObjectStore() as store:
    store.busy = 3                      # the next three writes are answered by 503
    store.options                       # for fsspec's client, as {"s3": {...}}
"""

import logging
import threading
from collections.abc import Iterable
from typing import Any, Self
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


class ObjectStore:
    """See the module. written: the keys of all objects that were written, in order."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.busy = 0
        self.turned_away = 0
        self.written: list[str] = []
        self._lock = threading.Lock()
        self._inner = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        # Its own client's patience is another's affair: here our own is looked at.
        return {
            "s3": {
                "key": "key",
                "secret": "secret",
                "endpoint_url": self.endpoint,
                "config_kwargs": {"retries": {"max_attempts": 0}},
            }
        }

    def objects(self) -> dict[str, bytes]:
        """Return what the store holds: key -> content."""
        bucket = get_backend("s3")["123456789012"]["aws"].buckets[BUCKET]
        return {name: key.value for name, key in sorted(bucket.keys.items())}

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] == "PUT":
            with self._lock:
                if self.busy:
                    self.busy -= 1
                    self.turned_away += 1
                    environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
                    start("503 Slow Down", [("Content-Type", "application/xml")])
                    return [b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"]
                self.written.append(environment["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
        return self._inner(environment, start)

    def __enter__(self) -> Self:
        for backend in get_backend("s3").values():
            for each in backend.values():
                each.reset()
        self._thread.start()
        get_backend("s3")["123456789012"]["aws"].create_bucket(BUCKET, "us-east-1")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
