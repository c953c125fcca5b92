"""Robustness: images that were corrupted.

    ROOT/CIFAR-10-C/fog.npy, labels.npy     five severities, each in the test's order
         CIFAR-10-C-made/...                the same, made by pixmix-eval make-c
         CIFAR-10-C-Bar/...                 the same
         ImageNet-C/fog/3/n01440764/*.JPEG  five severities, a folder a class
         ImageNet-C-Bar/...                 the same, or with severities such as 0.80 for 1

Layouts: github.com/hendrycks/robustness and github.com/facebookresearch/augmentation-corruption.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.arrays import GET_AGAIN, open_array, read_labels, read_names
from pipelines.evaluation.data import open_tree
from pipelines.evaluation.labels import match_classes
from pipelines.evaluation.metrics import calibration_error, mean_corruption_error
from pipelines.evaluation.pictures import Stored
from pipelines.evaluation.request import IMAGENET, Data, Evaluation, MissingDataError
from pipelines.evaluation.sets import MADE_OF, remedy_for, set_of
from pipelines.evaluation.trees import Notices, class_folders
from pipelines.shards.images import is_ignored_name

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
"""Of CIFAR-C and ImageNet-C, those that are scored; four more are for tuning."""

CIFAR_BAR = (
    "blue_noise_sample", "brownish_noise", "checkerboard_cutout", "inverse_sparkles",
    "pinch_and_twirl", "ripple", "circular_motion_blur", "lines", "sparkles",
    "transverse_chromatic_abberation",
)  # fmt: skip
"""Of CIFAR-C-bar (Mintun et al., NeurIPS 2021), spelt as its files are."""

IMAGENET_BAR = (
    "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout",
    "cocentric_sine_waves", "inverse_sparkles", "perlin_noise", "plasma_noise",
    "single_frequency_greyscale", "sparkles",
)  # fmt: skip
"""Of ImageNet-C-bar, spelt as its folders are."""

SEVERITIES = 5

CLASSES_FILE = "classes.txt"

_SEVERITY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


def corrupted(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors on NAME-C: their mean and, of ImageNet-C, mCE.

    "made" says what the set is made of where make-c made it, and "overlap" which operations of the
    network's training overlap C's corruptions. There is no mCE of a made set, for AlexNet's errors,
    over which it is, are those on the official one.
    """
    folder, made = set_of(evaluation.data, "c")
    missing, damaged = remedy_for(evaluation.data.name, "-C"), GET_AGAIN
    if made is not None:
        missing = damaged = f"run pixmix-eval make-c --n {made.n} --seed {made.seed} again"
    found = _corrupted(evaluation, folder, CORRUPTIONS, missing, damaged)
    if made is not None:
        found["made"] = made.to_json()
    elif evaluation.data.name == IMAGENET:
        errors = {name: float(np.mean(each)) for name, each in found["errors"].items()}
        found["mce"] = mean_corruption_error(errors)
    if evaluation.overlap:
        found["overlap"] = list(evaluation.overlap)
    return found


