"""Object stores through obstore: Amazon S3 (s3://), Google Cloud (gs://) and Azure (az://).

Run as a script, this module writes one object to its standard output. obstore's threads do not
survive a fork: a request of a forked process would wait forever. Loaders fork their workers, so
each object is read in a new process (33 ms). Processes that write to a store are not forked and
call the functions directly.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pipelines.errors import install_extra

SCHEMES = ("s3", "gs", "az")

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes after which the same request may succeed: RFC 9110 sections 15.5 and 15.6, RFC 6585
section 4, RFC 8470 section 5.2."""

FailureKind = Literal["busy", "absent", "denied", "certificate", "short", "refused"]

_KIND_OF_STATUS: dict[int, FailureKind] = {
    **dict.fromkeys(BUSY, "busy"),
    **dict.fromkeys((401, 403), "denied"),
    **dict.fromkeys((404, 410), "absent"),
    416: "short",
}

_HTTP_ERRORS = {
    "Connect": "cannot connect",
    "Timeout": "the server did not respond in time",
    "Interrupted": "the connection was cut",
}
"""obstore's kind of an error below HTTP -> its description."""

_CREDENTIAL_REQUESTS = (
    *("/latest/api/token", "/latest/meta-data", "computeMetadata", "/metadata/identity"),
    "token request",
)
"""Parts of the URLs from which obstore requests credentials if the environment has none."""

_CHUNK_BYTES = 2**14
"""Small, because progress is counted, and bytes are kept, chunk by chunk."""

_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_")

_opened: dict[tuple[Any, ...], Any] = {}
_first_process: int | None = None


class Failure(Exception):
    """Raised when one attempt to reach a server fails; the message may contain secrets.

    Attributes:
        kind: "busy" if the same request may succeed later; all other kinds are final. "short" if
            the object has fewer bytes than the requested offset.
        pause_s: seconds that the server asks to wait before the next attempt.
    """

    def __init__(self, message: str, kind: FailureKind, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.pause_s = pause_s


def status_failure(status: int, message: str, pause_s: float = 0.0) -> Failure:
    """Return the failure that an HTTP status code stands for."""
    return Failure(f"{status} {message}".strip(), _KIND_OF_STATUS.get(status, "refused"), pause_s)


def open_store(url: str, options: Mapping[str, Any], stall_s: float) -> tuple[Any, str]:
    """Return obstore's store of an address, and the key of the object in it.

    Calls with the same settings share a store and its connections.

    Args:
        url: "SCHEME://BUCKET/KEY".
        options: obstore's configuration of this kind of store; overrides the environment.
        stall_s: seconds without a byte after which a request fails.

    Raises:
        Failure: if the configuration is not valid.
        RuntimeError: in a process that was forked from one that has used a store.
    """
    global _first_process
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid():
        raise RuntimeError("a forked process cannot use its parent's object stores; spawn it")
    scheme, _, path = url.partition("://")
    bucket, _, key = path.partition("/")
    variables = (item for item in os.environ.items() if item[0].startswith(_VARIABLES))
    settings = (scheme, bucket, stall_s, repr(sorted(options.items())), *sorted(variables))
    if settings in _opened:
        return _opened[settings], key
    arguments: dict[str, Any] = {
        "client_options": {
            # For endpoints that are configured with http; the default endpoints use https.
            "allow_http": True,
            "connect_timeout": f"{stall_s * 1000:.0f}ms",
            "read_timeout": f"{stall_s * 1000:.0f}ms",
            "timeout": "7days",
        },
        # Retries are counted and reported by the caller, which knows the received bytes.
        "retry_config": {"max_retries": 0},
    }
    stores = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        if scheme.lower() == "s3":
            arguments |= _profile(options)
        _opened[settings] = stores[scheme.lower()](bucket, **arguments, **options)
    except (BaseError, ValueError) as error:
        raise store_failure(error) from error
    return _opened[settings], key


def store_failure(error: Exception) -> Failure:
    """Return the failure that an error of obstore stands for."""
    words = str(error)
    first = words.partition("\n")[0]
    status = re.search(r"status code: (\d{3})( [A-Z][A-Za-z -]*)?", words)
    busy = status is not None and int(status[1]) in BUSY
    if not busy and any(request in first for request in _CREDENTIAL_REQUESTS):
        remedy = "" if find_spec("boto3") else f"; profiles of ~/.aws need {install_extra('s3')}"
        return Failure(f"no credentials in the environment{remedy}", "denied")
    if "configured region" in first:
        return Failure("the bucket is in another region; set AWS_REGION", "refused")
    if status is not None:
        code = re.search(r"<Code>(\w+)</Code>(?:<Message>([^<]*))?", words)
        message = (status[2] or "").strip() + (f" ({code[1]}: {code[2]})" if code else "")
        return status_failure(int(status[1]), message)
    if isinstance(error, FileNotFoundError):
        return Failure("not found", "absent")
    if "certificate" in words or "UnknownIssuer" in words:
        return Failure("its certificate is not trusted", "certificate")
    if kind := re.search(r"HttpError \{\s*kind: (\w+)", words):
        return Failure(_HTTP_ERRORS.get(kind[1], first), "busy")
    return Failure(first, "refused")


def _profile(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return credentials and region of a profile in ~/.aws, which obstore does not read."""
    in_options = "access_key_id" in options or "skip_signature" in options
    in_environment = {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"} & os.environ.keys()
    folder = Path.home() / ".aws"
    if in_options or in_environment or not folder.is_dir() or find_spec("boto3") is None:
        return {}
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return {}
    except BotoCoreError as error:
        raise Failure(str(error), "denied") from error
    found: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    if session.region_name is not None and "region" not in options:
        found["region"] = session.region_name
    return found


def _write_object(request: Mapping[str, Any], output: BinaryIO) -> None:
    """Write the size of an object as a line of text, and then its bytes from an offset."""
    import obstore
    from obstore.exceptions import BaseError

    store, key = open_store(request["url"], request["options"], request["stall_s"])
    offset = request["offset"]
    try:
        found = obstore.get(store, key, options={"range": {"offset": offset}} if offset else None)
        output.write(b"%d\n" % found.meta["size"])
        for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
            output.write(chunk)
            output.flush()
    except (BaseError, FileNotFoundError, ValueError) as error:
        raise store_failure(error) from error


def _main() -> int:
    try:
        _write_object(json.load(sys.stdin), sys.stdout.buffer)
    except Failure as failure:
        print(json.dumps({"kind": failure.kind, "message": str(failure)}), file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:
        # The parent has stopped reading.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
