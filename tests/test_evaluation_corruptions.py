import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_folders import (
    CODES,
    SEVERITIES,
    WNIDS,
    imagenet_evaluation,
    write_image,
    write_imagenet_c,
    write_severities,
    write_tree,
    write_video,
)
from pipelines.errors import PipelineError
from pipelines.evaluation.corruptions import (
    CORRUPTIONS,
    IMAGENET_BAR,
    OVERLAPPING_OPERATIONS,
    overlapping_operations,
)
from pipelines.evaluation.metrics import (
    ALEXNET_ERRORS,
    ALEXNET_FLIPS,
    calibration_error,
)
from pipelines.evaluation.suites import evaluate
from pipelines.report.evaluations import table
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from tiny_evaluation import (
    LABELS,
    PERTURBATIONS,
    N,
    evaluation,
    predict_one_by_one,
    results_on_c,
    write_corrupted,
    write_huge_file,
)


def test_corruption_errors_are_means_over_corruptions_and_severities(tmp_path: Path) -> None:
    written = write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    found = evaluate(evaluation(tmp_path), ["c"]).values["c"]
    errors, rms = [], []
    for name, images in written.items():
        predictions = predict_one_by_one(images)
        correct = predictions.predicted == np.tile(LABELS, 5)
        by_severity = (~correct).reshape(5, N).mean(1)
        assert found["errors"][name] == pytest.approx(list(by_severity))
        errors.append(by_severity.mean())
        rms.append(calibration_error(predictions.confidence, correct))
    assert found["mean_error"] == pytest.approx(np.mean(errors))
    assert found["mean_rms"] == pytest.approx(np.mean(rms), rel=1e-4)
    assert len({round(each, 6) for each in errors}) > 1