def corrupted_bar(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors on NAME-C-Bar, and their mean."""
    data = evaluation.data
    folder, _ = set_of(data, "c-bar")
    names = IMAGENET_BAR if data.name == IMAGENET else CIFAR_BAR
    return _corrupted(evaluation, folder, names, remedy_for(data.name, "-C-Bar"), GET_AGAIN)


def _corrupted(
    evaluation: Evaluation, folder: Path, names: Sequence[str], missing: str, damaged: str
) -> dict[str, Any]:
    """Return mean error and mean RMS calibration error over corruptions and severities.

    missing, damaged: what to do about a set without all corruptions, and about a damaged array.
    """
    arrays = any(
        path.suffix == ".npy" and not is_ignored_name(path.name) for path in folder.iterdir()
    )
    places = {
        name: folder / f"{name}.npy" if arrays else corruption_folder(folder, name)
        for name in names
    }
    absent = [place for place in places.values() if not place.exists()]
    if absent:
        raise MissingDataError(
            f"{folder} has no {absent[0].relative_to(folder)} ({len(absent)} of {len(names)} are "
            f"missing), and the mean is over all; {missing}"
        )
    errors, rms = (
        _answer_arrays(evaluation, places, damaged) if arrays else _answer_trees(evaluation, places)
    )
    return {
        "mean_error": float(np.mean(list(errors.values()))),
        "mean_rms": float(np.mean(list(rms.values()))),
        "errors": errors,
        "rms": rms,
    }


_Figures = tuple[dict[str, list[float]], dict[str, float]]


def _answer_arrays(evaluation: Evaluation, places: Mapping[str, Path], remedy: str) -> _Figures:
    """Return by corruption the errors by severity, and the RMS calibration error of all images."""
    labels = _labels(next(iter(places.values())).parent, evaluation.data, remedy)
    # Before the first is answered, which may take long: each is what it should be.
    side = evaluation.data.side
    arrays = {name: open_images(path, 4, side, remedy) for name, path in places.items()}
    for name, path in places.items():
        if len(arrays[name]) != len(labels):
            raise PipelineError(
                f"{path} has {len(arrays[name])} pictures for {len(labels)} labels; {remedy}"
            )
    evaluation.meter.begin(len(arrays) * len(labels))
    errors, rms = {}, {}
    for name, images in arrays.items():
        answers = evaluation.classifier.answer(Stored(images))
        right = answers.predicted == labels
        errors[name] = [float((~severity).mean()) for severity in np.split(right, SEVERITIES)]
        rms[name] = calibration_error(answers.confidence, right)
    return errors, rms


def _answer_trees(evaluation: Evaluation, places: Mapping[str, Path]) -> _Figures:
    """Return by corruption the errors by severity, and the mean of their RMS calibration errors."""
    data = evaluation.data
    folders = {name: _severities(place, data.notices) for name, place in places.items()}
    errors: dict[str, list[float]] = {}
    rms: dict[str, float] = {}
    for name, severities in folders.items():
        errors[name], sure = [], []
        n = 0
        for folder in severities:
            pictures, labels, _ = open_tree(folder, data.resized.as_it_is(), data)
            if n and len(pictures) != n:
                raise PipelineError(
                    f"{folder} has {len(pictures)} pictures and {severities[0]} {n}; unpack the "
                    "set again"
                )
            if not errors[name] and len(errors) == 1:
                evaluation.meter.begin(len(places) * SEVERITIES * len(pictures))
            n = len(pictures)
            answers = evaluation.classifier.answer(pictures)
            right = answers.predicted == labels
            errors[name].append(float((~right).mean()))
            sure.append(calibration_error(answers.confidence, right))
        rms[name] = float(np.mean(sure))
    return errors, rms


def _severities(place: Path, notices: Notices) -> list[Path]:
    """Return the five folders of a corruption, from the least severe on.

    They are named by numbers: 1 to 5, or the severities themselves (0.80, 1.60, ...), as the script
    of ImageNet-C-Bar's authors writes them.
    """
    numbered = [name for name in class_folders(place, notices) if _SEVERITY.fullmatch(name)]
    if len(numbered) != SEVERITIES or len(set(map(float, numbered))) != SEVERITIES:
        names = ", ".join(numbered[:8]) or "none"
        raise PipelineError(
            f"{place} has {len(numbered)} folders named by a severity ({names}), and {SEVERITIES} "
            "were expected; unpack the set again"
        )
    return [place / name for name in sorted(numbered, key=float)]


def corruption_folder(folder: Path, name: str) -> Path:
    """Return where a corruption lies: in the folder, or in that of its group, as noise/."""
    inside = [
        path / name
        for path in sorted(folder.iterdir())
        if not is_ignored_name(path.name) and (path / name).is_dir()
    ]
    return folder / name if (folder / name).is_dir() or not inside else inside[0]


def _labels(folder: Path, data: Data, remedy: str) -> NDArray[np.int64]:
    """Return the outputs of the network for the labels of a set.

    folder/classes.txt says the names of the labels, a line each; without it, CIFAR's labels count
    as the test set's do, and any other label i is output i.
    """
    path = folder / "labels.npy"
    if not path.exists():
        raise PipelineError(f"{folder} has no labels.npy; {remedy}")
    labels = read_labels(path, remedy)
    if len(labels) == 0 or len(labels) % SEVERITIES:
        raise PipelineError(
            f"{path} has shape {labels.shape}; it should hold as many labels for each of "
            f"{SEVERITIES} severities; {remedy}"
        )
    names = folder / CLASSES_FILE
    if names.exists():
        known = read_names(names, remedy)
        _check_range(labels, len(known), path, f"{names} has {len(known)} names; {remedy}")
        used = np.unique(labels)
        if data.classes:
            # Of the names that count alone: a set may have images of some of its classes.
            outputs = np.zeros(len(known), np.int64)
            outputs[used] = match_classes(
                [known[label] for label in used], data.classes, data.outputs, str(names)
            ).outputs
        else:
            outputs = match_classes(known, (), data.outputs, str(names)).outputs
        return outputs[labels]
    if data.official is not None:
        _check_range(labels, len(data.official), path, remedy)
        return data.official[labels]
    most = data.outputs if data.outputs is not None else len(data.classes)
    if most:
        _check_range(labels, most, path, f"the network has {most} outputs; {remedy}")
    elif labels.min() < 0:
        _check_range(labels, int(labels.max()) + 1, path, remedy)
    return labels


def _check_range(labels: NDArray[np.int64], n: int, path: Path, why: str) -> None:
    if labels.min() < 0 or labels.max() >= n:
        raise PipelineError(
            f"{path} has labels from {labels.min()} to {labels.max()}, and they must be within 0 "
            f"to {n - 1}; {why}"
        )


def open_images(path: Path, ndim: int, side: int, remedy: str = GET_AGAIN) -> NDArray[np.uint8]:
    """Open an array of uint8 images, (..., side, side, 3), without reading it.

    Args:
        path: of the .npy file.
        ndim: of the array.
        side: of an image, pixels.
        remedy: what to do about a damaged file, for the end of the error.

    Raises:
        PipelineError: if it is anything else.
    """
    images = open_array(path, remedy)
    if images.dtype != np.uint8 or images.ndim != ndim or images.shape[-3:] != (side, side, 3):
        of_other_size = images.dtype == np.uint8 and images.ndim == ndim and images.shape[-1] == 3
        if of_other_size and (path.parent / MADE_OF).exists():
            remedy = f"remove {path.parent} and run pixmix-eval make-c --checkpoint FILE"
        raise PipelineError(
            f"{path} is {images.dtype} of shape {images.shape}; it should hold uint8 pictures "
            f"of {side}x{side}x3 in {ndim} dimensions; {remedy}"
        )
    return images.view(np.uint8)
