"""PNG files without their texts and color profiles, which can be larger than Pillow accepts.

Pillow refuses a PNG whose text or ICC profile unpacks to over 1 MiB (`MAX_TEXT_CHUNK`), or all of
whose texts to over 64 MiB. Their pixels are whole, and neither text nor profile changes them here.
"""

import io
import struct
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})

_HARMLESS_BYTES = 1000
"""Of all texts together: deflate unpacks to at most 1,032 times as much, which is below 1 MiB."""


def without_large_texts(file: IO[bytes]) -> IO[bytes]:
    """Return a PNG without its texts and color profiles where these are large.

    Args:
        file: a PNG, at its beginning.

    Returns:
        The same file, at its beginning, or a smaller one in memory.
    """
    texts: list[tuple[int, int]] = []
    position = len(SIGNATURE)
    file.seek(position)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        # Length, kind, content and checksum.
        end = position + 12 + length
        if kind in _TEXTS:
            texts.append((position, end))
        if kind == b"IEND":
            break
        position = end
        file.seek(position)
    file.seek(0)
    if sum(end - start - 12 for start, end in texts) <= _HARMLESS_BYTES:
        return file
    kept = io.BytesIO()
    position = 0
    for start, end in texts:
        kept.write(file.read(start - position))
        file.seek(end)
        position = end
    kept.write(file.read())
    kept.seek(0)
    return kept
