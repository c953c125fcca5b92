"""Datasets of generated images: as image files, or in shards.

    FOLDER/manifest.json              STORE/manifest.json
           metadata.jsonl                   index.npy, sizes.json, _info.json, wids.json
           images/00000000.jpg ...          NAME-00.tar ...

Both are jobs: see `pipelines.shards.job`. metadata.jsonl has a line of JSON an image, in order. The
shards are those that pixmix-shard makes of the files.
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
from pipelines.generate.generator import (
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

_COPY = "copy it from elsewhere, or remove the folder and generate the dataset again"


# --- image files ---------------------------------------------------------------------------------


class _Manifest(TypedDict):
    """What the manifest of a dataset of image files has."""

    kind: str
    status: Literal["complete"]
    images: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    licence: NotRequired[str]
    settings: dict[str, Any]
    made_with: dict[str, Any]
    drafts: Count
    acceptance_rate: Annotated[float, msgspec.Meta(ge=0, le=1)]
    metadata_sha256: Sha256


class Record(msgspec.Struct):
    """What a dataset needs of the record of an image."""

    index: Count
    file: str
    file_sha256: Sha256
    attempts: Annotated[int, msgspec.Meta(ge=1, le=2**48)]

    def is_of(self, number: int, format: str) -> bool:
        """Return whether it is the record of an image."""
        return self.index == number and self.file == f"{IMAGES}/{image_name(number, format)}"


def image_job(
    folder: Path, generator: Generator, *, n: int, format: str = "jpg", chunk: int = 32
) -> Job:
    """Return the job of generating images 0..n-1 into files.

    Args:
        folder: of the dataset; made if absent.
        generator: what generates the images.
        n: number of images.
        format: a key of `ENCODERS`.
        chunk: images that a process generates between two commits to the disk.
    """
    if n < 1:
        raise ValueError(f"n is {n}; use at least 1")
    check_no_file(folder, "the output")
    settings = {"kind": generator.kind(), **generator.settings(), "format": format}
    return Job(
        store=_ImageStore(path=folder),
        request=Request(settings=settings, made_with=versions_of(generator, format), n=n),
        product=_ImageFiles(folder=folder, generator=generator, format=format),
        chunk=chunk,
        exclusive=True,
        resizable=True,
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a dataset of image files.

    Raises:
        PipelineError: if there is none, it is another program's, or it is damaged.
        OSError: if it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        content = read_regular(path, max_bytes=MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PipelineError(
            f"{folder} is not a dataset of images: it has no {MANIFEST_NAME}; use a folder made by "
            "pixmix-gen"
        ) from error
    return _parse_manifest(content, path)


class _Settings(msgspec.Struct):
    settings: dict[str, Any]


def earlier_settings(store: OutputStore) -> dict[str, Any]:
    """Return the settings of the dataset in a store, closed or not; empty where there is none.

    Raises:
        PipelineError: if it is damaged or cannot be read.
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
            f"{path.parent} holds shards, not image files; check them with pixmix-shard verify, "
            "resume them with --to-shards, or choose another folder"
        )
    if not found.keys() >= {"kind", "status", "images", "settings", "made_with"}:
        raise PipelineError(
            f"{path} is not the manifest of a dataset of images; choose another folder"
        )
    manifest: dict[str, Any] = {**read_json(content, _Manifest, str(path), _COPY)}
    lacking = [f"made_with.{name}" for name in {"pixmix", "encoder"} - manifest["made_with"].keys()]
    if manifest["settings"].get("format") not in [*ENCODERS]:
        lacking.append("settings.format")
    if lacking:
        raise PipelineError(f"{path} is damaged, it lacks {', '.join(sorted(lacking))}; {_COPY}")
    return manifest


