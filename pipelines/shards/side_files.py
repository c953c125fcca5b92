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
from pipelines.shards.files import write_file
from pipelines.shards.grouping import Left, group_members
from pipelines.shards.index import Shard
from pipelines.shards.tars import scan_tar

TIMM_NAME = "_info.json"
DALI_VERSION = "v1.2"


def side_files(
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
        "sizes.json": {shard.file: shard.n_samples for shard in shards},
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
        "wids.json": {
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
        splits: names of sub-folders; those that are no finished set are left out.

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
            for name, info in json.loads(path.read_bytes())["splits"].items():
                files = [f"{split}/{file}" for file in info["filenames"]]
                joined[name] = info | {"filenames": files}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PipelineError(f"{path} is damaged; make the set again") from error
    write_json(folder / TIMM_NAME, {"splits": joined})


def dali_index(tar: Path) -> bytes:
    """Return DALI's index of a tar, as its wds2idx makes it: a line a sample, four words a member.

    Raises:
        PipelineError: if the tar is damaged.
        OSError: if it cannot be read.
    """
    lines = []
    for sample in group_members(tar, scan_tar(tar), Left()):
        words = [
            f"{suffix} {member.offset} {member.size} {member.name}"
            for suffix, member in sample.members.items()
        ]
        lines.append(" ".join(words))
    return "\n".join([f"{DALI_VERSION} {len(lines)}", *lines, ""]).encode()
