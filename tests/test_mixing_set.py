"""Mixing sets: the pixels of the reference, in one map per node that is built once, atomically."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import Resize

from pipelines import open_mixing_set
from pipelines.errors import PipelineError
from pipelines.loading import image_map
from pipelines.loading.mixing_set import open_images, uniform_view
from pipelines.shards.format import open_shards
from pixmix.images import PackedImages
from shard_sets import drawn_images, encoded, write_shards
from stripes import image_set
from stripes import make as generate_images

needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="older Pillow always filters rows first"
)
IMAGES = drawn_images(12, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ImageFolder of two classes, with JPEGs and PNGs of many sizes."""
    root = tmp_path / "set"
    for i, image in enumerate(IMAGES):
        extension = "png" if i % 2 else "jpg"
        path = root / ("fractals" if i < 7 else "views") / f"{i}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, extension))
    (root / "fractals" / "notes.txt").write_text("not an image")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def maps_of(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "maps").iterdir() if path.is_dir())


def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry for each build."""
    found: list[int] = []
    original = image_map._build

    def counted(*arguments: object) -> None:
        found.append(1)
        original(*arguments)

    monkeypatch.setattr(image_map, "_build", counted)
    return found


def equal(a: PackedImages, b: PackedImages | list[NDArray[np.uint8]]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# --- pixels and order ----------------------------------------------------------------------------


@needs_pillow_13
@pytest.mark.parametrize("size", [9, 33, 64])
def test_images_are_those_of_an_image_folder_resized_by_torchvision(
    folder: Path, cache: Path, size: int
) -> None:
    expected = [np.asarray(Resize(size)(image)) for image, _ in ImageFolder(folder)]
    # ImageFolder sorts 10.jpg before 2.jpg; here numbers are in numerical order.
    names = [Path(path).name for path, _ in ImageFolder(folder).samples]
    by_number = sorted(range(12), key=lambda place: int(names[place].split(".")[0]))
    images = open_mixing_set(folder, size, cache_dir=cache)
    assert equal(images, [expected[place] for place in by_number])
    assert all(min(image.shape[:2]) == size for image in images)


def test_images_are_sorted_by_name_with_numbers_in_numerical_order(
    tmp_path: Path, cache: Path
) -> None:
    for i in (10, 2, 33, 1):
        (tmp_path / f"{i}.png").write_bytes(encoded(np.full((8, 9, 3), i, np.uint8)))
    images = open_mixing_set(tmp_path, 8, cache_dir=cache)
    assert [int(image[0, 0, 0]) for image in images] == [1, 2, 10, 33]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_is_converted_to_rgb(tmp_path: Path, cache: Path, mode: str) -> None:
    image = Image.fromarray(drawn_images(1, 3, (20, 31))[0])
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.convert(mode).save(path)
    with Image.open(path) as saved:
        expected = np.asarray(saved.convert("RGB"))
    assert equal(open_mixing_set(tmp_path, 20, cache_dir=cache), [expected])


def as_tar(folder: Path, path: Path) -> Path:
    """Pack a folder like the paper's archive, with unsorted names."""
    with tarfile.open(path, "w") as tar:
        files = sorted(folder.rglob("*.*"), key=lambda file: file.name[::-1])
        for file in files:
            tar.add(file, Path("fractals_and_fvis") / file.relative_to(folder))
    return path


def test_an_archive_has_the_images_of_its_folder(folder: Path, tmp_path: Path, cache: Path) -> None:
    archive = as_tar(folder, tmp_path / "fractals_and_fvis.tar")
    expected = open_mixing_set(folder, 24, cache_dir=cache)
    assert equal(open_mixing_set(archive, 24, cache_dir=cache), list(expected))


