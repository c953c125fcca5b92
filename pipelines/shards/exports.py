"""Small files beside shards, each for readers that know nothing of our manifest.

sizes.json    open_clip: samples of each tar
_info.json    timm: name, tars and lengths of each split
wids.json     webdataset's wids: tars with size, count and MD5
NAME.idx      NVIDIA DALI: where each member of a tar lies
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.shards.format import Shard, ShardSet
from pipelines.shards.tar import Ignored, group_members, scan_tar
from pipelines.system.files import file_sha256, read_regular, write_file

TIMM_NAME, WIDS_NAME, SIZES_NAME = "_info.json", "wids.json", "sizes.json"

SCAN_NAME = "scan.jsonl"
"""A line for each file of the source that is nonstandard, undecodable or rotated."""

_LARGEST = 2**30
"""Bytes of such a file: of a million shards it has some 200 million."""

DALI_VERSION = "v1.2"


def export_documents(
    name: str, split: str, shards: Sequence[Shard], md5: Sequence[str]
) -> dict[str, Any]:
    """Return the documents of a set: file name -> JSON values.

    Args:
        name: of the set.
        split: as in "train".
        shards: the tars.
        md5: of each, which wids asks for.
    """
    return {
        SIZES_NAME: {shard.file: shard.n_samples for shard in shards},
        TIMM_NAME: {
            "splits": {
                split: {
                    "name": split,
                    "num_samples": sum(shard.n_samples for shard in shards),
                    "filenames": [shard.file for shard in shards],
                    "shard_lengths": [shard.n_samples for shard in shards],
                }
            }
        },
        WIDS_NAME: {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": name,
            "shardlist": [
                {
                    "url": shard.file,
                    "md5sum": digest,
                    "nsamples": shard.n_samples,
                    "filesize": shard.n_bytes,
                }
                for shard, digest in zip(shards, md5, strict=True)
            ],
        },
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON, whole or not at all.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    write_file(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def join_splits(folder: Path, splits: Sequence[str]) -> None:
    """Write the _info.json of a folder whose sub-folders are sets, one a split.

    timm takes one folder for training and validation; its own form allows tars in sub-folders.

    Args:
        folder: the folder above.
        splits: names of sub-folders; those that are no finished set are skipped.

    Raises:
        PipelineError: if the _info.json of a split is damaged.
        OSError: if it cannot be written.
    """
    joined = {}
    for split in splits:
        path = folder / split / TIMM_NAME
        if not path.is_file():
            continue
        try:
            for name, info in json.loads(read_regular(path, max_bytes=_LARGEST))["splits"].items():
                files = [f"{split}/{file}" for file in info["filenames"]]
                joined[name] = info | {"filenames": files}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PipelineError(f"{path} is damaged; run the command that made it again") from error
    write_json(folder / TIMM_NAME, {"splits": joined})


def export_faults(folder: Path, shards: ShardSet, md5: Sequence[str] | None = None) -> list[str]:
    """Return what is wrong with the files beside a set that was made here, a line each.

    Args:
        folder: of the set.
        shards: the set.
        md5: of each tar; None does not compare them, nor DALI's indices, which takes reading tars.

    Raises:
        OSError: if a file cannot be read.
    """
    found = {name: _json_of(folder / name) for name in (SIZES_NAME, TIMM_NAME, WIDS_NAME)}
    split = next(iter(_dict(_dict(found[TIMM_NAME]).get("splits"))), "train")
    sums = md5
    if sums is None:
        listed = _dict(found[WIDS_NAME]).get("shardlist")
        entries = listed if isinstance(listed, list) else []
        sums = [str(_dict(entry).get("md5sum")) for entry in entries]
        sums += [""] * (len(shards.shards) - len(sums))
    expected = export_documents(shards.name, split, shards.shards, sums[: len(shards.shards)])
    faults = [
        f"{folder / name} is missing, or does not describe the shards"
        for name, document in expected.items()
        if found[name] != document
    ]
    if shards.settings.get("dali_index"):
        for number, shard in enumerate(shards.shards):
            tar = shards.path(number)
            index = tar.with_suffix(".idx")
            if not _is_dali_index(index, tar, shard.n_samples, read_tar=md5 is not None):
                faults.append(f"{index} is missing, or is not the index of {tar.name}")
    listed_sha256 = shards.settings.get("found_sha256")
    scan = folder / SCAN_NAME
    if listed_sha256 and not (scan.is_file() and file_sha256(scan) == listed_sha256):
        faults.append(f"{scan} is missing, or is not the one that the manifest names")
    return faults


def _dict(value: Any) -> dict[str, Any]:  # noqa: ANN401
    return value if isinstance(value, dict) else {}


def _json_of(path: Path) -> Any:  # noqa: ANN401
    """Return the JSON value of a file; None where there is none."""
    try:
        return json.loads(read_regular(path, max_bytes=_LARGEST))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _is_dali_index(path: Path, tar: Path, n_samples: int, *, read_tar: bool) -> bool:
    """Return whether a file is DALI's index of a tar, whose lines are counted at least."""
    try:
        content = read_regular(path, max_bytes=_LARGEST)
    except FileNotFoundError:
        return False
    if read_tar:
        return content == dali_index(tar)
    return content.startswith(b"%s %d\n" % (DALI_VERSION.encode(), n_samples)) and (
        content.count(b"\n") == n_samples + 1
    )


def dali_index(tar: Path) -> bytes:
    """Return DALI's index of a tar, as its wds2idx makes it: a line a sample, four words a member.

    Raises:
        PipelineError: if the tar is damaged.
        OSError: if it cannot be read.
    """
    lines = []
    for sample in group_members(tar, scan_tar(tar), Ignored()):
        words = [
            f"{suffix} {member.offset} {member.size} {member.name}"
            for suffix, member in sample.members.items()
        ]
        lines.append(" ".join(words))
    return "\n".join([f"{DALI_VERSION} {len(lines)}", *lines, ""]).encode()
