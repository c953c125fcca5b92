"""Paints a small set of shards again and again, each time ending at another disk operation.

Run as a script with a folder: prints "crashes N" at the end. It runs by itself because it forks,
and works in its own process to see every operation.
"""

import os
import shutil
import sys
from pathlib import Path

from crashes import CRASHED, end_before_operation, paint_here
from painters import sharded, tree
from pipelines.generate.painted_shards import merge_shards, paint_set
from pipelines.shards.output import Folder
from shard_crashes import check_what_is_there


def make(folder: Path) -> None:
    """Make the set as two tasks, and close it."""
    place = Folder(path=folder)
    for task in (1, 0):
        request = sharded(place, n=7, shard_size=3, task_index=task, num_tasks=2)
        paint_set(request, run=paint_here)
    merge_shards(place)


def main(scratch: Path) -> None:
    make(scratch / "unbroken")
    unbroken = tree(scratch / "unbroken")
    crashes = 0
    while True:
        folder = scratch / "broken"
        child = os.fork()
        if child == 0:
            end_before_operation(crashes)
            make(folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == CRASHED
        if folder.exists():
            check_what_is_there(folder, unbroken)
        make(folder)
        assert tree(folder) == unbroken, crashes
        shutil.rmtree(folder)
        crashes += 1
    print(f"crashes {crashes}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
