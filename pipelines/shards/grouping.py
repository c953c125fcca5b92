"""Which members of a tar are one sample, by webdataset's rule, without its silences.

A member's key is its path up to the first dot of its base name, and neighbours of one key are a
sample. Where that rule would merge or part what belongs apart or together, the tar is refused.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from json import loads
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.shards.index import SAMPLE
from pipelines.shards.keys import key_of
from pipelines.shards.picture_files import FOLDER_EXTENSIONS, is_ignored_name
from pipelines.shards.tars import Member, scan_tar
from pipelines.system.files import open_regular

PICTURE_EXTENSIONS = frozenset({*FOLDER_EXTENSIONS, "gif"})

EXECUTABLE_EXTENSIONS = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill"})
"""Of members that the usual readers run as code when they decode a sample. They are never read."""

_LARGEST_LABEL_MEMBER = 2**20
_LARGEST_LABEL = 2**31 - 1


@dataclass(frozen=True)
class TarSample:
    """A sample of a tar. members: suffix, lower-case and without its first dot -> member."""

    key: str
    members: dict[str, Member]


@dataclass
class Left:
    """What of a tar is in no sample, or is never read, by reason: how often, and one name."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, reason: str, name: str, count: int = 1) -> None:
        """Count something that is left."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, name)


def suffix_of(name: str) -> str:
    """Return what follows the first dot of a member's base name, lower-case; "" if nothing does."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def group_members(path: Path, members: Iterable[Member], left: Left) -> Iterator[TarSample]:
    """Give the samples of a tar.

    Args:
        path: the tar, for the errors.
        members: as `tars.scan_tar` gives them.
        left: takes what belongs to no sample, and what is never read.

    Raises:
        PipelineError: if a name comes twice in a sample, or the members of a sample do not lie
            together.
    """
    seen: set[str] = set()
    for key, run in groupby(_of_samples(members, left), key=lambda member: key_of(member.name)):
        if key in seen:
            raise PipelineError(
                f"{path}: the members of sample {key!r} do not lie together, so readers make two "
                "samples of them; write the tar again, sorted by name"
            )
        seen.add(key)
        by_suffix: dict[str, Member] = {}
        for member in run:
            suffix = suffix_of(member.name)
            if suffix in by_suffix:
                raise PipelineError(f"{path} holds {member.name!r} twice; write the tar again")
            if suffix.rpartition(".")[2] in EXECUTABLE_EXTENSIONS:
                left.note("never read, for it could run code", member.name)
            by_suffix[suffix] = member
        yield TarSample(key, by_suffix)


def picture_of(path: Path, sample: TarSample) -> tuple[str, Member] | None:
    """Return the suffix and the member of a sample's picture; None where it has none.

    It is the one member whose suffix is a picture's extension, or, where there is none, the one
    whose suffix ends in it ("a.v1.jpg", a key with a dot).

    Raises:
        PipelineError: if there are several.
    """
    for pattern in (r"[^.]+", r".+\.[^.]+"):
        pictures = [
            suffix
            for suffix in sample.members
            if re.fullmatch(pattern, suffix) and suffix.rpartition(".")[2] in PICTURE_EXTENSIONS
        ]
        if len(pictures) > 1:
            names = " and ".join(sample.members[suffix].name for suffix in pictures[:2])
            raise PipelineError(
                f"{path}: {names} are one sample, {sample.key!r}, for a key ends at the first dot; "
                "write the tar again with keys without dots and one picture each"
            )
        if pictures:
            return pictures[0], sample.members[pictures[0]]
    return None


def label_of(path: Path, descriptor: int, sample: TarSample, picture: str) -> tuple[int, str]:
    """Return a sample's label and the extension of the member that says it; -1 and "" without one.

    Asked are, in this order, .cls; "label" or "cls" in .json; .txt if it is a number and nothing
    else. Beside a picture "a.v1.jpg" these may be called "a.v1.cls" and so on.

    Args:
        path: the tar, for the errors.
        descriptor: of the open tar.
        sample: the sample.
        picture: the suffix of its picture.

    Raises:
        PipelineError: if .cls is no number, or .json no JSON.
    """
    stem = picture.rpartition(".")[0]
    for extension, read in (("cls", _of_cls), ("json", _of_json), ("txt", _of_text)):
        suffixes = [f"{stem}.{extension}", extension] if stem else [extension]
        member = next((sample.members[s] for s in suffixes if s in sample.members), None)
        if member is None:
            continue
        if member.size > _LARGEST_LABEL_MEMBER:
            raise PipelineError(
                f"{path}: {member.name!r} has {member.size} bytes, too many for a label; at most "
                f"{_LARGEST_LABEL_MEMBER} are read"
            )
        try:
            label = read(os.pread(descriptor, member.size, member.offset))
        # The second for JSON that is nested beyond reason.
        except (ValueError, RecursionError) as error:
            raise PipelineError(f"{path}: {member.name!r} holds no label ({error})") from error
        if label is not None:
            if not 0 <= label <= _LARGEST_LABEL:
                raise PipelineError(
                    f"{path}: {member.name!r} says label {label}; labels are 0 to {_LARGEST_LABEL}"
                )
            return label, extension
    return -1, ""


def samples_of_tar(path: Path, number: int, left: Left) -> tuple[NDArray[np.void], frozenset[str]]:
    """Return the samples that a tar really holds, from its headers and labels.

    Args:
        path: the tar.
        number: of the shard, for the rows.
        left: takes what belongs to no sample, a sample without a picture too.

    Returns:
        (n,) SAMPLE, and the suffixes of the pictures.

    Raises:
        PipelineError: if the tar is damaged or cannot be read in one way only.
        OSError: if it cannot be read.
    """
    rows = []
    suffixes = set()
    with open_regular(path) as file:
        for sample in group_members(path, scan_tar(path), left):
            picture = picture_of(path, sample)
            if picture is None:
                left.note("no sample, for it has no picture", sample.key)
                continue
            suffix, member = picture
            if member.size == 0:
                left.note("no sample, for its picture is empty", sample.key)
                continue
            label, _ = label_of(path, file.fileno(), sample, suffix)
            rows.append((number, member.size, member.offset, label))
            suffixes.add(suffix)
    return np.array(rows, SAMPLE), frozenset(suffixes)


def _of_samples(members: Iterable[Member], left: Left) -> Iterator[Member]:
    for member in members:
        base = member.name.rpartition("/")[2]
        # As webdataset does: hidden files, names without a dot, and its own "__meta__" entries;
        # and what file managers and archivers leave, which is in no set on purpose.
        if any(is_ignored_name(part) for part in member.name.split("/") if part != "."):
            left.note("no sample, for the file or its folder is hidden", member.name)
        elif "." not in base:
            left.note("no sample, for the name has no key and extension", member.name)
        elif re.match(r"__[^/]*__($|/)", member.name):
            left.note("no sample, but a note of the tar's own", member.name)
        else:
            yield member


def _of_cls(content: bytes) -> int:
    return int(content.decode())


def _of_json(content: bytes) -> int | None:
    document = loads(content)
    if isinstance(document, dict):
        for name in ("label", "cls"):
            value = document.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _of_text(content: bytes) -> int | None:
    match = re.fullmatch(rb"\s*(\d{1,10})\s*", content)
    return int(match[1]) if match else None
