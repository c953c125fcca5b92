"""Sets of shards wherever they lie, as loaders read them: held to their hashes, once a node."""

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.shards.cache import ShardCache, cache_folder
from pipelines.shards.connections import RemoteAccess
from pipelines.shards.index import ShardSet
from pipelines.shards.remote import RemoteFiles, RemoteShards, open_remote_shards


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How shards at an address are read and kept.

    Attributes:
        limit_bytes: that shards in the cache may take together; None: what the disk has, less a
            reserve. Those that were used least lately go first.
        ahead: shards that are downloaded before they are needed; None: as many as a window has,
            at least 4.
        downloads: shards that come at a time, in each process; each over a connection of its own.
        access: patience, and whether an address may be a command ("pipe:").
        manifest_sha256: of the set's manifest, to hold all of it to what it was.
    """

    limit_bytes: int | None = None
    ahead: int | None = None
    downloads: int = 4
    access: RemoteAccess = field(default_factory=RemoteAccess)
    manifest_sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse nonsense.

        Raises:
            ValueError: if ahead or downloads are below 1.
        """
        if self.ahead is not None and self.ahead < 1:
            raise ValueError(f"ahead is {self.ahead}; give a number of shards, 1 or more, or None")
        if self.downloads < 1:
            raise ValueError(f"downloads is {self.downloads}; give a number of shards, 1 or more")

    def cache(self, folder: str | Path | None) -> ShardCache:
        """Return the cache of this node."""
        return ShardCache(
            folder=cache_folder(None if folder is None else Path(folder)),
            limit_bytes=self.limit_bytes,
        )


def open_set(
    where: str | Path | ShardSet | RemoteShards,
    *,
    cache_dir: str | Path | None,
    remote: Remote | None,
) -> RemoteShards:
    """Open a set by its folder, tars or address, or take one that is open.

    Raises:
        PipelineError: if it cannot be read.
    """
    if isinstance(where, RemoteShards):
        return where
    remote = remote or Remote()
    cache = remote.cache(cache_dir)
    if isinstance(where, ShardSet):
        files = RemoteFiles(
            location=where.location, shards=where.shards, cache=cache, access=remote.access
        )
        return RemoteShards(shards=where, files=files)
    return open_remote_shards(
        str(where), cache=cache, access=remote.access, manifest_sha256=remote.manifest_sha256
    )
