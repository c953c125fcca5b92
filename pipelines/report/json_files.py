"""Files of JSON that a report is made of, and what is said of those that are none."""

import json
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.system.files import read_regular

LARGEST_FILE = 2**28
"""Bytes of a file that is read whole."""


def read_text(path: Path, remedy: str) -> str:
    """Return the text of a file.

    Args:
        path: of the file.
        remedy: what its reader is told to do where it is no text.

    Raises:
        PipelineError: if its bytes are no UTF-8.
        OSError: if it cannot be read, is no regular file, or larger than `LARGEST_FILE`.
    """
    try:
        return read_regular(path, max_bytes=LARGEST_FILE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{path} is no text (byte {error.start} is no UTF-8); {remedy}"
        ) from error


def parse(text: str, where: str, remedy: str) -> Any:  # noqa: ANN401
    """Return the JSON value of a text.

    Args:
        text: one JSON document.
        where: the text's place, for the message.
        remedy: what its reader is told to do where it is no JSON.

    Raises:
        PipelineError: if it is none, or its brackets lie too deep in one another.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise PipelineError(f"{where} is no JSON ({error}); {remedy}") from error
    except RecursionError as error:
        raise PipelineError(f"{where} is no JSON (brackets in brackets); {remedy}") from error


def is_number(value: object) -> bool:
    """Return whether a JSON value is a number: true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
