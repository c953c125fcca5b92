"""Check that a dataset of image files is what its manifest says, and can be generated again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import msgspec

from pipelines.errors import PipelineError
from pipelines.generate.generator import (
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
"""Two encoders of one image differ by rounding: 61 dB was seen between qualities 95 and 97, 13 dB
between images of other content."""

_COPY = "copy manifest.json from elsewhere"
_AGAIN = "run the command that made the dataset again"


@dataclass(kw_only=True)
class Verdict:
    """What `verify_images` found.

    n: images. sampled: those that were generated again. complete: the dataset is not in the making.
    faults: one line each, by what they concern.
    """

    n: int
    sampled: int = 0
    complete: bool = True
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the dataset is complete and without fault."""
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
        folder: the dataset.
        find_generator: returns the generator of a manifest.
        sample: how many images to generate again, spread evenly; all, if there are fewer.
        progress: called with the images checked so far and their number.

    Returns:
        The verdict; of a dataset in the making, that it is not complete and no more.

    Raises:
        PipelineError: if there is no dataset, its manifest is damaged, or its images were generated
            by other versions of the code.
    """
    request = read_request(Folder(path=folder)) if folder.is_dir() else None
    if request is not None:
        return Verdict(n=request.n, complete=False)
    manifest = read_manifest(folder)
    generator = find_generator(manifest)
    n = manifest["images"]
    for name, version in generator.versions().items():
        if manifest["made_with"].get(name) != version:
            raise PipelineError(
                f"{name}: {folder} was made with {manifest['made_with'].get(name)}, here is "
                f"{version}; install pixmix {manifest['made_with']['pixmix']} to verify it"
            )
    verdict = Verdict(n=n)
    metadata = folder / METADATA
    if not metadata.exists():
        verdict.faults.append(f"{METADATA} is missing; {_AGAIN}, which generates all images anew")
        return verdict
    if file_sha256(metadata) != manifest["metadata_sha256"]:
        verdict.faults.append(
            f"{METADATA} is not the file that the manifest names; {_AGAIN}, which generates all "
            "images anew"
        )
        return verdict
    sampled = set(spread(sample, n))
    check = _Check(folder, manifest, generator)
    lines = own = 0
    with open_regular(metadata) as file:
        for lines, line in enumerate(file, start=1):
            if lines > n or not _is_of(line, lines - 1, manifest["settings"]["format"]):
                continue
            progress(own, n)
            own += 1
            record = json.loads(line)
            if fault := check.fault(record, again=lines - 1 in sampled):
                verdict.faults.append(f"{record['file']} {fault}")
    progress(n, n)
    if (lines, own) != (n, n):
        verdict.faults.insert(
            0,
            f"{METADATA} has {lines} lines, {own} of them the record of the image of their place, "
            f"and the dataset has {n} images; delete it and {_AGAIN}, which generates all anew",
        )
    verdict.faults.extend(_manifest_faults(manifest, generator, check.drafts))
    verdict.sampled = check.generated
    verdict.faults.extend(_strangers(folder, manifest["settings"]["format"], n))
    return verdict


def _is_of(line: bytes, number: int, format: str) -> bool:
    try:
        return msgspec.json.decode(line, type=Record).is_of(number, format)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _strangers(folder: Path, format: str, n: int) -> Iterator[str]:
    own = {image_name(number, format) for number in range(n)}
    for path in sorted((folder / IMAGES).iterdir()):
        if path.name not in own:
            yield f"{IMAGES}/{path.name} does not belong to the dataset; remove it"


def _manifest_faults(manifest: dict[str, Any], generator: Generator, drafts: int) -> Iterator[str]:
    """Yield each value of a manifest that its generator and its records contradict."""
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
        """Return what is wrong with an image, in words that follow its name.

        again: whether to generate it again, and count it in `generated` if that is possible.
        """
        self.drafts += record["attempts"]
        try:
            content = read_image_file(self.folder / record["file"])
        except FileNotFoundError:
            return f"is missing; {_AGAIN}, which generates it anew"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if sha256(content) != record["file_sha256"]:
            return (
                f"is not the file that was written; delete it and {_AGAIN}, which generates it anew"
            )
        for name, value in self.manifest["settings"].items():
            if record.get(name, value) != value:
                return f"has {name} {record[name]} in its record, and {value} in manifest.json"
        return self._generating_fault(record, content) if again else None

    def _generating_fault(self, record: dict[str, Any], content: bytes) -> str | None:
        try:
            decoded = decode(content)
        except OSError:
            return "cannot be decoded"
        format = self.manifest["settings"]["format"]
        image = self.generator.generate_again(record)
        if image is None:
            return None
        self.generated += 1
        if image.shape != decoded.shape:
            return f"has shape {decoded.shape}, generated again {image.shape}"
        if pixel_sha256(image) != record["sha256"]:
            ratio = peak_signal_to_noise(image, decoded)
            return f"has other pixels when it is generated again ({ratio:.1f} dB from the file)"
        if format in LOSSLESS:
            return None if (image == decoded).all() else "decodes to other pixels"
        encoded = encode(image, format)
        if self.manifest["made_with"]["encoder"] == encoder_version(format):
            return None if encoded == content else "is not what the encoder returns"
        ratio = peak_signal_to_noise(decode(encoded), decoded)
        if ratio < SAME_IMAGE_DECIBELS:
            return f"shows another image ({ratio:.1f} dB)"
        return None
