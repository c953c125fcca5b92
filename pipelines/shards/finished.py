"""A finished set that its command meets again: is it complete, and still what its source gives?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.adopt import scan_image
from pipelines.shards.exports import SCAN_NAME, dali_index, export_faults
from pipelines.shards.format import (
    MANIFEST_NAME,
    Manifest,
    ShardSet,
    build_set,
    read_index,
)
from pipelines.shards.images import LARGEST_FILE, DecodeError, unusable_file
from pipelines.shards.listing import Listing
from pipelines.shards.members import sample_of
from pipelines.shards.request import ShardRequest, indices_of, shard_name, shuffled
from pipelines.shards.sidecars import sidecar_of
from pipelines.system.files import file_sha256, open_regular, read_regular, write_file


def open_complete(folder: Path, manifest: Manifest) -> ShardSet | None:
    """Open a set that has all of its files, None where one is missing or another.

    Tars are held to their sizes; `pixmix-shard verify` reads them.

    Args:
        folder: of the set.
        manifest: of the set.

    Raises:
        OSError: if a file cannot be read.
    """
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.n_bytes:
            return None
    try:
        opened = build_set(str(folder), manifest, read_index(folder, manifest))
    except PipelineError:
        return None
    return None if export_faults(folder, opened) else opened


def changed_since(listing: Listing, manifest: Path) -> set[int]:
    """Return the items whose files have a time that is not before that of a set's manifest.

    They may be the same for all that: a file that is copied or linked to has a new time, too.
    """
    finished = manifest.stat().st_mtime_ns
    return {index for index in range(len(listing)) if max(listing[index].changed) >= finished}


def check_contents(request: ShardRequest, opened: ShardSet) -> None:
    """See that files of the source that seem to be changed since are what the shards hold.

    Args:
        request: what made the set.
        opened: the set, complete.

    Raises:
        PipelineError: naming the first file whose content is another.
        OSError: if it cannot be read.
    """
    listing = Listing(request.listing)
    changed = sorted(changed_since(listing, request.folder / MANIFEST_NAME))
    if not changed:
        return
    skipped = _skipped_indices(request, opened)
    kept = [index for index in range(len(listing)) if index not in skipped]
    positions = {kept[place]: i for i, place in enumerate(shuffled(len(kept), request.seed))}
    for index in changed:
        is_same = (
            _is_in(opened, positions[index], request, listing, index)
            if index in positions
            else not _skipped(request).isdisjoint(scan_image(request.source, listing[index]))
        )
        if not is_same:
            raise PipelineError(
                f"{listing[index].name} was changed after {request.folder} was made; choose "
                f"another OUT, or remove {request.folder} and give the command again"
            )


def _skipped_indices(request: ShardRequest, opened: ShardSet) -> set[int]:
    """Return the items that are not in the shards, by the list that the manifest vouches for."""
    if "found_sha256" not in opened.settings:
        return set()
    content = read_regular(request.folder / SCAN_NAME, max_bytes=LARGEST_FILE)
    lines = map(json.loads, content.splitlines())
    return {line["index"] for line in lines if line["found"] in _skipped(request)}


def _skipped(request: ShardRequest) -> set[str]:
    """Return of what is found in files that which keeps them out of the shards."""
    return {"undecodable", "nonstandard"} if request.on_nonstandard == "skip" else {"undecodable"}


def _is_in(
    opened: ShardSet, position: int, request: ShardRequest, listing: Listing, index: int
) -> bool:
    row = opened.samples[position]
    with open_regular(opened.path(int(row["shard"]))) as file:
        file.seek(int(row["offset"]))
        content = file.read(int(row["size"]))
    try:
        sample = sample_of(request, listing, index)
    except DecodeError:
        return False
    except OSError as error:
        if unusable_file(error) is None:
            raise
        return False
    return sample.members[sample.extension] == content


def sidecars_of_whole(
    request: ShardRequest, manifest: Manifest, listing: Listing, order: NDArray[np.int64]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give number and sidecar of each shard of a finished set that is as its manifest says.

    DALI's index of each is written again if the set has them.

    Those with files that were changed since are not given: they are to be written again.

    Raises:
        OSError: if a shard cannot be read.
    """
    changed = changed_since(listing, request.folder / MANIFEST_NAME)
    num_shards = len(manifest.shards)
    for number, shard in enumerate(manifest.shards):
        path = request.folder / shard.file
        indices = indices_of(order, num_shards, number)
        if (
            path.name == shard_name(request.name, number, num_shards)
            and path.is_file()
            and path.stat().st_size == shard.n_bytes
            and file_sha256(path) == shard.sha256
            and changed.isdisjoint(indices)
        ):
            if request.dali_index:
                write_file(path.with_suffix(".idx"), dali_index(path))
            yield number, sidecar_of(path) | {"inputs": listing.fingerprint(indices)}
