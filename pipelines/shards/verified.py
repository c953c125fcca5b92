"""Local shards whose SHA-256 was checked: once a node, and again only when a file changes.

    CACHE/verified/KEY.json     what was found of one path, and what the file looked like then
                   XX.lock      who computes a hash; of the keys that begin with XX

A later open costs one look at the file's status. The time of the last change of the inode is part
of it: a copy that restores the modification time, or a flipped bit with both restored, differs.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.shards.cache import ShardCache
from pipelines.shards.files import file_sha256, folder_lock, sha256, write_file
from pipelines.shards.index import ShardSet
from pipelines.shards.progress import Progress, no_progress


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
        OSError: if it cannot be read, or the cache not be written.
    """
    path = path.resolve()
    look = _look_of(path, n_bytes)
    if _remembered(_stamp_of(path, cache)) != look | {"sha256": expected_sha256}:
        stamp = _stamp_of(path, cache)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(stamp.with_name(f"{stamp.name[:2]}.lock")):
            found = _remembered(stamp)
            look = _look_of(path, n_bytes)
            # Another process may have read it meanwhile.
            if found is None or found | {"sha256": ""} != look | {"sha256": ""}:
                found = look | {"sha256": file_sha256(path)}
                if _look_of(path, n_bytes) != look:
                    raise PipelineError(
                        f"{path} changed while it was read; wait until it is written, and run the "
                        "same again"
                    )
                write_file(stamp, json.dumps(found).encode())
        if found["sha256"] != expected_sha256:
            raise PipelineError(
                f"{path} has SHA-256 {found['sha256']}, the manifest says {expected_sha256}; copy "
                "it again from where the set was made, or, if it was changed on purpose, run "
                "pixmix-shard index again"
            )


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


def _look_of(path: Path, n_bytes: int) -> dict[str, Any]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise PipelineError(f"{path} is missing; copy it again, or make the set again") from error
    if status.st_size != n_bytes:
        raise PipelineError(
            f"{path} has {status.st_size} bytes, the manifest says {n_bytes}; copy it again, or "
            "make the set again"
        )
    return {
        "path": str(path),
        "device": status.st_dev,
        "inode": status.st_ino,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
    }


def _stamp_of(path: Path, cache: ShardCache) -> Path:
    return cache.folder / "verified" / f"{sha256(os.fsencode(path))}.json"


def _remembered(stamp: Path) -> dict[str, Any] | None:
    """Return what was found of a file; None where nothing, or nothing readable, is remembered."""
    try:
        found = json.loads(stamp.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and "sha256" in found else None
