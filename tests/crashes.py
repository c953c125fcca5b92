"""Makes a small set again and again, each time ending at another of its disk operations.

Run as a script with a folder: prints a line for each crash, "crashes N" at the end. It runs by
itself because it forks, and because it paints in its own process to see every operation.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from painters import Stripes, request, tree
from pipelines.generate import sets
from pipelines.generate.encoding import decode

CRASHED = 77


def paint_here(work, chunks, *, jobs, finished):  # noqa: ANN001, ANN201, ARG001
    for chunk in chunks:
        finished(work(chunk))


def make(folder: Path) -> None:
    """Begin a set of 3 pictures, lose one, and let the set grow to 7."""
    sets.generate_set(request(folder, n=3, chunk=2), run=paint_here)
    (folder / "images" / "00000001.png").unlink(missing_ok=True)
    sets.generate_set(request(folder, n=7, chunk=2), run=paint_here)


def end_before_operation(last: int) -> None:
    """End this process, as a power cut would, when it is about to change the disk once more."""
    operations = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal operations
        writes = event == "open" and str(arguments[1] or "r")[0] in "wxa"
        if writes or event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}:
            operations += 1
            if operations > last:
                os._exit(CRASHED)

    sys.addaudithook(count)


def check_what_is_there(folder: Path) -> None:
    """See that each picture is whole, and that no record speaks of a picture that is not there.

    But for the picture that was lost on purpose.
    """
    for path in folder.glob("images/[0-9]*"):
        np.testing.assert_array_equal(decode(path.read_bytes()), Stripes().picture(int(path.stem)))
    for path in folder.rglob("*.jsonl"):
        for line in path.read_bytes().splitlines():
            record = json.loads(line)
            assert record["index"] == 1 or (folder / record["file"]).exists(), record["file"]
    if (folder / "manifest.json").exists():
        sets.read_manifest(folder)


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
        check_what_is_there(folder)
        sets.generate_set(request(folder, n=7, chunk=2), run=paint_here)
        assert tree(folder) == unbroken, crashes
        shutil.rmtree(folder)
        crashes += 1
    print(f"crashes {crashes}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
