"""Files: atomic writes, locks, and file systems without them."""

import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.system.files import (
    check_no_file,
    file_sha256,
    folder_lock,
    new_file,
    remove_partial_files,
    sha256,
    write_file,
    write_files,
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def test_files_are_written_with_their_content(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"one", "b": b"two"})
    write_file(tmp_path / "a", b"three")
    with new_file(tmp_path / "c") as file:
        file.write(b"fo")
        file.write(b"ur")
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert contents == {"a": b"three", "b": b"two", "c": b"four"}


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_existing_files_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(OSError, match="No space left"):
        write_files(tmp_path, {"b": b"new", "a": b"after"})
    with pytest.raises(OSError, match="No space left"), new_file(tmp_path / "a") as file:
        file.write(b"after")
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert contents == {"a": b"before"}


def test_files_are_renamed_only_after_all_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named_at_flush = []

    def look(_descriptor: int) -> None:
        named_at_flush.append(sorted(path.name for path in tmp_path.glob("[!.]*")))

    monkeypatch.setattr(os, "fsync", look)
    write_files(tmp_path, {"a": b"one", "b": b"two"})
    # Two files, then their folder.
    assert named_at_flush == [[], [], ["a", "b"]]


def test_an_exception_in_the_block_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError), new_file(tmp_path / "a") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_partial_files_are_hidden_without_image_suffix_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "kept.jpg").write_bytes(b"whole")
    with new_file(tmp_path / "a.jpg"):
        (partial,) = set(tmp_path.iterdir()) - {tmp_path / "kept.jpg"}
        left_behind = tmp_path / partial.name.replace(".partial", "0.partial")
        left_behind.write_bytes(b"from a killed writer")
    assert partial.name.startswith(".")
    assert partial.suffix not in {".jpg", ".png", ".webp"}
    remove_partial_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "kept.jpg"]


def test_hashes_are_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(content)
    assert sha256(content) == file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_held_lock_raises_an_error_or_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    order = []

    def wait() -> None:
        with folder_lock(path):
            order.append("second")

    waiting = threading.Thread(target=wait)
    with folder_lock(path):
        with pytest.raises(PipelineError, match="in use"), folder_lock(path, busy="in use"):
            pass
        waiting.start()
        waiting.join(timeout=0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    freed = threading.Event()

    def hold() -> None:
        with folder_lock(path):
            freed.set()
            time.sleep(0.2)

    holding = threading.Thread(target=hold)
    holding.start()
    freed.wait()
    with folder_lock(path, busy="in use", timeout_s=60):
        holding.join()
    with folder_lock(path, busy="in use"):
        pass


@pytest.mark.parametrize(
    "refusal",
    [
        OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)),
        OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)),
        OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)),
        NotImplementedError("no flock here"),
    ],
)
@pytest.mark.parametrize("busy", [None, "in use"])
def test_a_file_system_without_locks_raises_one_line_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception, busy: str | None
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise refusal

    monkeypatch.setattr(fcntl, "flock", refuse)
    # The existence of a lock file of another machine does not matter.
    for path in (tmp_path / "new.lock", tmp_path / "left.lock"):
        (tmp_path / "left.lock").write_text("7\nanother-host\n")
        with (
            pytest.raises(
                PipelineError, match=r"does not support file locks \(.*-o flock.*choose"
            ) as caught,
            folder_lock(path, busy=busy),
        ):
            pass
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_lock_errors_are_raised_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), folder_lock(tmp_path / "a.lock"):
        pass


@pytest.mark.parametrize("place", ["file", "file/train", "file/a/b"])
def test_an_output_folder_that_is_a_file_or_below_one_is_rejected(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(PipelineError, match=r"file is a file; choose a folder for OUT"):
        check_no_file(tmp_path / place, "OUT")
    check_no_file(tmp_path / "new" / "one", "OUT")
    check_no_file(tmp_path, "OUT")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_files_are_written_where_folders_cannot_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_files(tmp_path, {"a": b"one", "b": b"two"})
    with new_file(tmp_path / "c") as file:
        file.write(b"three")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"one", b"two", b"three"}


def test_an_io_error_while_flushing_a_folder_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_file(tmp_path / "a", b"one")