def test_shards_are_in_the_order_of_their_index(tmp_path: Path, cache: Path) -> None:
    shards = write_shards(
        tmp_path / "shards", [encoded(image) for image in IMAGES], sizes=(5, 0, 7)
    )
    direct = open_mixing_set(shards, 20, cache_dir=cache)
    pattern = open_mixing_set(str(shards / "set-{0000..0002}.tar"), 20, cache_dir=cache)
    opened = open_mixing_set(open_shards(shards), 20, cache_dir=cache)
    files = tmp_path / "files"
    files.mkdir()
    for i, image in enumerate(IMAGES):
        (files / f"{i}.png").write_bytes(encoded(image))
    expected = list(open_mixing_set(files, 20, cache_dir=cache))
    assert equal(direct, expected)
    assert equal(pattern, expected)
    assert equal(opened, expected)


def test_several_sets_are_concatenated(folder: Path, tmp_path: Path, cache: Path) -> None:
    archive = as_tar(folder, tmp_path / "images.tar")
    one = list(open_mixing_set(folder, 24, cache_dir=cache))
    assert equal(open_mixing_set([folder / "views", archive], 24, cache_dir=cache), one[7:] + one)


def test_images_of_one_size_have_a_uniform_view_and_others_have_none(
    tmp_path: Path, cache: Path
) -> None:
    same = drawn_images(6, 1, (7, 9))
    for name, images in (("same", same), ("several", IMAGES[:6])):
        contents = [encoded(image) for image in images]
        shards = open_shards(write_shards(tmp_path / name, contents, sizes=(4, 2)))
        packed = open_images(shards, cache_dir=cache)
        assert equal(packed, images)
        view = uniform_view(packed)
        if name == "same":
            assert view is not None
            assert np.array_equal(view, np.stack(same))
            assert np.shares_memory(view, packed.pixels)
        else:
            assert view is None


# --- built once, atomically ----------------------------------------------------------------------


def test_a_map_is_built_once_and_reused(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builds(monkeypatch)
    seen: list[tuple[int, int]] = []
    first = open_mixing_set(
        folder, 24, cache_dir=cache, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    again = open_mixing_set(folder, 24, cache_dir=cache)
    assert len(found) == 1
    assert equal(again, list(first))
    assert isinstance(again.pixels.base, np.memmap)
    open_mixing_set(folder, 25, cache_dir=cache)
    assert len(found) == 2


def test_the_environment_sets_the_cache_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXMIX_CACHE", str(tmp_path / "mine"))
    open_mixing_set(folder, 24)
    assert len(maps_of(tmp_path / "mine")) == 1


def test_a_changed_set_is_built_again(
    folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builds(monkeypatch)
    open_mixing_set(folder, 24, cache_dir=cache)
    changed = folder / "views" / "9.png"
    changed.write_bytes(encoded(IMAGES[0]))
    fresh = open_mixing_set(folder, 24, cache_dir=tmp_path / "other")
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), list(fresh))
    assert len(found) == 3
    changed.unlink()
    assert len(open_mixing_set(folder, 24, cache_dir=cache)) == 11
    assert len(found) == 4


def test_a_moved_set_is_not_built_again(
    folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builds(monkeypatch)
    open_mixing_set(folder, 24, cache_dir=cache)
    folder.rename(tmp_path / "elsewhere")
    open_mixing_set(tmp_path / "elsewhere", 24, cache_dir=cache)
    assert len(found) == 1


@pytest.mark.parametrize("name", ["pixels", "table.npy"])
@pytest.mark.parametrize("how", ["flipped", "short", "gone"])
def test_a_damaged_map_is_logged_and_built_again(
    folder: Path, cache: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [image.copy() for image in open_mixing_set(folder, 24, cache_dir=cache)]
    (map_folder,) = maps_of(cache)
    path = map_folder / name
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "short":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), expected)
    assert f"{map_folder} is damaged; building it again" in caplog.text


def test_a_map_with_offsets_out_of_bounds_is_built_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [image.copy() for image in open_mixing_set(folder, 24, cache_dir=cache)]
    (map_folder,) = maps_of(cache)
    table = np.load(map_folder / "table.npy")
    table["offset"][-1] = 2**40
    np.save(map_folder / "table.npy", table)
    record = json.loads((map_folder / "record.json").read_bytes())
    record["files"]["table.npy"]["sha256"] = image_map._hashes(map_folder / "table.npy", 1)
    (map_folder / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr(image_map, "_verified", {})
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), expected)


