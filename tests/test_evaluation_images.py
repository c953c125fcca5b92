"""Images, arrays, videos and text files that evaluation reads, also damaged or malicious ones."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from imagenet_folders import CODES, write_image, write_video
from pipelines.errors import PipelineError
from pipelines.evaluation.folders import Notices, list_videos
from pipelines.evaluation.images import (
    ArrayImages,
    ResizeCrop,
    Subset,
    folder_images,
    read_frames,
    read_labels,
    read_names,
)
from pipelines.evaluation.ood import open_ood
from pipelines.system.untrusted import open_array
from tiny_evaluation import write_huge_file


@pytest.mark.parametrize(("height", "width"), [(40, 30), (31, 77), (20, 20)])
def test_resize_crop_equals_torchvision(tmp_path: Path, height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    (found,) = folder_images(tmp_path, ResizeCrop(16, 18)).read(range(1))
    expected = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])(Image.fromarray(noise))
    np.testing.assert_array_equal(found, np.asarray(expected))
    (cropped,) = folder_images(tmp_path, ResizeCrop(16, 18).cropping_only()).read(range(1))
    np.testing.assert_array_equal(cropped, np.asarray(v2.CenterCrop(16)(Image.fromarray(noise))))


def test_an_error_names_an_image_that_cannot_be_evaluated(tmp_path: Path) -> None:
    write_image(tmp_path / "small.png", (1, 2, 3), (5, 9))
    with pytest.raises(PipelineError, match=r"small\.png cannot be evaluated: 5x9 pixels"):
        folder_images(tmp_path, ResizeCrop(8, None)).read(range(1))
    (tmp_path / "small.png").write_bytes(b"junk")
    with pytest.raises(PipelineError, match=r"small\.png cannot be evaluated"):
        folder_images(tmp_path, ResizeCrop(8, 8)).read(range(1))


def test_a_subset_reads_the_images_at_its_indices() -> None:
    array = np.arange(10 * 12).reshape(10, 2, 2, 3).astype(np.uint8)
    subset = Subset(ArrayImages(array), np.array([7, 2, 9]))
    assert len(subset) == 3
    np.testing.assert_array_equal(subset.read(range(1, 3)), array[[2, 9]])


def test_frames_of_a_video_are_read_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [555, 555, 444])
    frames = read_frames(tmp_path / "a.mp4", ResizeCrop(24, None))
    assert frames.shape == (3, 24, 24, 3)
    for frame, output in zip(frames, (555, 555, 444), strict=True):
        np.testing.assert_allclose(frame.mean((0, 1)), CODES[output], atol=6)


def test_a_file_that_is_not_a_video_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(PipelineError, match=r"a\.mp4 is not a complete video"):
        read_frames(tmp_path / "a.mp4", ResizeCrop(8, None))
    write_video(tmp_path / "a.mp4", [5])
    with pytest.raises(PipelineError, match="has 1 frame"):
        read_frames(tmp_path / "a.mp4", ResizeCrop(8, None))
    write_video(tmp_path / "a.mp4", [5, 5])
    with pytest.raises(PipelineError, match=r"is not a complete video .32x32 pixels, smaller"):
        read_frames(tmp_path / "a.mp4", ResizeCrop(224, None))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PipelineError, match=r"holds no \.mp4"):
        list_videos(tmp_path / "nothing", Notices())


@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_videos_and_svhn_must_be_regular_files(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("av")
    from pipelines.evaluation.images import read_frames

    for name in ("a.mp4", "test_32x32.mat"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            with (tmp_path / name).open("wb") as file:
                file.truncate(20 << 30)
    with pytest.raises(PipelineError, match=r"a\.mp4 cannot be read"):
        read_frames(tmp_path / "a.mp4", ResizeCrop(8, None))
    with pytest.raises(PipelineError, match=r"test_32x32\.mat cannot be read"):
        open_ood(tmp_path, ResizeCrop(8, 8))


HEADER = b"\x93NUMPY\x01\x00"


def with_header(text: str, body: bytes = b"") -> Callable[[Path], object]:
    header = text.encode("latin1")
    content = HEADER + len(header).to_bytes(2, "little") + header + body
    return lambda path: path.write_bytes(content)


def described(shape: str, descr: str = "'|u1'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


@pytest.mark.parametrize(
    "write",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.mkdir(),
        write_huge_file,
        npz,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
        lambda path: path.write_bytes(b"\x80\x04cposix\nsystem\n."),
        lambda path: path.write_bytes(HEADER),
        lambda path: np.save(path, np.array([{}]), allow_pickle=True),
        lambda path: path.write_bytes(b"\x93NUMPY\x03\x00" + bytes(200)),
        with_header("(" * 9000),
        with_header("[" * 60000),
        with_header("{'descr': __import__('os').system('false')}"),
        with_header(described("(-3, 8, 8, 3)"), bytes(600)),
        with_header(described("(10**30, 8, 8, 3)"), bytes(600)),
        with_header(described("(1000000000000, 8, 8, 3)"), bytes(600)),
        with_header(described("(60, 8, 8, 3)"), bytes(600)),
        with_header(described("'abc'"), bytes(600)),
        with_header(described("(4,)", "'|O'"), bytes(600)),
        with_header(described("(4,)", "'zzz'"), bytes(600)),
    ],
)
def test_a_file_that_is_not_an_array_is_rejected_in_one_line(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    path = tmp_path / "fog.npy"
    write(path)
    with pytest.raises(PipelineError) as caught:
        open_array(path, "")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.array(7, ">i8"),
    ],
)
def test_an_array_is_read_as_saved(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    found = open_array(tmp_path / "a.npy", "")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a"] * 60),
        np.zeros(60),
        np.zeros((60, 1), int),
        np.zeros(60, complex),
        np.zeros(60, "M8[s]"),
        np.full(60, 2**64 - 1, np.uint64),
        np.zeros(60, bool),
        np.zeros(60, [("a", "i4")]),
    ],
)
def test_labels_must_be_integers(tmp_path: Path, labels: np.ndarray) -> None:
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(PipelineError, match=r"labels\.npy"):
        read_labels(tmp_path / "labels.npy")


def test_class_names_are_read_as_utf_8_in_any_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("locale.getencoding", lambda: "latin1", raising=False)
    monkeypatch.setattr("locale.getpreferredencoding", lambda _set=True: "ascii")
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeff\u00f1and\u00fa\r\nb\r\n".encode())
    assert read_names(path, "") == ["\u00f1and\u00fa", "b"]
