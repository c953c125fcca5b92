"""Verify that a dataset of image files matches its manifest and can be generated again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import msgspec

from pipelines.errors import PipelineError
from pipelines.generate.generators import (
    IMAGES,
    LOSSLESS,
    Generator,
    decode,
    encode,
    encoder_version,
    image_name,
    peak_signal_to_noise,
    pixel_sha256,
)
from pipelines.generate.products import METADATA, Record, read_manifest
from pipelines.shards.images import read_image_file
from pipelines.shards.job import read_request
from pipelines.shards.output import Folder
from pipelines.system.files import file_sha256, open_regular, sha256
from pipelines.system.progress import Progress, no_progress
from pipelines.system.ranks import spread

SAME_IMAGE_DECIBELS = 40.0
"""Two encoders of one image differ by rounding. Measured: 61 dB between JPEG qualities 95 and 97,
13 dB between different images."""

_COPY = "restore manifest.json from a copy"
_AGAIN = "repeat the command that generated the dataset"
_REGENERATES = "all images are then regenerated"


@dataclass(kw_only=True)
class Verdict:
    """The result of `verify_images`.

    Attributes:
        n: number of images.
        sampled: how many of them were generated again.
        complete: whether the dataset is complete.
        faults: one line for each fault, which begins with the name of the file.
    """

    n: int
    sampled: int = 0
    complete: bool = True
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the dataset is complete and has no fault."""
        return self.complete and not self.faults


def verify_images(
    folder: Path,
    find_generator: Callable[[dict[str, Any]], Generator],
    *,
    sample: int,
    progress: Progress = no_progress,
) -> Verdict:
    """Check every file of a dataset against its record, and generate a sample of its images again.

    Args:
        folder: folder of the dataset.
        find_generator: returns the generator of a manifest.
        sample: number of images to generate again, spread evenly; all if there are fewer.
        progress: called with the number of images checked so far and their total.

    Returns:
        The verdict. An incomplete dataset is not checked any further.

    Raises:
        PipelineError: if the folder has no dataset, the manifest is damaged, or other versions of
            the code generated the images.
    """
    request = read_request(Folder(path=folder)) if folder.is_dir() else None
    if request is not None:
        return Verdict(n=request.n, complete=False)
    manifest = read_manifest(folder)
    generator = find_generator(manifest)
    n = manifest["images"]
    for name, version in generator.versions().items():
        if manifest["versions"].get(name) != version:
            raise PipelineError(
                f"{name}: {folder} was generated with {manifest['versions'].get(name)}, but this "
                f"is {version}; install pixmix {manifest['versions']['pixmix']} to verify it"
            )
    verdict = Verdict(n=n)
    metadata = folder / METADATA
    if not metadata.exists():
        verdict.faults.append(f"{METADATA} is missing; {_AGAIN}; {_REGENERATES}")
        return verdict
    if file_sha256(metadata) != manifest["metadata_sha256"]:
        verdict.faults.append(
            f"{METADATA} differs from its SHA-256 in the manifest; {_AGAIN}; {_REGENERATES}"
        )
        return verdict
    sampled = set(spread(sample, n))
    check = _Check(folder, manifest, generator)
    lines = matching = 0
    with open_regular(metadata) as file:
        for lines, line in enumerate(file, start=1):
            if lines > n or not _is_of(line, lines - 1, manifest["settings"]["format"]):
                continue
            progress(matching, n)
            matching += 1
            record = json.loads(line)
            if fault := check.fault(record, again=lines - 1 in sampled):
                verdict.faults.append(f"{record['file']} {fault}")
    progress(n, n)
    if (lines, matching) != (n, n):
        verdict.faults.insert(
            0,
            f"{METADATA} has {lines} lines, of which {matching} are the record of their image, "
            f"but the dataset has {n} images; delete it and {_AGAIN}; {_REGENERATES}",
        )
    verdict.faults.extend(_manifest_faults(manifest, generator, check.drafts))
    verdict.sampled = check.generated
    verdict.faults.extend(_unknown_files(folder, manifest["settings"]["format"], n))
    return verdict


def _is_of(line: bytes, index: int, format: str) -> bool:
    try:
        return msgspec.json.decode(line, type=Record).is_of(index, format)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _unknown_files(folder: Path, format: str, n: int) -> Iterator[str]:
    known = {image_name(index, format) for index in range(n)}
    for path in sorted((folder / IMAGES).iterdir()):
        if path.name not in known:
            yield f"{IMAGES}/{path.name} does not belong to the dataset; remove it"


def _manifest_faults(manifest: dict[str, Any], generator: Generator, drafts: int) -> Iterator[str]:
    """Yield each value of a manifest that differs from its generator or its records."""
    expected = {
        "kind": generator.kind(),
        "licence": generator.licence(),
        "settings": generator.settings() | {"format": manifest["settings"]["format"]},
        "drafts": drafts,
        "acceptance_rate": round(manifest["images"] / max(drafts, 1), 6),
    }
    for name, value in expected.items():
        if manifest.get(name) != value:
            yield (
                f"manifest.json has {name} {shortened(manifest.get(name))}, expected "
                f"{shortened(value)}; {_COPY}"
            )


@dataclass
class _Check:
    folder: Path
    manifest: dict[str, Any]
    generator: Generator
    generated: int = 0
    drafts: int = 0

    def fault(self, record: dict[str, Any], *, again: bool) -> str | None:
        """Return what is wrong with an image, as words that follow its name; None if it is good.

        again: whether to generate it again; `generated` counts the images for which that worked.
        """
        self.drafts += record["attempts"]
        try:
            content = read_image_file(self.folder / record["file"])
        except FileNotFoundError:
            return f"is missing; {_AGAIN} to restore it"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if sha256(content) != record["file_sha256"]:
            return f"has changed since it was written; delete it and {_AGAIN}"
        for name, value in self.manifest["settings"].items():
            if record.get(name, value) != value:
                return f"has {name} {record[name]} in its record, but {value} in manifest.json"
        return self._pixel_fault(record, content) if again else None

    def _pixel_fault(self, record: dict[str, Any], content: bytes) -> str | None:
        try:
            decoded = decode(content)
        except OSError:
            return "cannot be decoded"
        format = self.manifest["settings"]["format"]
        image = self.generator.regenerate(record)
        if image is None:
            return None
        self.generated += 1
        if image.shape != decoded.shape:
            return f"has shape {decoded.shape}, but {image.shape} when it is generated again"
        if pixel_sha256(image) != record["sha256"]:
            ratio = peak_signal_to_noise(image, decoded)
            return f"has different pixels when it is generated again ({ratio:.1f} dB from the file)"
        if format in LOSSLESS:
            return None if (image == decoded).all() else "decodes to different pixels"
        encoded = encode(image, format)
        if self.manifest["versions"]["encoder"] == encoder_version(format):
            return None if encoded == content else "differs from the encoder's output"
        ratio = peak_signal_to_noise(decode(encoded), decoded)
        if ratio < SAME_IMAGE_DECIBELS:
            return f"shows a different image ({ratio:.1f} dB)"
        return None
