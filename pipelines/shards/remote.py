"""Sets of shards wherever they are: local, over http(s), in an object store, written by a command.

    remote = open_set("https://host/imagenet/imagenet1k-train-{0000..1023}.tar")
    remote.shards                   the set, as `open_shards` returns it for a folder
    remote.files.hold(17)           shard 17 as a local file, downloaded if no process has yet

Each shard is downloaded once a node, into a cache where its name is its SHA-256; a local shard is
checked where it is.
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
    MOST_MANIFEST_BYTES,
    Shard,
    ShardSet,
    build_set,
    expand_braces,
    most_index_bytes,
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

_MOST_LOSSES = 5
"""Times that a file may be removed from the cache while it is downloaded."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How shards at an address are read and kept.

    Attributes:
        limit_bytes: that shards in the cache may take together; None: what the disk has, less a
            reserve. Those that were used least lately go first.
        prefetch: shards that are downloaded before they are needed; None: as many as a shuffle
            window has, at least 4.
        concurrent_downloads: shards that each process downloads at the same time, each over a
            connection of its own.
        access: patience, and whether an address may be a command ("pipe:").
        manifest_sha256: of the set's manifest, to hold all of it to what it was.
    """

    limit_bytes: int | None = None
    prefetch: int | None = None
    concurrent_downloads: int = 4
    access: RemoteAccess = field(default_factory=RemoteAccess)
    manifest_sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse nonsense.

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
    """The shards of a set as local files; it can be pickled for other processes of the node.

    location: the address before the shards' names, a pipe's command with "{file}", or a folder.
    index: of the set, where it is in the cache; it stays there as long as this is used, for a
        worker that is started later maps it by its name.
    """

    location: str
    shards: tuple[Shard, ...]
    cache: ShardCache
    access: RemoteAccess
    index: HeldFile | None = None
    _latest: deque[HeldFile] = field(default_factory=deque, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is held, for it is held by this process."""
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
        """Return the path of a shard for whoever opens it at once.

        It is held until this is called twice more; a file that is open can be read to its end also
        when it has left the cache since.
        """
        held = self.hold(shard)
        self._latest.append(held)
        while len(self._latest) > _N_LATEST:
            self._latest.popleft().release()
        return held.path

    def close(self) -> None:
        """Let the shards go that `path` named."""
        while self._latest:
            self._latest.pop().release()


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoteShards:
    """A set whose shards come when they are needed. shards: its index; files: where they are."""

    shards: ShardSet
    files: RemoteFiles

    def part(self, names: Sequence[str]) -> "RemoteShards":
        """Return the part of the set that some of its shards hold, in the order of the names.

        Raises:
            PipelineError: if the set has no shard of a name, or a name comes twice.
        """
        shards = select_shards(self.shards, names)
        return RemoteShards(shards=shards, files=replace(self.files, shards=shards.shards))

    def key(self, i: int) -> str:
        """Return a sample's key as its tar has it; "?" where its shard is not on this node."""
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
    """Open a set of shards wherever it is, or take one that is open; no shard is read yet.

    Args:
        where: an address of a folder with a manifest.json, of that manifest, of a tar or of tars
            as a brace pattern such as "s3://bucket/set/train-{0000..1023}.tar"; "pipe:COMMAND"
            with {file} in it for the name of a file; or what `open_shards` takes or returned.
        cache_dir: of the shards; None for that of this node, see `cache_folder`.
        remote: how they are read and kept; None for the defaults.

    Returns:
        The set, or that part of it which the tars are.

    Raises:
        PipelineError: if the manifest or the index cannot be read or is another one.
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
                f"{manifest} is not the manifest with SHA-256 {pin}; use the set that it belongs "
                "to, or leave out the hash"
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
    """Return whether an address names the manifest or tars of a set, and not its folder."""
    return where.startswith(PIPE_PREFIX) or path_of(where).endswith((MANIFEST_NAME, ".tar"))


def fetch(
    url: str,
    *,
    sha256: str,
    n_bytes: int | None,
    cache: ShardCache,
    access: RemoteAccess | None = None,
    most_bytes: int | None = None,
    stop: threading.Event | None = None,
    reserved: Callable[[], None] = lambda: None,
) -> HeldFile:
    """Return the file of an address, which stays in the cache as long as it is held.

    The first process of a node that asks downloads it, the others wait for that. What a killed
    process had downloaded is kept and continued.

    Args:
        url: an address; a path or a file:// address is checked where it lies, once a node; or
            "pipe:COMMAND", see `RemoteAccess.allow_pipe`.
        sha256: of the content.
        n_bytes: its length; None where only its bound is known, `most_bytes`.
        cache: where it is kept.
        access: how patiently it is read.
        most_bytes: that it may have, for which room is made in the cache; more are refused.
        stop: ends the call from another thread.
        reserved: called once it has its room in the cache, before it is downloaded.

    Raises:
        PipelineError: if the address cannot be read or gives other content, or the cache has no
            room (then its subclass `CacheFullError`).
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
    # Before the cache is asked: what is refused is refused always.
    check_address(url, access)
    content = Content(sha256=sha256, n_bytes=n_bytes, most_bytes=most_bytes)
    losses = 0
    while True:
        try:
            place = cache.begin(sha256, n_bytes, stop, most_bytes=most_bytes)
            reserved()
            if isinstance(place, Download):
                try:
                    download(url, place.file, content, access=access, stop=stop)
                    place.finish()
                except BaseException:
                    place.leave(keep=True)
                    raise
                remember(place.whole, sha256, cache)
            elif checked_sha256(place.path, place.path.stat().st_size, cache) == sha256:
                return place
            else:
                _log.warning("%s is damaged; it is fetched again", place.path)
                place.discard()
        except FileNotFoundError as error:
            losses += 1
            if losses == _MOST_LOSSES:
                raise PipelineError(
                    f"{error.filename or cache.files} was removed while {shown(url)} came, "
                    f"{losses} times; let nothing else clean that folder, or set PIXMIX_CACHE or "
                    "--cache-dir to another one"
                ) from error
            _log.warning("%s was emptied; %s is fetched again", cache.files, shown(url))


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
        most_bytes=most_index_bytes(manifest),
    )
    samples = open_index(held.path, shown(index_url), "make the set again")
    return build_set(shown(location).rstrip("/"), manifest, samples), held


def _read_manifest(
    url: str, cache: ShardCache, access: RemoteAccess, manifest_sha256: str | None
) -> bytes:
    """Return a manifest; one whose hash is given is kept in the cache."""
    if manifest_sha256 is None:
        file = BytesIO()
        wanted = Content(most_bytes=MOST_MANIFEST_BYTES)
        download(url, file, wanted, access=access, stop=threading.Event())
        return file.getvalue()
    with fetch(
        url,
        sha256=manifest_sha256,
        n_bytes=None,
        cache=cache,
        access=access,
        most_bytes=MOST_MANIFEST_BYTES,
    ) as held:
        return read_regular(held.path, max_bytes=MOST_MANIFEST_BYTES)


def _split(where: str) -> tuple[str, list[str] | None]:
    """Return the location of a remote set, and the shards it is limited to, if any."""
    if where.startswith(PIPE_PREFIX):
        if FILE_PLACE not in where:
            raise PipelineError(
                f"{shown(where)} cannot read the manifest of a set; put {FILE_PLACE} where the "
                f"name of the file belongs, as in 'pipe:curl -s https://host/set/{FILE_PLACE}'"
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
