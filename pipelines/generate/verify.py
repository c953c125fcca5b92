"""Is a set on disk what its manifest says, and can it be painted again?"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from pipelines.errors import PipelineError
from pipelines.generate.encoding import (
    LOSSLESS,
    decode,
    encode,
    encoder_version,
    peak_signal_to_noise,
)
from pipelines.generate.painting import Painter, pixel_sha256
from pipelines.generate.plan import spread
from pipelines.generate.records import is_of, picture_name, read_records
from pipelines.shards.images import read_image_file
from pipelines.system.files import file_sha256, sha256
from pipelines.system.progress import Progress, no_progress

SAME_PICTURE_DECIBELS = 40.0
"""Two encoders of one picture differ by rounding: 61 dB was seen between qualities 95 and 97, 13 dB
between pictures of other content."""

_COPY = "copy manifest.json from elsewhere"
_AGAIN = "give the command that made the set again"


@dataclass(kw_only=True)
class Verdict:
    """What `verify_set` found.

    sampled: pictures that were painted again; faults: one line each, by what they concern.
    """

    pictures: int
    sampled: int
    complete: bool
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the set is complete and without fault."""
        return self.complete and not self.faults


def verify_set(
    folder: Path,
    manifest: dict[str, Any],
    painter: Painter,
    *,
    sample: int,
    progress: Progress = no_progress,
) -> Verdict:
    """Check every file of a set against its record, and paint a sample of its pictures again.

    Args:
        folder: the set.
        manifest: its manifest; see `sets.read_manifest`.
        painter: the painter of the manifest's settings.
        sample: how many pictures to paint again, spread evenly; all, if the set has fewer.
        progress: called with the pictures checked so far and their number.

    Returns:
        The verdict; of a partial set, that it is partial and no more.

    Raises:
        PipelineError: if the pictures were painted by other versions of the code.
    """
    n = manifest["pictures"]
    if manifest["status"] != "complete":
        return Verdict(pictures=n, sampled=0, complete=False)
    for name, version in painter.versions().items():
        if manifest["made_with"].get(name) != version:
            raise PipelineError(
                f"{name}: {folder} was made with {manifest['made_with'].get(name)}, here is "
                f"{version}; install pixmix {manifest['made_with']['pixmix']} to verify it"
            )
    sampled = set(spread(sample, n))
    verdict = Verdict(pictures=n, sampled=0, complete=True)
    metadata = folder / "metadata.jsonl"
    if not metadata.exists():
        verdict.faults.append(f"metadata.jsonl is missing; {_AGAIN}, which paints all anew")
        return verdict
    if file_sha256(metadata) != manifest["metadata_sha256"]:
        verdict.faults.append(
            "metadata.jsonl is not the file that the manifest names; "
            f"{_AGAIN}, which paints all anew"
        )
        return verdict
    check = _Check(folder, manifest, painter)
    format = manifest["settings"]["format"]
    lines = own = 0
    for lines, record in enumerate(read_records(metadata), start=1):
        if lines > n or not is_of(record, lines - 1, format):
            continue
        progress(own, n)
        own += 1
        if fault := check.fault(record, again=lines - 1 in sampled):
            verdict.faults.append(f"{record['file']} {fault}")
    progress(n, n)
    if (lines, own) != (n, n):
        verdict.faults.insert(
            0,
            f"metadata.jsonl has {lines} lines, {own} of them the record of the picture of their "
            f"place, and the set has {n} pictures; delete it and {_AGAIN}, which paints all anew",
        )
    verdict.faults.extend(_manifest_faults(manifest, painter, check.drafts))
    verdict.sampled = check.repainted
    verdict.faults.extend(_strangers(folder, format, n))
    return verdict


def _manifest_faults(manifest: dict[str, Any], painter: Painter, drafts: int) -> Iterable[str]:
    """Yield what a manifest says other than its painter and its records, of all that it says."""
    expected = {
        "kind": painter.kind(),
        "licence": painter.licence(),
        "settings": painter.settings() | {"format": manifest["settings"]["format"]},
        "drafts": drafts,
        "acceptance_rate": round(manifest["pictures"] / max(drafts, 1), 6),
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
    painter: Painter
    repainted: int = 0
    drafts: int = 0

    def fault(self, record: dict[str, Any], *, again: bool) -> str | None:
        """Say what is wrong with one picture, in words that follow its name.

        again: paint it again, and count it in `repainted` if it can be.
        """
        self.drafts += record["attempts"]
        try:
            content = read_image_file(self.folder / record["file"])
        except FileNotFoundError:
            return f"is missing; {_AGAIN}, which paints it anew"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if sha256(content) != record["file_sha256"]:
            return f"is not the file that was written; delete it and {_AGAIN}, which paints it anew"
        for name, value in self.manifest["settings"].items():
            if record.get(name, value) != value:
                return f"has {name} {record[name]} in its record, and {value} in manifest.json"
        return self._repainting_fault(record, content) if again else None

    def _repainting_fault(self, record: dict[str, Any], content: bytes) -> str | None:
        try:
            decoded = decode(content)
        except OSError:
            return "cannot be decoded"
        format = self.manifest["settings"]["format"]
        picture = self.painter.repaint(record)
        if picture is None:
            return None
        self.repainted += 1
        if picture.shape != decoded.shape:
            return f"has shape {decoded.shape}, painted again {picture.shape}"
        if pixel_sha256(picture) != record["sha256"]:
            ratio = peak_signal_to_noise(picture, decoded)
            return f"has other pixels when painted again ({ratio:.1f} dB from the file)"
        if format in LOSSLESS:
            return None if (picture == decoded).all() else "decodes to other pixels"
        encoded = encode(picture, format)
        if self.manifest["made_with"]["encoder"] == encoder_version(format):
            return None if encoded == content else "is not what the encoder gives"
        ratio = peak_signal_to_noise(decode(encoded), decoded)
        if ratio < SAME_PICTURE_DECIBELS:
            return f"shows another picture ({ratio:.1f} dB)"
        return None


def _strangers(folder: Path, format: str, n: int) -> Iterable[str]:
    own = {picture_name(index, format) for index in range(n)}
    for entry in sorted((folder / "images").iterdir()):
        if entry.name not in own:
            yield f"images/{entry.name} does not belong to the set; remove it"
