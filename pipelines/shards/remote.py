"""Open sharded datasets from a folder, http(s), an object store or the output of a command.

    remote = open_set("https://host/imagenet/imagenet1k-train-{0000..1023}.tar")
    remote.shards                   the dataset, as `open_shards` returns it for a folder
    remote.files.hold(17)           shard 17 as a local file, downloaded unless the node has it

Each shard is downloaded once per node, into a cache where its name is its SHA-256. A local shard is
verified in its folder.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipelines.errors import PipelineError
from pipelines.shards.cache import (
    Download,
    HeldFile,
    ShardCache,
    cache_folder,
    checked_sha256,
    remember,
    verified_once,
)
from pipelines.shards.format import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Shard,
    ShardSet,
    build_set,
    expand_braces,
    max_index_bytes,
    open_index,
    open_shards,
    parse_manifest,
    read_key,
    select_shards,
)
from pipelines.system.attempts import Content
from pipelines.system.files import file_sha256, read_regular
from pipelines.system.objects import (
    FILE_PLACE,
    PIPE_PREFIX,
    RemoteAccess,
    address_inside,
    check_address,
    download,
    is_http,
    is_remote,
    local_path,
    path_of,
    shown,
    with_path,
)

_N_LATEST = 2

_MAX_LOSSES = 5
"""How often a file may be removed from the cache while it is downloaded."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How remote shards are downloaded and cached.

    Example::

        remote = Remote(limit_bytes=200 * 10**9, access=RemoteAccess(download_timeout_s=600))
        loader = train_loader("s3://bucket/train", batch_size=256, remote=remote)

    Attributes:
        limit_bytes: maximum size of the shards in the cache, in bytes; the least recently used ones
            are removed first. None uses the space of the disk, except for a reserve.
        prefetch: number of shards that are downloaded before they are needed; None for those of a
            shuffle window, at least 4.
        concurrent_downloads: number of shards that each process downloads at the same time, each
            over its own connection.
        access: retries, timeouts, credentials, and whether "pipe:" commands are allowed; see
            ``RemoteAccess`` in ``pipelines.system.objects``.
        manifest_sha256: expected SHA-256 of the manifest, which pins the whole dataset; None to
            accept any.
    """

    limit_bytes: int | None = None
    prefetch: int | None = None
    concurrent_downloads: int = 4
    access: RemoteAccess = field(default_factory=RemoteAccess)
    manifest_sha256: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: if prefetch or concurrent_downloads is below 1.
        """
        if self.prefetch is not None and self.prefetch < 1:
            raise ValueError(
                f"prefetch is {self.prefetch}; use a number of shards, 1 or more, or None"
            )
        if self.concurrent_downloads < 1:
            raise ValueError(f"concurrent_downloads is {self.concurrent_downloads}; use 1 or more")