def test_flips_in_noise_are_from_the_first_frame(tmp_path: Path) -> None:
    folder = tmp_path / "TINY-P"
    folder.mkdir()
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    frames = np.stack([dark, bright, bright, bright])
    for name in PERTURBATIONS:
        np.save(folder / f"{name}.npy", np.stack([frames, np.stack([dark] * 4)]))
    found = evaluate(evaluation(tmp_path), ["p"]).values["p"]
    assert len(found["flips"]) == 10
    for name, value in found["flips"].items():
        assert value == pytest.approx(3 / 6 if "noise" in name else 1 / 6), name
    assert found["mean_flip_probability"] == pytest.approx((2 * 3 / 6 + 8 / 6) / 10)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: np.save(f / "labels.npy", np.zeros(7, int)),
            "same number of labels for each of 5",
        ),
        (lambda f: (f / "labels.npy").unlink(), "has no labels.npy"),
        (lambda f: np.save(f / "fog.npy", np.zeros((60, 8, 8, 3))), "expected uint8 images"),
        (
            lambda f: np.save(f / "fog.npy", np.zeros((60, 9, 9, 3), np.uint8)),
            "expected uint8 images of 8x8x3",
        ),
        (lambda f: np.save(f / "fog.npy", np.zeros((3, 8, 8, 3), np.uint8)), "3 images for 60"),
        (lambda f: (f / "fog.npy").write_bytes(b"junk"), "download it again"),
        (lambda f: (f / "fog.npy").write_bytes(b""), "download it again"),
        (lambda f: (f / "labels.npy").write_bytes(b""), "download it again"),
        (
            lambda f: np.save(f / "fog.npy", np.array([{}]), allow_pickle=True),
            "download it again",
        ),
    ],
)
def test_damaged_data_are_reported(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    damage(tmp_path / "TINY-C")
    found = evaluate(evaluation(tmp_path), ["c", "clean"])
    assert message in found.failed["c"]
    assert str(tmp_path) in found.failed["c"]
    assert set(found.values) == {"clean"}


def test_damaged_data_end_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    (tmp_path / "TINY-C" / "labels.npy").unlink()
    asked = evaluation(tmp_path)
    two = replace(asked.classifier.processes, world=World(rank=0, size=2))
    monkeypatch.setattr(Processes, "sum", lambda _self, *values: [2 * each for each in values])
    with pytest.raises(PipelineError, match=r"has no labels\.npy"):
        evaluate(replace(asked, classifier=replace(asked.classifier, processes=two)), ["c"])


def test_labels_follow_the_class_names_of_the_dataset(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    names = [f"class {index}" for index in range(10)]
    expected = evaluate(evaluation(tmp_path), ["c"]).values["c"]
    asked = evaluation(tmp_path)
    asked = replace(asked, data=replace(asked.data, classes=tuple(names)))
    assert evaluate(asked, ["c"]).values["c"] == expected
    # The same images with the classes in reverse order.
    labels = np.load(tmp_path / "TINY-C" / "labels.npy")
    np.save(tmp_path / "TINY-C" / "labels.npy", 9 - labels)
    (tmp_path / "TINY-C" / "classes.txt").write_text("\n".join(names[::-1]) + "\n")
    assert evaluate(asked, ["c"]).values["c"] == expected
    # Names without a label do not matter.
    others = ["another", *names[-2::-1]]
    (tmp_path / "TINY-C" / "classes.txt").write_text("\n".join(others))
    assert evaluate(asked, ["c"]).values["c"] == expected
    (tmp_path / "TINY-C" / "classes.txt").write_text("another\n" * 10)
    assert "has a class 'another'" in evaluate(asked, ["c"]).failed["c"]
    (tmp_path / "TINY-C" / "classes.txt").write_text("class 0\nclass 1\n")
    assert "has labels from" in evaluate(asked, ["c"]).failed["c"]


def test_damaged_sequences_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "TINY-P").mkdir()
    for name in PERTURBATIONS:
        (tmp_path / "TINY-P" / f"{name}.npy").write_bytes(b"junk")
    assert "download it again" in evaluate(evaluation(tmp_path), ["p"]).failed["p"]


def test_imagenet_c_is_scored_relative_to_alexnet(tmp_path: Path) -> None:
    errors = write_imagenet_c(tmp_path / "ImageNet-C", CORRUPTIONS)
    # The published archives unpack to group folders.
    (tmp_path / "ImageNet-C" / "weather").mkdir()
    (tmp_path / "ImageNet-C" / "fog").rename(tmp_path / "ImageNet-C" / "weather" / "fog")
    found = evaluate(imagenet_evaluation(tmp_path), ["c"]).values["c"]
    for name, expected in errors.items():
        assert found["errors"][name] == pytest.approx(expected)
    means = {name: np.mean(each) for name, each in errors.items()}
    assert found["mean_error"] == pytest.approx(np.mean(list(means.values())))
    assert found["mce"] == pytest.approx(
        np.mean([means[name] / ALEXNET_ERRORS[name] for name in CORRUPTIONS])
    )
    # Every confidence is almost 1, so the RMS calibration error of a severity is near its error.
    confident = evaluate(imagenet_evaluation(tmp_path, sharpness=500.0), ["c"]).values["c"]
    for name, expected in errors.items():
        assert confident["rms"][name] == pytest.approx(np.mean(expected), abs=1e-3)


def test_images_of_imagenet_c_are_not_resized(tmp_path: Path) -> None:
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            path = tmp_path / "ImageNet-C" / name / str(severity) / WNIDS[555] / "0.png"
            write_image(path, CODES[111], (16, 16))
            with Image.open(path) as image:
                image.paste(tuple(CODES[555].tolist()), (4, 4, 12, 12))
                image.save(path)
    assert evaluate(imagenet_evaluation(tmp_path), ["c"]).values["c"]["mean_error"] == 0


def test_errors_name_the_missing_parts_of_imagenet_c(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", [7])
    found = evaluate(imagenet_evaluation(tmp_path), ["c", "c-bar", "p"])
    assert "ImageNet-C is not found; download it from https://zenodo" in found.missing["c"]
    errors = write_imagenet_c(tmp_path / "imagenet-c-bar", IMAGENET_BAR[1:])
    found = evaluate(imagenet_evaluation(tmp_path), ["c-bar"])
    assert "has no blue_noise_sample (1 of 10 are missing)" in found.missing["c-bar"]
    errors |= write_imagenet_c(tmp_path / "imagenet-c-bar", IMAGENET_BAR[:1])
    found = evaluate(imagenet_evaluation(tmp_path), ["c-bar"])
    assert found.values["c-bar"]["mean_error"] == pytest.approx(np.mean([*errors.values()]))
    one = next((tmp_path / "imagenet-c-bar" / "sparkles" / "3").rglob("*.png"))
    one.rename(one.with_name("other.png"))
    (one.parent / "more.png").write_bytes((one.parent / "other.png").read_bytes())
    failed = evaluate(imagenet_evaluation(tmp_path), ["c-bar"]).failed["c-bar"]
    assert re.search(r"3 has 11 images and .*1 has 10", failed)


def test_flips_in_videos_are_relative_to_alexnet(tmp_path: Path) -> None:
    folder = tmp_path / "ImageNet-P"
    for name in ALEXNET_FLIPS:
        write_video(folder / name / WNIDS[3] / "a.mp4", [333, 777, 777, 777])
        write_video(folder / name / WNIDS[4] / "b.mp4", [333] * 3)
    found = evaluate(imagenet_evaluation(tmp_path), ["p"]).values["p"]
    # Three flips of three in noise, where every frame is compared with the first; otherwise one.
    expected = {name: (1 if "noise" in name else 1 / 3) / 2 for name in ALEXNET_FLIPS}
    assert found["flips"] == pytest.approx(expected)
    assert found["mfr"] == pytest.approx(
        np.mean([expected[name] / of_alexnet for name, of_alexnet in ALEXNET_FLIPS.items()])
    )


def test_a_class_with_only_hidden_images_is_rejected(tmp_path: Path) -> None:
    write_severities(tmp_path / "ImageNet-C", CORRUPTIONS, SEVERITIES)
    (only,) = (tmp_path / "ImageNet-C" / "snow" / "4" / WNIDS[102]).iterdir()
    only.rename(only.with_name("._0.png"))
    failed = evaluate(imagenet_evaluation(tmp_path), ["c"]).failed["c"]
    assert f"snow/4/{WNIDS[102]} holds no" in failed


def test_an_error_names_the_path_of_a_damaged_image(tmp_path: Path) -> None:
    write_severities(tmp_path / "ImageNet-C", CORRUPTIONS, SEVERITIES)
    (only,) = (tmp_path / "ImageNet-C" / "snow" / "4" / WNIDS[102]).iterdir()
    only.write_bytes(b"junk")
    failed = evaluate(imagenet_evaluation(tmp_path), ["c"]).failed["c"]
    assert str(only) in failed
    assert failed.endswith("unpack the dataset again")


def test_severities_are_sorted_by_value(tmp_path: Path) -> None:
    names = ("0.80", "1.60", "2.40", "4.00", "10.40")
    write_severities(tmp_path / "ImageNet-C-Bar", IMAGENET_BAR, names)
    found = evaluate(imagenet_evaluation(tmp_path), ["c-bar"]).values["c-bar"]
    for errors in found["errors"].values():
        assert errors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    "names", [("1", "2", "3", "4"), ("0", "1", "2", "3", "4", "5"), ("1", "1.0", "2", "3", "4")]
)
def test_other_than_five_severities_are_rejected(tmp_path: Path, names: Sequence[str]) -> None:
    write_severities(tmp_path / "ImageNet-C-Bar", IMAGENET_BAR, names)
    failed = evaluate(imagenet_evaluation(tmp_path), ["c-bar"]).failed["c-bar"]
    assert f"has {len(names)} folders named by a severity" in failed


@pytest.mark.parametrize(
    ("recipe", "overlaps"),
    [
        ({"augment": "pixmix", "pixmix": {"all_ops": True}}, True),
        ({"augment": "pixmix", "pixmix": {"all_ops": False}}, False),
        ({"augment": "none", "pixmix": {"all_ops": True}}, False),
        ({"augment": "trivialaugment", "pixmix": {"all_ops": False}}, True),
        ({"augment": ["pixmix"], "pixmix": 5}, False),
        (5, False),
        (None, False),
    ],
)
def test_overlapping_operations_follow_from_the_recipe(recipe: object, overlaps: bool) -> None:
    assert overlapping_operations({"recipe": recipe}) == (
        OVERLAPPING_OPERATIONS if overlaps else ()
    )


def test_tables_report_that_the_training_overlaps_c(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    found = evaluate(evaluation(tmp_path, overlap=OVERLAPPING_OPERATIONS), ["c", "clean"]).values
    assert found["c"]["overlap"] == list(OVERLAPPING_OPERATIONS)
    shown = table({"a.pt": found, "b.pt": results_on_c(0.5)}, {})
    (line,) = [line for line in shown.splitlines() if "overlap the corruptions" in line]
    assert line.startswith("a.pt was trained with")


def test_the_memory_order_of_arrays_does_not_matter(tmp_path: Path) -> None:
    written = write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    (tmp_path / "TINY-P").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    for name in PERTURBATIONS:
        np.save(tmp_path / "TINY-P" / f"{name}.npy", frames)
    expected = evaluate(evaluation(tmp_path), ["c", "p"]).values
    for name, array in written.items():
        np.save(tmp_path / "TINY-C" / f"{name}.npy", np.asfortranarray(array))
    for name in PERTURBATIONS:
        np.save(tmp_path / "TINY-P" / f"{name}.npy", np.asfortranarray(frames))
    assert evaluate(evaluation(tmp_path), ["c", "p"]).values == expected


@pytest.mark.parametrize("label", [-1, 3, 999])
def test_labels_beyond_the_outputs_are_rejected(tmp_path: Path, label: int) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    labels = np.tile(LABELS, 5)
    labels[7] = label
    np.save(tmp_path / "TINY-C" / "labels.npy", labels)
    asked = evaluation(tmp_path)
    asked = replace(asked, data=replace(asked.data, outputs=3))
    failed = evaluate(asked, ["c"]).failed["c"]
    assert f"labels from {labels.min()} to {labels.max()}" in failed
    assert "within 0 to 2" in failed


def test_labels_of_cifar_c_are_in_the_official_order(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    expected = evaluate(evaluation(tmp_path), ["c"]).values["c"]
    order = np.array([2, 0, 1])  # The output for each official label.
    np.save(tmp_path / "TINY-C" / "labels.npy", np.argsort(order)[np.tile(LABELS, 5)])
    asked = evaluation(tmp_path)
    asked = replace(asked, data=replace(asked.data, outputs=3, official=order))
    assert evaluate(asked, ["c"]).values["c"] == expected


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_bytes("caf\u00e9\n".encode("latin1")),
        os.mkfifo,
        write_huge_file,
        lambda path: path.mkdir(),
    ],
)
def test_class_names_must_be_utf_8(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    path = tmp_path / "TINY-C" / "classes.txt"
    write(path)
    failed = evaluate(evaluation(tmp_path), ["c"]).failed["c"]
    assert str(path) in failed
    assert "\n" not in failed


@pytest.mark.parametrize("shape", [(0, 4, 8, 8, 3), (3, 1, 8, 8, 3), (3, 0, 8, 8, 3)])
def test_sequences_of_less_than_two_frames_are_rejected(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    (tmp_path / "TINY-P").mkdir()
    for name in PERTURBATIONS:
        np.save(tmp_path / "TINY-P" / f"{name}.npy", np.zeros(shape, np.uint8))
    assert "frames; download it again" in evaluate(evaluation(tmp_path), ["p"]).failed["p"]
