"""JSON from disks and networks, read into typed structures: what does not fit is one error."""

from typing import Annotated, TypeVar

import msgspec

from pipelines.errors import PipelineError

Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""64 hexadecimal digits, lower-case."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
"""A number of samples or of bytes."""

FileName = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.)[^/\\\x00-\x1f\ud800-\udfff]{1,255}\Z")]
"""The name of a file inside a known folder: no path, not hidden, no control characters."""

T = TypeVar("T")


def read_json(content: bytes, kind: type[T], where: str, remedy: str) -> T:
    """Decode JSON into a type, or say which field is wrong.

    Args:
        content: JSON in UTF-8.
        kind: a msgspec.Struct, a dataclass, or another type that msgspec knows.
        where: the name of the file, for the error.
        remedy: what to do about a damaged one, for the end of the error.

    Raises:
        PipelineError: if it is not JSON, or a field is missing, of another type or out of range.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # ValidationError is a DecodeError; its message names the field.
        raise PipelineError(f"{where} is damaged: {error}; {remedy}") from error
