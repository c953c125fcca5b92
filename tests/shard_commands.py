"""Runs `pixmix-shard` in tests, and makes small sources for it."""

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pipelines.cli import shard as command
from shard_sets import drawn_images, encoded

IMAGES = drawn_images(23, 4)
PNG = encoded(IMAGES[0])


def run(*arguments: object) -> Result:
    """Run pixmix-shard, which must not end in a traceback."""
    result = CliRunner().invoke(command.main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def made(*arguments: object) -> Path:
    """Make a dataset and return OUT, the third argument."""
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 0, result.output
    return Path(str(arguments[2]))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def plain_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def folders_of_images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(PNG)
    return root


def write_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class Evil:
    """Runs a command if it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pickle-was-run",)
