"""JSON from disks and networks, read into typed structures: what does not fit is one error."""

from typing import Annotated, TypeVar, get_args

import msgspec

from pipelines.errors import PipelineError

Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""64 hexadecimal digits, lower-case."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
"""A number of samples or of bytes."""

FileName = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.)[^/\\\x00-\x1f\ud800-\udfff]{1,255}\Z")]
"""The name of a file inside a known folder: no path, not hidden, no control characters."""

Label = Annotated[str, msgspec.Meta(pattern=r"\A[^/\x00-\x1f\ud800-\udfff]{0,255}\Z")]
"""A short text that may become a part of a file's name: no path, no control characters."""

_PATTERNS = {
    Sha256: "64 hexadecimal digits",
    FileName: "the name of a file in the folder, without a path",
    Label: "a short name without slashes and control characters",
}
"""What msgspec tells by the pattern, in words."""

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
        raise PipelineError(f"{where} is damaged: {_in_words(error)}; {remedy}") from error


def _in_words(error: Exception) -> str:
    said = str(error)
    for kind, words in _PATTERNS.items():
        (rule,) = get_args(kind)[1:]
        said = said.replace(f"`str` matching regex {rule.pattern!r}", words)
    return said
