"""Datasets of generated images, as image files or as shards.

    FOLDER/manifest.json              STORE/manifest.json
           metadata.jsonl                   index.npy, sizes.json, _info.json, wids.json
           images/00000000.jpg ...          NAME-00.tar ...

Both are jobs; see `pipelines.shards.job`. metadata.jsonl has one line of JSON for each image, in
order. pixmix-shard writes the same samples when it shards the image files.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from pipelines.errors import PipelineError
from pipelines.generate.generators import (
    ENCODERS,
    IMAGES,
    Generator,
    generate_files,
    image_name,
    versions_of,
)
from pipelines.shards.format import (
    FORMAT,
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SHARDS,
    SAMPLE,
    parse_manifest,
)
from pipelines.shards.job import REQUEST, Job, Request, read_request, store_errors
from pipelines.shards.output import DONE, Folder, OutputStore
from pipelines.shards.writer import (
    SHARDS_VERSION,
    Sample,
    bounds,
    export_documents,
    parse_sidecar,
    shard_name,
    whole_sidecars,
    write_closing_files,
    write_tar,
)
from pipelines.system.files import (
    Count,
    FileName,
    Sha256,
    check_no_file,
    file_sha256,
    new_file,
    open_regular,
    read_json,
    read_regular,
    remove_partial_files,
    write_file,
    write_files,
)

METADATA = "metadata.jsonl"
SPLIT = "train"

_COPY = "restore it from a copy, or remove the folder and generate the dataset again"


# --- image files ---------------------------------------------------------------------------------


class _Manifest(TypedDict):
    """The manifest of a dataset of image files."""

    kind: str
    status: Literal["complete"]
    images: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    licence: NotRequired[str]
    settings: dict[str, Any]
    versions: dict[str, Any]
    drafts: Count
    acceptance_rate: Annotated[float, msgspec.Meta(ge=0, le=1)]
    metadata_sha256: Sha256


class Record(msgspec.Struct):
    """The fields of an image's record that its dataset needs."""

    index: Count
    file: str
    file_sha256: Sha256
    attempts: Annotated[int, msgspec.Meta(ge=1, le=2**48)]

    def is_of(self, index: int, format: str) -> bool:
        """Return whether this is the record of the image with an index."""
        return self.index == index and self.file == f"{IMAGES}/{image_name(index, format)}"


