"""Makes a small set of shards again and again, each time ending at another disk operation.

Run as a script with a folder: prints "crashes N" at the end. It runs by itself because it forks,
and works in its own process to see every operation.
"""

import os
import shutil
import sys
from pathlib import Path

from crashes import CRASHED, end_before_operation
from painters import tree
from pipelines.errors import PipelineError
from pipelines.shards.format import open_shards
from pipelines.shards.request import ShardRequest
from pipelines.shards.sources import ImageFolderSource
from pipelines.shards.tar import scan_tar
from pipelines.shards.write import make_shards
from shard_sets import drawn_pictures, encoded, run_here


def make(source: Path, folder: Path) -> None:
    request = ShardRequest(
        folder=folder,
        source=ImageFolderSource(folder=source),
        name="small",
        num_shards=3,
        on_decode_error="skip",
        dali_index=True,
    )
    make_shards(request, run=run_here, progress=lambda _done, _total: None)


def check_what_is_there(folder: Path, whole: dict[str, bytes]) -> None:
    """See that each tar is whole, and that readers take the set when it is complete, and only then.

    Which it is when its manifest has its name.
    """
    for path in folder.glob("*.tar"):
        assert list(scan_tar(path))
        assert path.read_bytes() == whole[path.name]
    try:
        opened = open_shards(folder)
    except PipelineError as error:
        assert "has no manifest.json" in str(error)  # noqa: PT017
        assert not (folder / "manifest.json").exists()
    else:
        assert len(opened) == 7


def main(scratch: Path) -> None:
    (scratch / "source" / "a").mkdir(parents=True)
    for i, picture in enumerate(drawn_pictures(7, 1)):
        (scratch / "source" / "a" / f"{i}.png").write_bytes(encoded(picture))
    (scratch / "source" / "a" / "broken.png").write_bytes(b"")
    make(scratch / "source", scratch / "unbroken")
    unbroken = tree(scratch / "unbroken")
    crashes = 0
    while True:
        folder = scratch / "broken"
        child = os.fork()
        if child == 0:
            end_before_operation(crashes)
            make(scratch / "source", folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == CRASHED
        if folder.exists():
            check_what_is_there(folder, unbroken)
        make(scratch / "source", folder)
        assert tree(folder) == unbroken, crashes
        shutil.rmtree(folder)
        crashes += 1
    print(f"crashes {crashes}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
