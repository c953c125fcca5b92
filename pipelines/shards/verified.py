"""Files whose SHA-256 was checked: once a node, and again only when a file changes.

    CACHE/verified/KEY.json     what was found of one path, and what the file looked like then
                   XX.lock      who computes a hash; of the keys that begin with XX

Local shards and the files in the cache are both held to their hash so. A later open costs one look
at the file's status. The time of the last change of the inode is part of it: a copy that restores
the modification time, or a flipped bit with both restored, differs. What the disk itself returns
wrong, with the status as it was, shows only where the file is hashed again: `pixmix-shard verify`.
"""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import msgspec

from pipelines.errors import PipelineError
from pipelines.shards.cache import ShardCache
from pipelines.shards.format import ShardSet
from pipelines.system.files import (
    Sha256,
    file_sha256,
    folder_lock,
    read_regular,
    sha256,
    write_file,
)
from pipelines.system.progress import Progress, no_progress

_MOST_STAMP_BYTES = 2**16

_log = logging.getLogger(__name__)


class _Look(msgspec.Struct, frozen=True, kw_only=True):
    """What changes when a file is written to or replaced."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int


class _Stamp(_Look, frozen=True, kw_only=True):
    """What was found of a file, as it is remembered."""

    path: str
    sha256: Sha256


_found: dict[_Look, str] = {}
"""The SHA-256 of what this process has looked at; a forked one knows of it."""


def verified_once(path: Path, expected_sha256: str, n_bytes: int, cache: ShardCache) -> None:
    """See that a local file has its content, by reading it the first time only.

    Of many processes that ask at once, one reads it.

    Args:
        path: the file.
        expected_sha256: of its content.
        n_bytes: its length.
        cache: where what was found is remembered.

    Raises:
        PipelineError: if it is missing or another one.
        OSError: if it cannot be read.
    """
    found = _sha256_of(path, n_bytes, cache)
    if found != expected_sha256:
        raise PipelineError(
            f"{path} has SHA-256 {found}, the manifest says {expected_sha256}; copy it again from "
            "where the set was made, or, if it was changed on purpose, run pixmix-shard index again"
        )


def is_as_hashed(path: Path, expected_sha256: str, cache: ShardCache) -> bool:
    """Return whether a file still has its content; see `verified_once`.

    Raises:
        OSError: if it cannot be read, or is gone.
    """
    return _sha256_of(path, path.stat().st_size, cache) == expected_sha256


def remember(path: Path, its_sha256: str, cache: ShardCache) -> None:
    """Remember the hash of a file that was hashed as it was written.

    Raises:
        OSError: if it is gone.
    """
    look = _look_of(path)
    _found[look] = its_sha256
    _write_stamp(path.resolve(), look, its_sha256, cache)


def verify_shards_once(
    shards: ShardSet,
    cache: ShardCache,
    *,
    threads: int = 4,
    progress: Progress = no_progress,
) -> None:
    """See that each shard of a local set has its content; see `verified_once`.

    Args:
        shards: the set.
        cache: where what was found is remembered.
        threads: that read at once; hashing runs beside Python.
        progress: called in this thread.

    Raises:
        PipelineError: for the first shard that is found missing or another one.
        OSError: if a shard cannot be read, or the cache not be written.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; give at least 1")
    total = len(shards.shards)
    progress(0, total)
    pool = ThreadPoolExecutor(threads)
    try:
        checks = [
            pool.submit(verified_once, shards.path(number), shard.sha256, shard.n_bytes, cache)
            for number, shard in enumerate(shards.shards)
        ]
        for done, check in enumerate(as_completed(checks), start=1):
            check.result()
            progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)


def _sha256_of(path: Path, n_bytes: int, cache: ShardCache) -> str:
    look = _checked_look(path, n_bytes)
    known = _found.get(look)
    if known is not None:
        return known
    path = path.resolve()
    stamp = _stamp_of(path, cache)
    found = _remembered(stamp, look)
    if found is None:
        with ExitStack() as stack:
            try:
                stamp.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(folder_lock(stamp.with_name(f"{stamp.name[:2]}.lock")))
            except (OSError, PipelineError) as error:
                _log.warning("%s: %s; the same files may be hashed more than once", cache, error)
            look = _checked_look(path, n_bytes)
            # Another process may have read it meanwhile.
            found = _remembered(stamp, look)
            if found is None:
                found = file_sha256(path)
                if _checked_look(path, n_bytes) != look:
                    raise PipelineError(
                        f"{path} changed while it was read; wait until it is written, and run the "
                        "same again"
                    )
                _write_stamp(path, look, found, cache)
    _found[look] = found
    return found


def _look_of(path: Path) -> _Look:
    status = path.stat()
    return _Look(
        device=status.st_dev,
        inode=status.st_ino,
        bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
    )


def _checked_look(path: Path, n_bytes: int) -> _Look:
    try:
        look = _look_of(path)
    except FileNotFoundError as error:
        raise PipelineError(f"{path} is missing; copy it again, or make the set again") from error
    if look.bytes != n_bytes:
        raise PipelineError(
            f"{path} has {look.bytes} bytes, the manifest says {n_bytes}; copy it again, or "
            "make the set again"
        )
    return look


def _stamp_of(path: Path, cache: ShardCache) -> Path:
    return cache.folder / "verified" / f"{sha256(os.fsencode(path))}.json"


def _write_stamp(path: Path, look: _Look, its_sha256: str, cache: ShardCache) -> None:
    """Remember what was found; where the cache cannot be written, this process alone knows it."""
    stamp = _stamp_of(path, cache)
    told = {"path": os.fsdecode(path), **msgspec.to_builtins(look), "sha256": its_sha256}
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        write_file(stamp, json.dumps(told).encode())
    except OSError as error:
        _log.warning("%s: %s; its hash will be computed again", stamp.parent, error.strerror)


def _remembered(stamp: Path, look: _Look) -> str | None:
    """Return the hash that was found of a file that looks so; None where it is not known."""
    try:
        # Another user could have written anything there.
        if stamp.stat().st_uid not in {os.geteuid(), 0}:
            return None
        found = msgspec.json.decode(read_regular(stamp, max_bytes=_MOST_STAMP_BYTES), type=_Stamp)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    its_look = {name: getattr(found, name) for name in _Look.__struct_fields__}
    return found.sha256 if _Look(**its_look) == look else None
