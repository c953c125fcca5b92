"""A simple product of a job: item i is a file with its number, and the manifest lists all."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.shards.job import Job, Request
from pipelines.shards.output import Folder, OutputStore
from pipelines.system.files import write_file


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Writes item i to the file i.txt."""

    store: OutputStore

    def weight(self, items: range) -> int:
        return len(items)

    def make(self, items: range, folder: Path) -> Iterator[bytes]:
        for item in items:
            write_file(folder / f"{item}.txt", b"%d" % item)
            yield json.dumps({"item": item}).encode()

    def parse(self, item: int, line: bytes, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        try:
            record = json.loads(line)
        except ValueError:
            return None
        return record if record == {"item": item} and sizes.get(f"{item}.txt") else None

    def takes_over(self, names: set[str]) -> bool:
        return not names

    def read_manifest(self, manifest: bytes) -> Request:
        document = json.loads(manifest)
        return Request(**document["request"], n=len(document["records"]))

    def is_complete(self, manifest: bytes, sizes: Mapping[str, int]) -> bool:
        return all(sizes.get(f"{item}.txt") for item in range(self.read_manifest(manifest).n))

    def records(self, manifest: bytes, sizes: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        for item, record in enumerate(json.loads(manifest)["records"]):
            if sizes.get(f"{item}.txt"):
                yield item, json.dumps(record).encode()

    def close(self, request: Request, records: Iterable[dict[str, Any]]) -> None:
        begun = {"settings": request.settings, "versions": request.versions}
        document = {"request": begun, "records": [*records]}
        with self.store.writing() as folder:
            write_file(folder / "manifest.json", json.dumps(document).encode())


def fake_job(
    folder: Path, *, n: int = 5, chunk: int = 2, seed: int = 0, version: int = 1, **rules: bool
) -> Job:
    """Return a job of n numbers. rules: `exclusive` and `resizable`."""
    store = Folder(path=folder)
    return Job(
        store=store,
        request=Request(settings={"seed": seed}, versions={"pixmix": "1", "v": version}, n=n),
        product=Numbers(store=store),
        chunk=chunk,
        **rules,
    )
