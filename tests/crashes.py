"""Run a job many times, and crash each time before another of its disk operations.

The script takes the name of a job and a folder, and prints "crashes N" at the end. It is a script
of its own because it forks, and it works in one process to count every operation. After each crash
the files are complete, and the same commands end with the same bytes.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fake_job import fake_job
from pipelines.errors import PipelineError
from pipelines.generate.generators import decode
from pipelines.shards.format import open_shards
from pipelines.shards.job import merge, run_job
from pipelines.shards.output import Folder
from pipelines.shards.request import ShardRequest
from pipelines.shards.sharding import make_shards
from pipelines.shards.sources import ImageFolderSource
from pipelines.shards.tar import scan_tar
from pipelines.system.ranks import Task
from shard_sets import drawn_images, encoded, run_here
from stripes import Stripes, image_set, make, sharded, tree

CRASHED = 77


def make_numbers(folder: Path) -> None:
    """Start as one of two exclusive tasks, grow, lose a file, and end as the other."""
    for n, task in ((3, Task(0, 2)), (5, Task(1, 2)), (5, Task(0, 2))):
        run_job(fake_job(folder, n=n, exclusive=True, resizable=True), task, run=run_here)
    (folder / "1.txt").unlink(missing_ok=True)
    repair_numbers(folder)


def repair_numbers(folder: Path) -> None:
    run_job(fake_job(folder, exclusive=True, resizable=True), run=run_here)


def make_numbers_by_tasks(folder: Path) -> None:
    """Run two tasks without locks, and merge."""
    for task in (Task(1, 2), Task(0, 2)):
        run_job(fake_job(folder), task, run=run_here)
    merge(fake_job(folder))


def check_numbers(folder: Path) -> None:
    """Every record has its file, except for the file that was removed."""
    for path in folder.glob(".work/done/*"):
        for line in path.read_bytes().splitlines():
            item = json.loads(line)["item"]
            assert item == 1 or (folder / f"{item}.txt").read_text() == str(item)
    if (folder / "manifest.json").exists():
        json.loads((folder / "manifest.json").read_bytes())


def make_images(folder: Path) -> None:
    """Start a dataset of 3 images, lose one, and let it grow to 5."""
    make(image_set(folder, n=3, chunk=2), run=run_here)
    (folder / "images" / "00000001.png").unlink(missing_ok=True)
    repair_images(folder)


def repair_images(folder: Path) -> None:
    make(image_set(folder, n=5, chunk=2), run=run_here)


def check_images(folder: Path) -> None:
    for path in folder.glob("images/[0-9]*"):
        np.testing.assert_array_equal(decode(path.read_bytes()), Stripes().image(int(path.stem)))


def make_sharded(folder: Path) -> None:
    for task in (1, 0):
        asked = sharded(Folder(path=folder), n=5, shard_size=2, task_index=task, num_tasks=2)
        make(asked, run=run_here)
    merge(asked.job())


def make_sharding(folder: Path) -> None:
    source = folder.parent / "source"
    if not source.exists():
        (source / "a").mkdir(parents=True)
        for i, image in enumerate(drawn_images(5, 1)):
            (source / "a" / f"{i}.png").write_bytes(encoded(image))
        (source / "a" / "broken.png").write_bytes(b"")
    request = ShardRequest(
        store=Folder(path=folder),
        source=ImageFolderSource(folder=source),
        name="small",
        num_shards=2,
        on_decode_error="skip",
        dali_index=True,
    )
    make_shards(request, run=run_here, progress=lambda _done, _total: None)


def check_shards(folder: Path) -> None:
    """Each tar is whole, and readers open the set if and only if its manifest exists."""
    for path in folder.glob("*.tar"):
        assert list(scan_tar(path))
    try:
        opened = open_shards(folder)
    except PipelineError:
        assert not (folder / "manifest.json").exists()
    else:
        assert len(opened) == 5


Step = Callable[[Path], None]

JOBS: dict[str, tuple[Step, Step, Step, int]] = {
    "numbers": (make_numbers, check_numbers, repair_numbers, 1),
    "tasks": (make_numbers_by_tasks, check_numbers, make_numbers_by_tasks, 1),
    "images": (make_images, check_images, repair_images, 3),
    "sharded": (make_sharded, check_shards, make_sharded, 3),
    "sharding": (make_sharding, check_shards, make_sharding, 3),
}
"""Name -> functions that run, check and repair the job, and the number of disk operations between
two crashes, which is larger for slow jobs."""


def end_before_operation(last: int) -> None:
    """End this process, like a power cut, before its next change of the disk after `last`."""
    operations = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal operations
        writes = event == "open" and str(arguments[1] or "r")[0] in "wxa"
        if writes or event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}:
            operations += 1
            if operations > last:
                os._exit(CRASHED)

    sys.addaudithook(count)


def main(name: str, scratch: Path) -> None:
    run, check, repair, step = JOBS[name]
    run(scratch / "unbroken")
    unbroken = tree(scratch / "unbroken")
    crashes = 0
    while True:
        folder = scratch / "broken"
        child = os.fork()
        if child == 0:
            end_before_operation(crashes * step)
            run(folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == CRASHED
        check(folder)
        repair(folder)
        assert tree(folder) == unbroken, crashes
        shutil.rmtree(folder)
        crashes += 1
    print(f"crashes {crashes}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
