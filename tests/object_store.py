"""Local object stores, which reject requests when tests ask for it.

with AmazonStore() as store:            # or GoogleStore
    store.busy = 3                      # the next three writes get status 503
    store.status = 403                  # or this status
    store.denies_reads = True           # all reads get status 403
    store.options                       # for RemoteAccess, such as {"s3": {...}}

Google's store also supports the protocol of Amazon S3, and obstore uses that.
"""

import http.server
import logging
import threading
from collections.abc import Iterable
from typing import Any, ClassVar, Self
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


class AmazonStore:
    """A store like Amazon S3. written: the keys of all objects that were written, in order."""

    scheme: ClassVar[str] = "s3"

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.busy = 0
        self.status = 503
        self.denies_reads = False
        self.rejected = 0
        self.written: list[str] = []
        self._lock = threading.Lock()
        self._inner = DomainDispatcherApplication(create_backend_app)
        for backend in get_backend("s3").values():
            for each in backend.values():
                each.reset()
        get_backend("s3")["123456789012"]["aws"].create_bucket(BUCKET, "us-east-1")
        self._server: http.server.HTTPServer = make_server(
            "127.0.0.1", 0, self._respond, threaded=True
        )
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        """The address of the bucket."""
        return f"{self.scheme}://{BUCKET}"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        return {
            "s3": {
                "access_key_id": "key",
                "secret_access_key": "secret",
                "endpoint": self.endpoint,
            }
        }

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with the same settings as the options."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def objects(self) -> dict[str, bytes]:
        """Return all objects: key -> content."""
        bucket = get_backend("s3")["123456789012"]["aws"].buckets[BUCKET]
        return {name: key.value for name, key in sorted(bucket.keys.items())}

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        get_backend("s3")["123456789012"]["aws"].put_object(BUCKET, name, content)

    def _rejects(self) -> bool:
        """Return whether to reject the current write."""
        with self._lock:
            if not self.busy:
                return False
            self.busy -= 1
            self.rejected += 1
            return True

    def _respond(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] == "PUT":
            if self._rejects():
                environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
                code = {503: "SlowDown", 403: "AccessDenied", 400: "Invalid"}[self.status]
                start(f"{self.status} {code}", [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]
            self.written.append(environment["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
        elif self.denies_reads:
            start("403 AccessDenied", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]
        return self._inner(environment, start)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class GoogleStore(AmazonStore):
    """A store like Google Cloud Storage."""

    scheme = "gs"

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        return {"gs": {"bearer_token": "token", "base_url": self.endpoint}}

    @property
    def environment(self) -> dict[str, str]:
        return {"GOOGLE_BASE_URL": self.endpoint, "GOOGLE_BEARER_TOKEN": "token"}