def image_job(
    folder: Path, generator: Generator, *, n: int, format: str = "jpg", chunk: int = 32
) -> Job:
    """Return the job that generates images 0 to n - 1 as image files.

    Args:
        folder: folder of the dataset, which is created if absent.
        generator: generates the images.
        n: number of images.
        format: a key of `ENCODERS`.
        chunk: number of images that a process generates between two commits to the disk.

    Raises:
        ValueError: if n is below 1 or the format is unknown.
        PipelineError: if the folder is a file.
    """
    if n < 1:
        raise ValueError(f"n is {n}; use at least 1")
    check_no_file(folder, "the output")
    settings = {"kind": generator.kind(), **generator.settings(), "format": format}
    return Job(
        store=_ImageStore(path=folder),
        request=Request(settings=settings, versions=versions_of(generator, format), n=n),
        product=_ImageFiles(folder=folder, generator=generator, format=format),
        chunk=chunk,
        exclusive=True,
        resizable=True,
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a dataset of image files.

    Raises:
        PipelineError: if the manifest is missing, damaged, or written by another program.
        OSError: if it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        content = read_regular(path, max_bytes=MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PipelineError(
            f"{folder} is not a dataset of images: it has no {MANIFEST_NAME}; use a folder that "
            "pixmix-gen wrote"
        ) from error
    return _parse_manifest(content, path)


class _Settings(msgspec.Struct):
    settings: dict[str, Any]


def earlier_settings(store: OutputStore) -> dict[str, Any]:
    """Return the settings of the dataset in a store, complete or not; empty without a dataset.

    Raises:
        PipelineError: if the dataset is damaged or cannot be read.
    """
    with store_errors(store, 1):
        request = read_request(store)
        if request is not None:
            return request.settings
        content = store.read(MANIFEST_NAME)
        if content is None:
            return {}
        return read_json(content, _Settings, f"{store.name}/{MANIFEST_NAME}", _COPY).settings


def _parse_manifest(content: bytes, path: Path) -> dict[str, Any]:
    found = read_json(content, dict[str, Any], str(path), _COPY)
    if found.get("format") == FORMAT:
        raise PipelineError(
            f"{path.parent} contains shards, not image files; verify them with pixmix-shard "
            "verify, resume them with --to-shards, or choose another folder"
        )
    if not found.keys() >= {"kind", "status", "images", "settings", "versions"}:
        raise PipelineError(
            f"{path} is not the manifest of a dataset of images; choose another folder"
        )
    manifest: dict[str, Any] = {**read_json(content, _Manifest, str(path), _COPY)}
    missing = [f"versions.{name}" for name in {"pixmix", "encoder"} - manifest["versions"].keys()]
    if manifest["settings"].get("format") not in [*ENCODERS]:
        missing.append("settings.format")
    if missing:
        fields = ", ".join(sorted(missing))
        raise PipelineError(f"{path} is damaged: it has no valid {fields}; {_COPY}")
    return manifest


@dataclass(frozen=True, kw_only=True)
class _ImageStore(Folder):
    """A folder whose subfolder of images is part of the store."""

    def sizes(self) -> dict[str, int]:
        """Include the size in bytes of each image, by "images/NAME"."""
        found = super().sizes()
        with suppress(FileNotFoundError), os.scandir(self.path / IMAGES) as entries:
            for entry in entries:
                # A symbolic link may be broken.
                with suppress(OSError):
                    found[f"{IMAGES}/{entry.name}"] = entry.stat().st_size
        return found

    def close(self) -> None:
        """Also remove partial files that killed writers left among the images."""
        remove_partial_files(self.path / IMAGES)
        super().close()


@dataclass(frozen=True, kw_only=True)
class _ImageFiles:
    """Image files as the product of a job, in which an item is an image."""

    folder: Path
    generator: Generator
    format: str

    def weight(self, items: range) -> int:
        return len(items)

    def make(self, items: range, folder: Path) -> list[bytes]:
        files = [*generate_files(self.generator, self.format, items, len(items))]
        (folder / IMAGES).mkdir(exist_ok=True)
        write_files(folder / IMAGES, {file.name: file.content for file in files})
        # Hugging Face's `load_dataset("imagefolder")` finds the image of a line by its file_name.
        records = [{**file.record, "file_name": file.record["file"]} for file in files]
        return [
            json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
            for record in records
        ]

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> tuple[bytes, int] | None:
        """Return the line and its number of drafts; None if the line or the file is damaged."""
        try:
            record = msgspec.json.decode(line, type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not record.is_of(item, self.format) or not sizes.get(record.file):
            return None
        return line, record.attempts

    def takes_over(self, names: set[str]) -> bool:
        return not names

    def read_manifest(self, manifest: bytes) -> Request:
        found = _parse_manifest(manifest, self.folder / MANIFEST_NAME)
        return Request(
            settings={"kind": found["kind"], **found["settings"]},
            versions=found["versions"],
            n=found["images"],
        )

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        # While done records exist, the manifest may be that of a smaller or an older dataset.
        if any(name.startswith(f"{DONE}/") for name in sizes):
            return False
        n = self.read_manifest(manifest).n
        names = (f"{IMAGES}/{image_name(index, self.format)}" for index in range(n))
        return all(sizes.get(name) for name in names) and self._has_metadata(manifest)

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        # If the hash differs from the manifest's, any line may have changed.
        if self._has_metadata(manifest):
            with open_regular(self.folder / METADATA) as file:
                for index, line in enumerate(file):
                    if self.parse(index, line.rstrip(b"\n"), sizes) is not None:
                        yield index, line.rstrip(b"\n")

    def close(self, request: Request, records: Iterable[tuple[bytes, int]]) -> None:
        drafts = 0
        with new_file(self.folder / METADATA) as file:
            for line, attempts in records:
                file.write(line + b"\n")
                drafts += attempts
        for path in (self.folder / IMAGES).glob(f"[0-9]*.{self.format}"):
            # The dataset may have been started with a larger n.
            if path.stem.isdecimal() and int(path.stem) >= request.n:
                path.unlink(missing_ok=True)
        manifest = {
            "kind": request.settings["kind"],
            "status": "complete",
            "images": request.n,
            "licence": self.generator.licence(),
            "settings": {name: each for name, each in request.settings.items() if name != "kind"},
            "versions": request.versions,
            "drafts": drafts,
            "acceptance_rate": round(request.n / drafts, 6),
            "metadata_sha256": file_sha256(self.folder / METADATA),
        }
        write_file(self.folder / MANIFEST_NAME, (json.dumps(manifest, indent=2) + "\n").encode())

    def _has_metadata(self, manifest: bytes) -> bool:
        expected = _parse_manifest(manifest, self.folder / MANIFEST_NAME)["metadata_sha256"]
        with suppress(FileNotFoundError):
            return bool(file_sha256(self.folder / METADATA) == expected)
        return False


# --- shards --------------------------------------------------------------------------------------


class _ShardSettings(msgspec.Struct):
    """The settings that every sharded dataset has besides those of its generator."""

    name: FileName
    kind: str
    n: Annotated[int, msgspec.Meta(ge=1, le=2**48)]
    shard_size: Annotated[int, msgspec.Meta(ge=1, le=2**48)]
    num_shards: Annotated[int, msgspec.Meta(ge=1, le=MAX_SHARDS)]


def shard_job(
    store: OutputStore,
    generator: Generator,
    *,
    n: int,
    name: str,
    format: str = "jpg",
    shard_size: int = 1000,
    chunk: int = 32,
) -> Job:
    """Return the job that generates images 0 to n - 1 as shards.

    Args:
        store: output store of the shards.
        generator: generates the images.
        n: number of images.
        name: name of the dataset and its tars: letters a-z, digits, - and _.
        format: a key of `ENCODERS`.
        shard_size: maximum number of images per shard; sizes differ by at most one.
        chunk: number of images that are generated at once.

    Raises:
        ValueError: if a number is below 1 or the format is unknown.
        PipelineError: if the name is invalid or there are too many shards.
    """
    if min(n, shard_size, chunk) < 1:
        raise ValueError(f"n is {n}, shard_size {shard_size}, chunk {chunk}; use at least 1")
    num_shards = math.ceil(n / shard_size)
    settings = {
        "name": name,
        "kind": "mixing",
        "sources": [generator.kind()],
        "licence": generator.licence(),
        **generator.settings(),
        "format": format,
        "n": n,
        "shard_size": shard_size,
        "num_shards": num_shards,
    }
    versions = {"pixmix": "", "shards_version": SHARDS_VERSION, **versions_of(generator, format)}
    request = Request(settings=settings, versions=versions, n=num_shards)
    return _shard_job(store, request, generator, chunk)


def unmerged_shards(store: OutputStore) -> Job:
    """Return the job of the sharded dataset in a store, in order to merge it.

    Raises:
        PipelineError: if the store has no sharded dataset, or it cannot be read.
    """
    with store_errors(store, 1):
        request = read_request(store)
        content = store.read(MANIFEST_NAME) if request is None else None
        if content is not None:
            request = _request_of(content, store)
        if request is None and any(name.endswith(".tar") for name in store.sizes()):
            raise PipelineError(
                f"{store.name} has no {MANIFEST_NAME}; if pixmix-gen wrote it, run the same "
                "command again, which generates the shards again"
            )
        if request is None:
            raise PipelineError(
                f"{store.name} contains no shards of pixmix-gen; use the --out of a command with "
                "--to-shards"
            )
        if not {"n", "name", "num_shards"} <= request.settings.keys():
            raise PipelineError(
                f"{store.name} is not a dataset of pixmix-gen --to-shards; to complete a dataset "
                "of image files or of pixmix-shard, repeat the command that started it"
            )
    return _shard_job(store, request, None, 1)


def _shard_job(
    store: OutputStore, request: Request, generator: Generator | None, chunk: int
) -> Job:
    where = f"{store.name}/{REQUEST}"
    remedy = "merge a dataset of pixmix-gen --to-shards, or remove it and generate it again"
    read_json(msgspec.json.encode(request.settings), _ShardSettings, where, remedy)
    product = _Shards(store=store, settings=request.settings, generator=generator, chunk=chunk)
    return Job(store=store, request=request, product=product)


def _request_of(manifest: bytes, store: OutputStore) -> Request:
    """Return the request that a complete sharded dataset was started with.

    Raises:
        PipelineError: if the manifest is not that of a sharded dataset.
    """
    where = f"{store.name}/{MANIFEST_NAME}"
    if "status" in read_json(manifest, dict[str, Any], where, _COPY):
        raise PipelineError(
            f"{store.name} contains image files, not shards; choose another output for shards, or "
            "resume this dataset without --to-shards, which needs no merge"
        )
    found = parse_manifest(manifest, where)
    return Request(settings=found.settings, versions=found.versions, n=len(found.shards))


@dataclass(frozen=True, kw_only=True)
class _Shards:
    """Shards of generated images as the product of a job, in which an item is a shard.

    Attributes:
        store: output store of the shards.
        settings: settings of the request.
        generator: None for a job that only merges.
        chunk: number of images that are generated at once.
    """

    store: OutputStore
    settings: Mapping[str, Any]
    generator: Generator | None
    chunk: int

    def weight(self, items: range) -> int:
        return sum(len(self._indices(shard)) for shard in items)

    def make(self, items: range, folder: Path) -> list[bytes]:
        return [
            json.dumps(write_tar(folder / self._name(shard), self._samples(shard))).encode()
            for shard in items
        ]

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        return parse_sidecar(line, self._name(item), sizes)

    def takes_over(self, names: set[str]) -> bool:
        # Without a manifest nothing proves that the tars are complete, so they are written again.
        tars = {self._name(shard) for shard in range(self.settings["num_shards"])}
        return bool(names & tars) and names <= tars | {
            INDEX_NAME,
            *export_documents("", SPLIT, [], []),
        }

    def read_manifest(self, manifest: bytes) -> Request:
        return _request_of(manifest, self.store)

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        found = parse_manifest(manifest, self.store.name)
        smallest: int = found.num_samples * SAMPLE.itemsize
        return bool(
            all(sizes.get(shard.file) == shard.n_bytes for shard in found.shards)
            and sizes.get(found.index.file, 0) > smallest
            and all(sizes.get(name) for name in export_documents("", SPLIT, [], []))
        )

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        found = parse_manifest(manifest, self.store.name)
        for shard, sidecar, _ in whole_sidecars(self.store, found, self.settings["name"], sizes):
            yield shard, json.dumps(sidecar).encode()

    def close(self, request: Request, records: Iterable[dict[str, Any]]) -> None:
        with self.store.writing() as folder:
            write_closing_files(
                folder,
                name=self.settings["name"],
                split=SPLIT,
                kind=self.settings["kind"],
                sidecars=records,
                classes=(),
                settings=request.settings,
                versions=request.versions,
            )

    def _name(self, shard: int) -> str:
        return shard_name(self.settings["name"], shard, self.settings["num_shards"])

    def _indices(self, shard: int) -> range:
        return bounds(self.settings["n"], self.settings["num_shards"], shard)

    def _samples(self, shard: int) -> Iterator[Sample]:
        assert self.generator is not None, "a merge writes no shards"
        format = self.settings["format"]
        for file in generate_files(self.generator, format, self._indices(shard), self.chunk):
            # The same record as pixmix-shard writes for a dataset of image files.
            record = {"filename": file.record["file"], **file.record}
            document = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
            yield Sample(
                key=f"{file.index:08d}",
                extension=format,
                label=-1,
                members={format: file.content, "json": document.encode()},
            )