@dataclass(kw_only=True, eq=False)
class RemoteFiles:
    """The shards of a dataset as local files; it can be pickled for other processes of the node.

    Attributes:
        location: the address before the names of the shards, a pipe command with "{file}", or a
            folder.
        shards: the tars.
        cache: the cache of the node.
        access: retries and credentials.
        index: the index of the dataset in the cache, which is held because workers that start later
            map it by its path.
    """

    location: str
    shards: tuple[Shard, ...]
    cache: ShardCache
    access: RemoteAccess
    index: HeldFile | None = None
    _latest: deque[HeldFile] = field(default_factory=deque, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """Omit held files, which belong to this process."""
        return self.__dict__ | {"_latest": deque(), "index": None}

    def url(self, shard: int) -> str:
        """Return the address of a shard."""
        return address_inside(self.location, self.shards[shard].file)

    def hold(
        self,
        shard: int,
        *,
        stop: threading.Event | None = None,
        reserved: Callable[[], None] = lambda: None,
    ) -> HeldFile:
        """Return a shard as a local file; see `fetch`."""
        return fetch(
            self.url(shard),
            sha256=self.shards[shard].sha256,
            n_bytes=self.shards[shard].n_bytes,
            cache=self.cache,
            access=self.access,
            stop=stop,
            reserved=reserved,
        )

    def path(self, shard: int) -> Path:
        """Return the path of a shard, which the caller must open at once.

        The shard is held until this is called two more times; an open file can be read to its end
        after it has left the cache.
        """
        held = self.hold(shard)
        self._latest.append(held)
        while len(self._latest) > _N_LATEST:
            self._latest.popleft().release()
        return held.path

    def close(self) -> None:
        """Release the shards that `path` returned."""
        while self._latest:
            self._latest.pop().release()


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoteShards:
    """A dataset whose shards are fetched on demand: its index, and its files."""

    shards: ShardSet
    files: RemoteFiles

    def part(self, names: Sequence[str]) -> "RemoteShards":
        """Return the part of the dataset in some of its shards, in the order of the names.

        Raises:
            PipelineError: if the dataset has no shard of a name, or a name is repeated.
        """
        shards = select_shards(self.shards, names)
        return RemoteShards(shards=shards, files=replace(self.files, shards=shards.shards))

    def key(self, i: int) -> str:
        """Return the key of a sample, "?" if its shard is not on this node."""
        row = self.shards.samples[i]
        shard = int(row["shard"])
        if not is_remote(self.files.location):
            return read_key(self.shards.path(shard), int(row["offset"]))
        held = self.files.cache.hold(self.shards.shards[shard].sha256)
        if held is None:
            return "?"
        with held:
            return read_key(held.path, int(row["offset"]))


def open_set(
    where: str | Path | ShardSet | RemoteShards,
    *,
    cache_dir: str | Path | None = None,
    remote: Remote | None = None,
) -> RemoteShards:
    """Open a sharded dataset, local or remote; no shard is read yet.

    Args:
        where: a local dataset, as for `open_shards`; an open dataset; the address of a folder with
            a manifest.json, of the manifest, of a tar, or of tars as a brace pattern such as
            "s3://bucket/set/train-{0000..1023}.tar"; or "pipe:COMMAND" with {file} for the name of
            a file.
        cache_dir: folder of the cache; None for the default, see `cache_folder`.
        remote: settings for remote shards; None for the defaults.

    Returns:
        The dataset, or the part of it that the tars hold.

    Raises:
        PipelineError: if the manifest or the index cannot be read, or its hash differs.
    """
    if isinstance(where, RemoteShards):
        return where
    remote = remote or Remote()
    access, pin = remote.access, remote.manifest_sha256
    cache = ShardCache(
        folder=cache_folder(None if cache_dir is None else Path(cache_dir)),
        limit_bytes=remote.limit_bytes,
    )
    index: HeldFile | None = None
    if isinstance(where, ShardSet):
        shards, location = where, where.location
    elif not is_remote(str(where)):
        shards = open_shards(local_path(str(where)))
        location = shards.location
        manifest = Path(location) / MANIFEST_NAME
        if pin is not None and pin != file_sha256(manifest):
            raise PipelineError(
                f"{manifest} does not have the SHA-256 {pin}; use the dataset with this hash, or "
                "omit the hash"
            )
    else:
        check_address(str(where), access)
        location, names = _split(str(where))
        shards, index = _read_set(location, cache, access, pin)
        if names is not None:
            shards = select_shards(shards, names)
    files = RemoteFiles(
        location=location, shards=shards.shards, cache=cache, access=access, index=index
    )
    return RemoteShards(shards=shards, files=files)


def names_shards(where: str) -> bool:
    """Return whether an address is of the manifest or tars of a dataset, and not of its folder."""
    return where.startswith(PIPE_PREFIX) or path_of(where).endswith((MANIFEST_NAME, ".tar"))


def fetch(
    url: str,
    *,
    sha256: str,
    n_bytes: int | None,
    cache: ShardCache,
    access: RemoteAccess | None = None,
    max_bytes: int | None = None,
    stop: threading.Event | None = None,
    reserved: Callable[[], None] = lambda: None,
) -> HeldFile:
    """Return the file of an address, which stays in the cache while it is held.

    One process of a node downloads the file, and the others wait. A partial download of a killed
    process is resumed.

    Args:
        url: an address; a path or a file:// address, which is hashed once per node and not copied;
            or "pipe:COMMAND", see `RemoteAccess.allow_pipe`.
        sha256: expected hash of the content.
        n_bytes: expected size; None if only `max_bytes` is known.
        cache: the cache.
        access: retries and credentials.
        max_bytes: maximum size, for which the cache makes room.
        stop: ends the call from another thread.
        reserved: called when the cache has room for the file, before it is downloaded.

    Raises:
        PipelineError: if the address cannot be read or has other content. The subclass
            `CacheFullError` means that the cache has no room.
        StoppedError: if `stop` is set.
        OSError: if the cache cannot be written.
    """
    access = access or RemoteAccess()
    stop = stop or threading.Event()
    if not is_remote(url):
        path = local_path(url)
        verified_once(path, sha256, path.stat().st_size if n_bytes is None else n_bytes, cache)
        reserved()
        return HeldFile(path)
    # Check first: a forbidden address is refused even if the cache has its file.
    check_address(url, access)
    content = Content(sha256=sha256, n_bytes=n_bytes, max_bytes=max_bytes)
    losses = 0
    while True:
        try:
            found = cache.begin(sha256, n_bytes, stop, max_bytes=max_bytes)
            reserved()
            if isinstance(found, Download):
                try:
                    download(url, found.file, content, access=access, stop=stop)
                    found.finish()
                except BaseException:
                    found.leave(keep=True)
                    raise
                remember(found.final, sha256, cache)
            elif checked_sha256(found.path, found.path.stat().st_size, cache) == sha256:
                return found
            else:
                _log.warning("%s is damaged; it is downloaded again", found.path)
                found.discard()
        except FileNotFoundError as error:
            losses += 1
            if losses == _MAX_LOSSES:
                raise PipelineError(
                    f"{error.filename or cache.files} was removed {losses} times while "
                    f"{shown(url)} was downloaded; stop the program that cleans this folder, or "
                    "set PIXMIX_CACHE or --cache-dir to another one"
                ) from error
            _log.warning("%s was emptied; %s is downloaded again", cache.files, shown(url))


def _read_set(
    location: str, cache: ShardCache, access: RemoteAccess, manifest_sha256: str | None
) -> tuple[ShardSet, HeldFile]:
    url = address_inside(location, MANIFEST_NAME)
    content = _read_manifest(url, cache, access, manifest_sha256)
    manifest = parse_manifest(content, shown(url))
    index_url = address_inside(location, manifest.index.file)
    held = fetch(
        index_url,
        sha256=manifest.index.sha256,
        n_bytes=None,
        cache=cache,
        access=access,
        max_bytes=max_index_bytes(manifest),
    )
    samples = open_index(held.path, shown(index_url), "make the dataset again")
    return build_set(shown(location).rstrip("/"), manifest, samples), held


def _read_manifest(
    url: str, cache: ShardCache, access: RemoteAccess, manifest_sha256: str | None
) -> bytes:
    """Return a manifest; if its hash is known, it is kept in the cache."""
    if manifest_sha256 is None:
        file = BytesIO()
        wanted = Content(max_bytes=MAX_MANIFEST_BYTES)
        download(url, file, wanted, access=access, stop=threading.Event())
        return file.getvalue()
    with fetch(
        url,
        sha256=manifest_sha256,
        n_bytes=None,
        cache=cache,
        access=access,
        max_bytes=MAX_MANIFEST_BYTES,
    ) as held:
        return read_regular(held.path, max_bytes=MAX_MANIFEST_BYTES)


def _split(where: str) -> tuple[str, list[str] | None]:
    """Return the location of a remote dataset, and the names of its shards; None for all."""
    if where.startswith(PIPE_PREFIX):
        if FILE_PLACE not in where:
            raise PipelineError(
                f"{shown(where)} cannot read the manifest of a dataset; use {FILE_PLACE} for the "
                f"name of the file, as in 'pipe:curl -s https://host/set/{FILE_PLACE}'"
            )
        return where, None
    folder, slash, name = path_of(where).rstrip("/").rpartition("/")
    if name == MANIFEST_NAME:
        return with_path(where, folder + slash), None
    if name.endswith(".tar"):
        return with_path(where, folder + slash), list(
            expand_braces(unquote(name) if is_http(where) else name)
        )
    return with_path(where, f"{folder}{slash}{name}/"), None
