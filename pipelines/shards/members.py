"""What of a source's image goes into a shard: its bytes, its label, its record."""

import json

from pipelines.errors import PipelineError
from pipelines.shards.images import STANDARD, UPRIGHT, convert, orientation, why_nonstandard
from pipelines.shards.listing import Listing
from pipelines.shards.request import ShardRequest
from pipelines.shards.sidecars import Sample
from pipelines.shards.sources import Item


def sample_of(request: ShardRequest, listing: Listing, index: int) -> Sample:
    """Return a sample of a shard; see `_members_of`.

    Args:
        request: what to make.
        listing: the items of its source.
        index: of the item.
    """
    item = listing[index]
    extension, members = _members_of(request, item)
    return Sample(key=f"{index:08d}", extension=extension, label=item.label, members=members)


def _members_of(request: ShardRequest, item: Item) -> tuple[str, dict[str, bytes]]:
    """Return the extension of a sample's picture, and all of its members.

    Raises:
        PipelineError: if the file has another size than when it was listed.
        OSError: if it cannot be read.
    """
    content = request.source.read(item.place)
    if item.size not in (-1, len(content)):
        raise PipelineError(
            f"{item.name} was changed while its shard was written; give the same command again "
            "when nothing writes to the source"
        )
    extension = STANDARD.get(item.extension, item.extension)
    if request.source.foreign():
        turned = request.exif_transpose and orientation(content) != UPRIGHT
        if turned or (
            request.on_nonstandard == "convert"
            and why_nonstandard(content, item.extension) is not None
        ):
            content, extension = convert(content, item.extension, upright=turned)
    members = {extension: content}
    if item.label >= 0:
        members["cls"] = str(item.label).encode()
    if item.record is not None:
        document = json.dumps(item.record, separators=(",", ":"), ensure_ascii=False)
        members["json"] = document.encode()
    return extension, members