@dataclass(frozen=True, kw_only=True)
class _ImageStore(Folder):
    """A folder whose files include the images."""

    def sizes(self) -> dict[str, int]:
        """Return also the bytes of each image, by "images/NAME"."""
        found = super().sizes()
        with suppress(FileNotFoundError), os.scandir(self.path / IMAGES) as entries:
            for entry in entries:
                # A link may lead nowhere.
                with suppress(OSError):
                    found[f"{IMAGES}/{entry.name}"] = entry.stat().st_size
        return found

    def close(self) -> None:
        """Remove also what killed writers left among the images."""
        remove_partial_files(self.path / IMAGES)
        super().close()


@dataclass(frozen=True, kw_only=True)
class _ImageFiles:
    """Image files as the product of a job: an item is an image."""

    folder: Path
    generator: Generator
    format: str

    def weight(self, items: range) -> int:
        return len(items)

    def make(self, items: range, folder: Path) -> list[bytes]:
        files = [*generate_files(self.generator, self.format, items, len(items))]
        (folder / IMAGES).mkdir(exist_ok=True)
        write_files(folder / IMAGES, {file.name: file.content for file in files})
        # By file_name `load_dataset("imagefolder")` of Hugging Face finds the image of a line.
        records = [{**file.record, "file_name": file.record["file"]} for file in files]
        return [
            json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
            for record in records
        ]

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> tuple[bytes, int] | None:
        """Return the line and the number of drafts."""
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
            made_with=found["made_with"],
            n=found["images"],
        )

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        # While there are records, the manifest may be that of a smaller or an older dataset.
        if any(name.startswith(f"{DONE}/") for name in sizes):
            return False
        n = self.read_manifest(manifest).n
        names = (f"{IMAGES}/{image_name(number, self.format)}" for number in range(n))
        return all(sizes.get(name) for name in names) and self._has_its_metadata(manifest)

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        # Of another file than the manifest names any line may have changed.
        if self._has_its_metadata(manifest):
            with open_regular(self.folder / METADATA) as file:
                for number, line in enumerate(file):
                    if self.parse(number, line.rstrip(b"\n"), sizes) is not None:
                        yield number, line.rstrip(b"\n")

    def close(self, request: Request, records: Iterable[tuple[bytes, int]]) -> None:
        drafts = 0
        with new_file(self.folder / METADATA) as file:
            for line, attempts in records:
                file.write(line + b"\n")
                drafts += attempts
        for path in (self.folder / IMAGES).glob(f"[0-9]*.{self.format}"):
            # Behind the end of a dataset that was begun larger.
            if path.stem.isdecimal() and int(path.stem) >= request.n:
                path.unlink(missing_ok=True)
        manifest = {
            "kind": request.settings["kind"],
            "status": "complete",
            "images": request.n,
            "licence": self.generator.licence(),
            "settings": {name: each for name, each in request.settings.items() if name != "kind"},
            "made_with": request.made_with,
            "drafts": drafts,
            "acceptance_rate": round(request.n / drafts, 6),
            "metadata_sha256": file_sha256(self.folder / METADATA),
        }
        write_file(self.folder / MANIFEST_NAME, (json.dumps(manifest, indent=2) + "\n").encode())

    def _has_its_metadata(self, manifest: bytes) -> bool:
        named = _parse_manifest(manifest, self.folder / MANIFEST_NAME)["metadata_sha256"]
        with suppress(FileNotFoundError):
            return bool(file_sha256(self.folder / METADATA) == named)
        return False


# --- shards --------------------------------------------------------------------------------------