@pytest.mark.parametrize("name", ["", "record.json", "pixels", "table.npy"])
def test_a_map_of_another_user_is_not_trusted(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = [image.copy() for image in open_mixing_set(folder, 24, cache_dir=cache)]
    (map_folder,) = maps_of(cache)
    found = builds(monkeypatch)
    original = Path.stat

    def foreign(path: Path, **options: bool) -> os.stat_result:
        status = original(path, **options)
        if path == map_folder / name:
            fields = list(status)
            fields[4] = os.geteuid() + 1
            return os.stat_result(fields, {"st_mtime_ns": 0, "st_ctime_ns": 0})
        return status

    monkeypatch.setattr(image_map, "_verified", {})
    monkeypatch.setattr(Path, "stat", foreign)
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), expected)
    assert len(found) == 1
    assert (cache / "maps" / f"{map_folder.name}-{os.geteuid()}").is_dir()
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), expected)
    assert len(found) == 1


def test_a_disk_error_of_a_shard_does_not_blame_the_cache(tmp_path: Path, cache: Path) -> None:
    def read(i: int) -> bytearray:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path / f"{i}.tar"))

    failing = image_map.ImageSource(
        n=2, name=lambda i: f"image {i}", read=read, identity=lambda: {"failing": 1}
    )
    with pytest.raises(PipelineError, match=r"\d\.tar: Input/output error") as refused:
        image_map.open_image_map(
            failing,
            None,
            cache=cache,
            jobs=1,
            on_decode_error="skip",
            progress=lambda *_: None,
        )
    assert str(cache) not in str(refused.value)
    assert "cache_dir" not in str(refused.value)


def flip(path: Path, position: int) -> None:
    """Flip a bit, and keep the times of the file."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_process_verifies_a_map_once_and_detects_changes_despite_equal_times(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [image.copy() for image in open_mixing_set(folder, 24, cache_dir=cache)]
    hashed: list[str] = []
    original = image_map._hashes

    def counted(path: Path, jobs: int) -> list[str]:
        hashed.append(path.name)
        return original(path, jobs)

    monkeypatch.setattr(image_map, "_hashes", counted)
    # As in a new process.
    monkeypatch.setattr(image_map, "_verified", {})
    open_mixing_set(folder, 24, cache_dir=cache)
    assert hashed == ["pixels", "table.npy"]
    open_mixing_set(folder, 24, cache_dir=cache)
    assert len(hashed) == 2
    found = builds(monkeypatch)
    flip(maps_of(cache)[0] / "pixels", 1000)
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), expected)
    assert len(found) == 1


def test_all_pieces_of_a_file_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_map, "_PIECE", 2 << 20)
    content = np.random.default_rng(0).bytes((5 << 20) + 7)
    path = tmp_path / "file"
    path.write_bytes(content)
    pieces = [content[i : i + (2 << 20)] for i in range(0, len(content), 2 << 20)]
    expected = [hashlib.sha256(piece).hexdigest() for piece in pieces]
    assert len(expected) == 3
    assert image_map._hashes(path, 1) == image_map._hashes(path, 4) == expected


def test_a_read_only_cache_is_used(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(open_mixing_set(folder, 24, cache_dir=cache))

    def refused(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(image_map, "folder_lock", refused)
    monkeypatch.setattr(Path, "mkdir", refused)
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), expected)
    with pytest.raises(PipelineError, match="cache_dir or PIXMIX_CACHE to a writable folder"):
        open_mixing_set(folder, 25, cache_dir=cache)


def test_another_pillow_version_builds_another_map(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_mixing_set(folder, 24, cache_dir=cache)
    found = builds(monkeypatch)
    monkeypatch.setattr(PIL, "__version__", "99.0")
    open_mixing_set(folder, 24, cache_dir=cache)
    assert len(found) == 1


def test_a_copied_cache_is_verified_and_used(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy has other times, but the same content."""
    open_mixing_set(folder, 24, cache_dir=cache)
    shutil.copytree(cache, tmp_path / "copy", copy_function=shutil.copyfile)
    found = builds(monkeypatch)
    open_mixing_set(folder, 24, cache_dir=tmp_path / "copy")
    assert not found


