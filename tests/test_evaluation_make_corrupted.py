"""Datasets of pixmix-eval make-c: reproducible bytes, resume and repair."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation import corruptions
from pipelines.evaluation.corruptions import CORRUPTIONS
from pipelines.evaluation.make_corrupted import make_corrupted
from pipelines.evaluation.suites import evaluate
from tiny_evaluation import data_of, evaluation, images_of, write_corrupted, write_made


def test_make_c_is_reproducible_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    images, labels = images_of(3, 32)
    test = data_of(tmp_path, images, labels)
    names = ("gaussian_noise", "fog", "contrast")
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    folder = make_corrupted(test, tmp_path, names=names)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert folder == tmp_path / "TINY-C-made"
    made = {name: np.load(folder / f"{name}.npy") for name in names}
    assert all(each.shape == (15, 32, 32, 3) for each in made.values())
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), np.tile(labels, 5))
    noise = made["gaussian_noise"].reshape(5, 3, 32, 32, 3).astype(float)
    strength = [np.abs(each - images).mean() for each in noise]
    assert strength == sorted(strength)
    (folder / "fog.npy").unlink()
    make_corrupted(test, tmp_path, names=names)
    np.testing.assert_array_equal(np.load(folder / "fog.npy"), made["fog"])
    # The corruption of an image does not depend on the number of images.
    alone = make_corrupted(test, tmp_path / "few", n=2, names=names[:1])
    few = np.load(alone / "gaussian_noise.npy").reshape(5, 2, 32, 32, 3)
    np.testing.assert_array_equal(few, noise[:, :2])
    for change, message in (
        ({"n": 2}, "was made with n 3, this command has 2"),
        ({"seed": 1}, "was made with seed 0, this command has 1"),
    ):
        with pytest.raises(PipelineError, match=message):
            make_corrupted(test, tmp_path, names=names, **change)
    others = data_of(tmp_path, images[::-1].copy(), labels)
    with pytest.raises(PipelineError, match="was made with images "):
        make_corrupted(others, tmp_path, names=names)
    np.save(folder / "fog.npy", made["fog"][:3])
    make_corrupted(test, tmp_path, names=names)
    np.testing.assert_array_equal(np.load(folder / "fog.npy"), made["fog"])


def test_make_c_does_not_write_into_another_dataset(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    write_corrupted(tmp_path / "TINY-C-made", CORRUPTIONS)
    before = sorted((tmp_path / "TINY-C-made").glob("*"))
    with pytest.raises(PipelineError, match="was not made by this command"):
        make_corrupted(data_of(tmp_path, *images_of(3, 32)), tmp_path)
    assert sorted((tmp_path / "TINY-C-made").glob("[!.]*")) == before


def test_make_c_writes_class_names(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    images, labels = images_of(3, 32)
    test = replace(data_of(tmp_path, images, labels), classes=("a", "b"))
    folder = make_corrupted(test, tmp_path, names=("contrast",))
    assert (folder / "classes.txt").read_text() == "a\nb\n"


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*"))
        if path.name != ".lock"
    }


@pytest.mark.slow
def test_make_c_writes_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = data_of(tmp_path, *images_of(2, 32))
    first = hashes(make_corrupted(data, tmp_path / "a"))
    assert len(first) == 17
    other = make_corrupted(data, tmp_path / "b", names=CORRUPTIONS[::-1])
    assert hashes(other) == first
    for name in ("glass_blur.npy", "impulse_noise.npy"):
        (other / name).unlink()
    assert hashes(make_corrupted(data, tmp_path / "b")) == first
    seeded = hashes(make_corrupted(data, tmp_path / "c", seed=1))
    drawn = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "snow", "frost", "fog"}
    assert all(seeded[f"{name}.npy"] != first[f"{name}.npy"] for name in drawn)
    assert seeded["pixelate.npy"] == first["pixelate.npy"]


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = data_of(tmp_path, *images_of(2, 32))
    names = ("glass_blur", "impulse_noise")
    whole = hashes(make_corrupted(data, tmp_path / "a", names=names))
    folder = make_corrupted(data, tmp_path / "b", names=names[:1])
    (folder / ".impulse_noise.npy.0123.partial").write_bytes(b"half")
    (folder / ".labels.npy.4567.partial").write_bytes(b"half")
    make_corrupted(data, tmp_path / "b", names=names)
    assert hashes(folder) == whole
    assert not list(folder.glob(".*.partial"))


def test_one_changed_image_is_another_dataset(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    images, labels = images_of(3, 32)
    make_corrupted(data_of(tmp_path, images, labels), tmp_path, names=("contrast",))
    others = images.copy()
    others[1, 0, 0, 0] ^= 1
    with pytest.raises(PipelineError, match="was made with images "):
        make_corrupted(data_of(tmp_path, others, labels), tmp_path, names=("contrast",))
    renamed = replace(data_of(tmp_path, images, labels), classes=("a", "b", "c"))
    with pytest.raises(PipelineError, match="was made with classes "):
        make_corrupted(renamed, tmp_path, names=("contrast",))


def test_images_too_small_to_corrupt_are_rejected(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    with pytest.raises(PipelineError, match="8x8 pixels, and the corruptions need at least 32x32"):
        make_corrupted(data_of(tmp_path), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_class_name_of_two_lines_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = replace(data_of(tmp_path, *images_of(3, 32)), classes=("a\nb",))
    with pytest.raises(PipelineError, match="is not one line of text"):
        make_corrupted(data, tmp_path)


def test_results_on_a_dataset_of_make_c_include_its_settings(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    data = data_of(tmp_path, *images_of(3, 32))
    folder = make_corrupted(data, tmp_path, names=("contrast",))
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", np.load(folder / "contrast.npy"))
    found = evaluate(evaluation(tmp_path, data=data), ["c"]).values["c"]
    assert found["made"] == {
        "by": "pixmix-eval make-c", "images": 3, "constants": "ImageNet", "seed": 0,
    }  # fmt: skip


def test_a_dataset_of_make_c_of_another_size_has_a_remedy(tmp_path: Path) -> None:
    write_made(tmp_path / "TINY-C-made")
    larger = data_of(tmp_path, *images_of(3, 32))
    failed = evaluate(evaluation(tmp_path, data=larger), ["c"]).failed["c"]
    assert failed.endswith(
        f"remove {tmp_path / 'TINY-C-made'} and run pixmix-eval make-c --checkpoint FILE"
    )


@pytest.mark.parametrize("name", ["labels.npy", "classes.txt", "contrast.npy"])
@pytest.mark.parametrize("damage", ["gone", "junk", "pipe"])
def test_the_remedy_of_an_error_repairs_a_dataset_of_make_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    pytest.importorskip("imagecorruptions")
    monkeypatch.setattr(corruptions, "CORRUPTIONS", ("contrast",))
    data = replace(data_of(tmp_path, *images_of(3, 32)), classes=("a", "b", "c"), outputs=3)
    path = make_corrupted(data, tmp_path, names=("contrast",)) / name
    asked = evaluation(tmp_path, data=data)
    expected = evaluate(asked, ["c"]).values
    path.unlink()
    if damage == "junk":
        path.write_bytes(b"\xffjunk")
    elif damage == "pipe":
        os.mkfifo(path)
    if (name, damage) != ("classes.txt", "gone"):
        found = evaluate(asked, ["c"])
        (error,) = (found.failed or found.missing).values()
        assert error.endswith("run pixmix-eval make-c --n 3 --seed 0 again")
    make_corrupted(data, tmp_path, names=("contrast",))
    assert evaluate(asked, ["c"]).values == expected