class _Numbers(msgspec.Struct):
    """What the settings of every sharded dataset have, beside those of its generator."""

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
    """Return the job of generating images 0..n-1 into shards.

    Args:
        store: of the shards.
        generator: what generates the images.
        n: number of images.
        name: of the dataset and its tars; letters a-z, digits, - and _.
        format: a key of `ENCODERS`.
        shard_size: images a shard, at most; the sizes differ by at most one.
        chunk: images that are generated at once.
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
    request = Request(settings=settings, made_with=versions, n=num_shards)
    return _sharded(store, request, generator, chunk)


def begun_shards(store: OutputStore) -> Job:
    """Return the job of the sharded dataset in a store, to be merged.

    Raises:
        PipelineError: if there is none, or it cannot be read.
    """
    with store_errors(store, 1):
        request = read_request(store)
        content = store.read(MANIFEST_NAME) if request is None else None
        if content is not None:
            request = _request_of(content, store)
        if request is None and any(name.endswith(".tar") for name in store.sizes()):
            raise PipelineError(
                f"{store.name} has no {MANIFEST_NAME}; if pixmix-gen made it, run that command "
                "again, which makes its shards anew"
            )
        if request is None:
            raise PipelineError(
                f"{store.name} holds no shards of pixmix-gen; use the --out of a command with "
                "--to-shards"
            )
        if not {"n", "name", "num_shards"} <= request.settings.keys():
            raise PipelineError(
                f"{store.name} is not a dataset of pixmix-gen --to-shards; one of image files is "
                "closed by the command that began it, and one of pixmix-shard by its own"
            )
    return _sharded(store, request, None, 1)


def _sharded(store: OutputStore, request: Request, generator: Generator | None, batch: int) -> Job:
    where = f"{store.name}/{REQUEST}"
    remedy = "merge what pixmix-gen --to-shards began, or remove it and generate it again"
    read_json(msgspec.json.encode(request.settings), _Numbers, where, remedy)
    product = _Shards(store=store, settings=request.settings, generator=generator, batch=batch)
    return Job(store=store, request=request, product=product)


def _request_of(manifest: bytes, store: OutputStore) -> Request:
    """Return what a closed set of shards was begun with.

    Raises:
        PipelineError: if the manifest is another one, as that of image files.
    """
    where = f"{store.name}/{MANIFEST_NAME}"
    if "status" in read_json(manifest, dict[str, Any], where, _COPY):
        raise PipelineError(
            f"{store.name} holds image files and no shards; choose another output for shards, or "
            "leave out --to-shards, which resumes that dataset and closes it without a merge"
        )
    found = parse_manifest(manifest, where)
    return Request(settings=found.settings, made_with=found.versions, n=len(found.shards))


@dataclass(frozen=True, kw_only=True)
class _Shards:
    """Shards of generated images as the product of a job: an item is a shard.

    settings: of the request. generator: None to close alone. batch: images generated at once.
    """

    store: OutputStore
    settings: Mapping[str, Any]
    generator: Generator | None
    batch: int

    def weight(self, items: range) -> int:
        return sum(len(self._numbers(shard)) for shard in items)

    def make(self, items: range, folder: Path) -> list[bytes]:
        return [
            json.dumps(write_tar(folder / self._name(shard), self._samples(shard))).encode()
            for shard in items
        ]

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        return parse_sidecar(line, self._name(item), sizes)

    def takes_over(self, names: set[str]) -> bool:
        # A dataset that lost its manifest is made anew: nothing vouches for its tars.
        tars = {self._name(shard) for shard in range(self.settings["num_shards"])}
        return bool(names & tars) and names <= tars | {
            INDEX_NAME,
            *export_documents("", SPLIT, [], []),
        }

    def read_manifest(self, manifest: bytes) -> Request:
        return _request_of(manifest, self.store)

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        found = parse_manifest(manifest, self.store.name)
        least: int = found.num_samples * SAMPLE.itemsize
        return bool(
            all(sizes.get(shard.file) == shard.n_bytes for shard in found.shards)
            and sizes.get(found.index.file, 0) > least
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
                versions=request.made_with,
            )

    def _name(self, shard: int) -> str:
        return shard_name(self.settings["name"], shard, self.settings["num_shards"])

    def _numbers(self, shard: int) -> range:
        return bounds(self.settings["n"], self.settings["num_shards"], shard)

    def _samples(self, shard: int) -> Iterator[Sample]:
        assert self.generator is not None, "merging makes no shards"
        format = self.settings["format"]
        for file in generate_files(self.generator, format, self._numbers(shard), self.batch):
            # As pixmix-shard has it of a dataset of image files.
            record = {"filename": file.record["file"], **file.record}
            document = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
            yield Sample(
                key=f"{file.number:08d}",
                extension=format,
                label=-1,
                members={format: file.content, "json": document.encode()},
            )