def _open_in_a_process(folder: Path, cache: Path, queue: "multiprocessing.Queue[Any]") -> None:
    count = 0
    original = image_map._build

    def counted(*arguments: object) -> None:
        nonlocal count
        count += 1
        time.sleep(0.5)
        original(*arguments)

    image_map._build = counted
    images = open_mixing_set(folder, 24, cache_dir=cache)
    queue.put((count, [image.tobytes() for image in images]))


@pytest.mark.slow
def test_concurrent_processes_build_a_map_once(folder: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_open_in_a_process, args=(folder, cache, queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(count for count, _ in results) == 1
    assert all(pixels == results[0][1] for _, pixels in results)


def _build_and_hang(folder: Path, cache: Path, event: Any) -> None:  # noqa: ANN401
    original = image_map._write_all

    def hanging(*arguments: object) -> None:
        original(*arguments)
        event.set()
        time.sleep(600)

    image_map._write_all = hanging
    open_mixing_set(folder, 24, cache_dir=cache)


def test_a_partial_map_of_a_killed_builder_is_not_used(folder: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    process = context.Process(target=_build_and_hang, args=(folder, cache, event))
    process.start()
    assert event.wait(120)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert [path.name[0] for path in maps_of(cache)] == ["."]
    assert len(open_mixing_set(folder, 24, cache_dir=cache)) == 12
    (map_folder,) = maps_of(cache)
    assert not map_folder.name.startswith(".")


def test_a_full_disk_raises_one_line_and_leaves_no_files(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PipelineError, match=r"No space left on device; free some space"):
        open_mixing_set(folder, 24, cache_dir=cache)
    assert maps_of(cache) == []


def test_a_cache_that_cannot_be_created_raises_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PipelineError, match="cache_dir or PIXMIX_CACHE to a writable folder"):
        open_mixing_set(folder, 24, cache_dir=tmp_path / "file")


def _private_bytes() -> int:
    with Path("/proc/self/smaps_rollup").open() as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty"))


def _read_in_a_process(folder: Path, cache: Path, queue: "multiprocessing.Queue[Any]") -> None:
    open_mixing_set(folder, 24, cache_dir=cache)
    before = _private_bytes()
    images = open_mixing_set(folder, 2000, cache_dir=cache)
    total = int(images.pixels[::4096].astype(np.int64).sum())
    queue.put((_private_bytes() - before, total, len(images.pixels)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory usage from /proc of Linux")
def test_further_processes_share_the_memory_of_a_map(folder: Path, cache: Path) -> None:
    size = len(open_mixing_set(folder, 2000, cache_dir=cache).pixels)
    assert size > 150_000_000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_read_in_a_process, args=(folder, cache, queue))
    process.start()
    private, total, length = queue.get(timeout=120)
    process.join(60)
    assert length == size
    assert total > 0
    assert private < 20_000_000


# --- decode errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"not an image", encoded(IMAGES[3])[:900]])
def test_a_decode_error_is_raised_or_the_image_is_skipped(
    folder: Path,
    cache: Path,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = folder / "fractals" / "3.png"
    expected = [image.copy() for image in open_mixing_set(folder, 24, cache_dir=cache)]
    bad.write_bytes(content)
    with pytest.raises(
        PipelineError, match=r"3\.png: .*; remove or replace the image.* on_decode_error='skip'"
    ):
        open_mixing_set(folder, 24, cache_dir=cache)
    with caplog.at_level(logging.WARNING):
        images = open_mixing_set(folder, 24, cache_dir=cache, on_decode_error="skip")
    assert equal(images, expected[:3] + expected[4:])
    warning = "1 of 12 images cannot be decoded and are skipped; the first: "
    assert f"{warning}{bad}: " in caplog.text
    caplog.clear()
    # An existing map warns again with "skip", and is an error with "raise".
    found = builds(monkeypatch)
    again = open_mixing_set(folder, 24, cache_dir=cache, on_decode_error="skip")
    assert equal(again, list(images))
    assert warning in caplog.text
    with pytest.raises(
        PipelineError, match=r"3\.png: .*; remove or replace the image.* on_decode_error='skip'"
    ):
        open_mixing_set(folder, 24, cache_dir=cache)
    assert not found
    bad.write_bytes(encoded(IMAGES[3]))
    assert equal(open_mixing_set(folder, 24, cache_dir=cache), expected)
    records = [json.loads((place / "record.json").read_text()) for place in maps_of(cache)]
    # Maps of the original set, of the set without the image, and of the repaired set.
    assert sorted(len(record["left_out"]) for record in records) == [0, 0, 1]


def test_a_set_without_any_decodable_image_is_rejected(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(PipelineError, match="no image of the mixing set"):
        open_mixing_set(tmp_path, 24, cache_dir=cache, on_decode_error="skip")


def test_an_image_that_is_too_large_after_resizing_is_rejected(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "sliver.png").write_bytes(encoded(np.zeros((1, 4000, 3), np.uint8)))
    with pytest.raises(PipelineError, match=r"sliver\.png: .* after resizing"):
        open_mixing_set(tmp_path, 256, cache_dir=cache)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _path: None, "is neither a folder nor a tar, zip or .npy of images"),
        (lambda path: path.mkdir(), "holds no images"),
        (
            lambda path: path.write_bytes(b"text" * 999),
            "is not a tar",
        ),
        (lambda path: tarfile.open(path, "w").close(), "holds no images"),
    ],
)
def test_a_path_that_is_not_a_mixing_set_is_rejected(
    tmp_path: Path,
    cache: Path,
    make: Callable[[Path], object],
    message: str,
) -> None:
    make(tmp_path / "set")
    with pytest.raises(PipelineError, match=message):
        open_mixing_set(tmp_path / "set", 24, cache_dir=cache)


def test_decode_errors_are_listed_in_the_order_of_the_images(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_map, "_CHUNK", 1)
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"" if i % 2 else encoded(IMAGES[0]))
    open_mixing_set(tmp_path, 24, cache_dir=cache, jobs=8, on_decode_error="skip")
    (map_folder,) = maps_of(cache)
    left_out = json.loads((map_folder / "record.json").read_text())["left_out"]
    names = [Path(message.split(": ")[0]).name for message in left_out]
    assert names == [f"{i}.png" for i in range(1, 40, 2)]


def test_a_broken_link_is_named(folder: Path, cache: Path) -> None:
    (folder / "views" / "lost.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(PipelineError, match=r"lost\.png: .*No such file"):
        open_mixing_set(folder, 24, cache_dir=cache)


@pytest.mark.parametrize(
    "cut",
    ["between two members", "in a header", "in a image", "in the last image", "before the end"],
)
def test_a_tar_truncated_anywhere_is_rejected(
    folder: Path, tmp_path: Path, cache: Path, cut: str
) -> None:
    archive = as_tar(folder, tmp_path / "images.tar")
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        end = tar.offset
    assert len(members) == 13
    length = {
        "between two members": members[5].offset,
        "in a header": members[5].offset + 100,
        "in a image": members[5].offset_data + 100,
        "in the last image": members[11].offset_data + 1,
        "before the end": end,
    }[cut]
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(PipelineError, match=rf"{archive} is cut off .*copy it again"):
        open_mixing_set(archive, 24, cache_dir=cache)


def test_a_link_in_a_tar_is_rejected_and_not_followed(
    folder: Path, tmp_path: Path, cache: Path
) -> None:
    archive = as_tar(folder, tmp_path / "images.tar")
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("fractals_and_fvis/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(PipelineError, match=r"link\.png', which is a symbolic link .*; write the"):
        open_mixing_set(archive, 24, cache_dir=cache)


def test_a_tar_with_a_damaged_header_is_rejected(folder: Path, tmp_path: Path, cache: Path) -> None:
    archive = as_tar(folder, tmp_path / "images.tar")
    with tarfile.open(archive) as tar:
        place = tar.getmembers()[5].offset + 20
    flip(archive, place)
    with pytest.raises(
        PipelineError, match=r"images\.tar has no valid header at byte .*; copy it again"
    ):
        open_mixing_set(archive, 24, cache_dir=cache)


# --- shards and sets -----------------------------------------------------------------------------


def test_a_flipped_bit_in_a_shard_is_found_before_a_map_is_built(
    tmp_path: Path, cache: Path
) -> None:
    contents = [encoded(image, "jpg") for image in drawn_images(6, 1, (64, 80))]
    place = write_shards(tmp_path / "shards", contents, sizes=(2, 4), extension="jpg")
    shards = open_shards(place)
    sample = shards.samples[4]
    # In the data of the image, where decoders do not detect it.
    flip(shards.path(1), int(sample["offset"] + sample["size"]) - 50)
    with pytest.raises(
        PipelineError, match=r"set-0001\.tar has SHA-256 .*, expected .* by the manifest"
    ):
        open_mixing_set(place, 32, cache_dir=cache)
    with pytest.raises(
        PipelineError, match=r"set-0001\.tar has SHA-256 .*, expected .* by the manifest"
    ):
        open_images(shards, cache_dir=cache)
    first = open_mixing_set(str(place / "set-0000.tar"), 32, cache_dir=cache)
    assert len(first) == 2


def test_many_shards_and_threads_leave_no_files_open(tmp_path: Path, cache: Path) -> None:
    images = drawn_images(200, 3, (20, 24))
    contents = [encoded(image) for image in images]
    place = write_shards(tmp_path / "shards", contents, sizes=(1,) * 200)
    before = set(Path("/dev/fd").iterdir())
    packed = open_mixing_set(place, 20, cache_dir=cache, jobs=16)
    assert equal(packed, images)
    # One for the map itself.
    assert len(set(Path("/dev/fd").iterdir())) <= len(before) + 1


def test_shards_without_their_index_are_not_read_as_a_folder_of_images(
    tmp_path: Path, cache: Path
) -> None:
    place = write_shards(tmp_path / "shards", [encoded(IMAGES[0])], sizes=(1,))
    (place / "index.npy").unlink()
    with pytest.raises(PipelineError, match=r"index\.npy is missing; .*pixmix-shard index"):
        open_mixing_set(place, 20, cache_dir=cache)


def test_an_archive_beside_a_manifest_is_read_as_an_archive(
    folder: Path, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "fractals", "status": "complete"}')
    archive = as_tar(folder, tmp_path / "images.tar")
    assert len(open_mixing_set(archive, 24, cache_dir=cache)) == 12


@pytest.mark.parametrize("above", [False, True])
def test_an_incomplete_set_is_rejected_unless_its_images_folder_is_passed(
    tmp_path: Path, cache: Path, above: bool
) -> None:
    place = tmp_path / "sets" / "stripes"
    generate_images(image_set(place))
    passed = place.parent if above else place
    assert len(open_mixing_set(passed, 24, cache_dir=cache)) == 10
    (place / ".work").mkdir()
    (place / ".work" / "request.json").touch()
    with pytest.raises(PipelineError, match=r"stripes is not complete"):
        open_mixing_set(passed, 24, cache_dir=cache)
    assert len(open_mixing_set(place / "images", 24, cache_dir=cache)) == 10


@pytest.mark.parametrize(
    ("where", "size", "message"),
    [("set", 0, "size is 0"), ([], 24, "where is empty")],
)
def test_invalid_arguments_are_rejected(where: Any, size: int, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        open_mixing_set(where, size)


def test_zero_jobs_are_rejected(folder: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="jobs is 0"):
        open_mixing_set(folder, 24, cache_dir=cache, jobs=0)
