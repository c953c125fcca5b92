"""Object stores on the loopback, which turn requests away where they are told to.

with AmazonStore() as store:            # or GoogleStore
    store.busy = 3                      # the next three writes are answered by 503
    store.answer = 403                  # or by this
    store.options                       # for fsspec's client, as {"s3": {...}}
"""

import http.server
import json
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self
from wsgiref.types import StartResponse, WSGIEnvironment

from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage
from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


class ObjectStore(ABC):
    """See the module. written: the keys of all objects that were written, in order."""

    scheme: ClassVar[str]

    def __init__(self) -> None:
        self.busy = 0
        self.answer = 503
        self.turned_away = 0
        self.written: list[str] = []
        self._lock = threading.Lock()
        self._server = self._make_server()
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        """The address of the bucket."""
        return f"{self.scheme}://{BUCKET}"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    @abstractmethod
    def options(self) -> dict[str, dict[str, Any]]: ...

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What says of the options to a command."""

    @abstractmethod
    def objects(self) -> dict[str, bytes]:
        """Return what the store holds: key -> content."""

    @abstractmethod
    def _make_server(self) -> http.server.HTTPServer: ...

    def _turns_away(self) -> bool:
        """Return whether the write at hand is to be turned away."""
        with self._lock:
            if not self.busy:
                return False
            self.busy -= 1
            self.turned_away += 1
            return True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class AmazonStore(ObjectStore):
    """An S3-compatible store."""

    scheme = "s3"

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._inner = DomainDispatcherApplication(create_backend_app)
        for backend in get_backend("s3").values():
            for each in backend.values():
                each.reset()
        get_backend("s3")["123456789012"]["aws"].create_bucket(BUCKET, "us-east-1")
        super().__init__()

    def _make_server(self) -> http.server.HTTPServer:
        return make_server("127.0.0.1", 0, self._answer, threaded=True)

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

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def objects(self) -> dict[str, bytes]:
        bucket = get_backend("s3")["123456789012"]["aws"].buckets[BUCKET]
        return {name: key.value for name, key in sorted(bucket.keys.items())}

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] == "PUT":
            if self._turns_away():
                environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
                code = {503: "SlowDown", 403: "AccessDenied"}[self.answer]
                start(f"{self.answer} {code}", [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]
            self.written.append(environment["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
        return self._inner(environment, start)


class GoogleStore(ObjectStore):
    """A store such as Google's."""

    scheme = "gs"

    def __init__(self) -> None:
        for name in ("gcp_storage_emulator.server", "gcp_storage_emulator.storage"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        super().__init__()
        self._storage = _NotedStorage(self.written)

    def _make_server(self) -> http.server.HTTPServer:
        return http.server.HTTPServer(("127.0.0.1", 0), self._answer)

    def _answer(self, *arguments: Any) -> RequestHandler:  # noqa: ANN401, as the server gives them
        return _GoogleHandler(self, self._storage, *arguments)

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        return {"gs": {"token": "anon", "endpoint_url": self.endpoint}}

    @property
    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def objects(self) -> dict[str, bytes]:
        found, _ = self._storage.get_file_list(BUCKET)
        return {each["name"]: self._storage.get_file(BUCKET, each["name"]) for each in found}


class _NotedStorage(Storage):
    """In memory, with a bucket; it notes what is written."""

    def __init__(self, written: list[str]) -> None:
        super().__init__(use_memory_fs=True)
        self._written = written
        self.create_bucket(BUCKET, {})

    def create_file(self, bucket_name: str, file_name: str, *rest: object) -> None:
        super().create_file(bucket_name, file_name, *rest)
        self._written.append(file_name)


class _GoogleHandler(RequestHandler):
    def __init__(self, store: GoogleStore, *arguments: object) -> None:
        self._store = store
        super().__init__(*arguments)

    def do_POST(self) -> None:
        if self.path.startswith("/upload/") and self._store._turns_away():
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            words = {400: "an invalid word", 503: "busy"}.get(self._store.answer, "no")
            error = {"code": self._store.answer, "message": words}
            self.send_response(self._store.answer)
            self.end_headers()
            self.wfile.write(json.dumps({"error": error}).encode())
        else:
            super().do_POST()
