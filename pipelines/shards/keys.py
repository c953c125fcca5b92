"""The key of a sample, by which webdataset groups the members of a tar."""

from pathlib import Path

from pipelines.system.files import open_regular

_BLOCK = 512


def read_key(path: Path, offset: int) -> str:
    """Return the key of the sample whose picture begins at an offset of a tar, or "?"."""
    try:
        with open_regular(path) as file:
            file.seek(offset - _BLOCK)
            return key_of(_header_name(file.read(_BLOCK)))
    except (OSError, ValueError):
        return "?"


def key_of(name: str) -> str:
    """Return the key of a member as webdataset groups: its path up to the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _header_name(block: bytes) -> str:
    """Return the name in a tar header of 512 bytes.

    Raises:
        ValueError: if there are not 512 bytes.
    """
    if len(block) != _BLOCK:
        raise ValueError("no header")
    name = block[:100].split(b"\0", 1)[0]
    # The USTAR format alone has a prefix there.
    if block[257:265] == b"ustar\x0000":
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "replace")
