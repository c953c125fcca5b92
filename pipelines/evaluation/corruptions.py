"""Robustness and consistency: images that were corrupted, and sequences evaluate_perturbations more and more.

    ROOT/CIFAR-10-C/fog.npy, labels.npy     five severities, each in the test's order
         CIFAR-10-C-made/...                the same, made by pixmix-eval make-c
         CIFAR-10-C-Bar/...                 the same
         ImageNet-C/fog/3/n01440764/*.JPEG  five severities, a folder a class
         ImageNet-C-Bar/...                 the same, or with severities such as 0.80 for 1
         CIFAR-10-P/gaussian_noise.npy      (n, frames, 32, 32, 3)
         ImageNet-P/tilt/n01440764/*.mp4    a video a sequence

Layouts: github.com/hendrycks/robustness and github.com/facebookresearch/augmentation-corruption.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.data import EvaluationData, open_tree
from pipelines.evaluation.folders import (
    IMAGENET,
    MAKE_C_RECORD,
    MissingDataError,
    Notices,
    list_videos,
    match_classes,
    remedy_for,
)
from pipelines.evaluation.images import (
    DOWNLOAD_AGAIN,
    ArrayImages,
    read_labels,
    read_names,
)
from pipelines.evaluation.metrics import (
    ALEXNET_FLIPS,
    NOISES,
    calibration_error,
    flip_probability,
    measure,
)
from pipelines.evaluation.predictions import VIDEO_FRAMES, Evaluation
from pipelines.shards.images import class_folders, is_ignored_name
from pipelines.system.untrusted import open_array
from pixmix.operations import OPERATIONS

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

CIFAR_PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "brightness", "translate",
    "rotate", "tilt", "scale",
)  # fmt: skip
"""Of CIFAR-P, without the tenth, in which its authors' script and generator differ."""


OVERLAPPING_OPERATIONS = tuple(row.name for row in OPERATIONS if row.overlaps_c)
"""Drawn by PixMix and AugMix where all operations are asked for, and always by TrivialAugment."""


CLASSES_FILE = "classes.txt"

_SEVERITY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


# --- Corruptions ---------------------------------------------------------------------------------


def evaluate_corruptions(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors on NAME-C: their mean and, of ImageNet-C, mCE.

    "made" says what the set is made of if make-c made it, and "overlap" which operations of the
    network's training overlap C's corruptions. There is no mCE of a made set, for AlexNet's errors,
    by which it divides, are those on the official one.
    """
    folder, made = evaluation.data.find_suite_folder("c")
    missing, damaged = remedy_for(evaluation.data.name, "-C"), DOWNLOAD_AGAIN
    if made is not None:
        missing = damaged = f"run pixmix-eval make-c --n {made.n} --seed {made.seed} again"
    errors, rms = _score(evaluation, folder, CORRUPTIONS, missing, damaged)
    means = {name: float(np.mean(each)) for name, each in errors.items()}
    official = evaluation.data.name == IMAGENET and made is None
    found = {
        **measure("c", errors=means, rms=rms, imagenet_c_errors=means if official else None),
        "errors": errors,
        "rms": rms,
    }
    if made is not None:
        found["made"] = made.summary()
    if evaluation.overlap:
        found["overlap"] = list(evaluation.overlap)
    return found


def evaluate_corruptions_bar(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors on NAME-C-Bar, and their mean."""
    data = evaluation.data
    folder, _ = data.find_suite_folder("c-bar")
    names = IMAGENET_BAR if data.name == IMAGENET else CIFAR_BAR
    remedy = remedy_for(data.name, "-C-Bar")
    errors, rms = _score(evaluation, folder, names, remedy, DOWNLOAD_AGAIN)
    means = {name: float(np.mean(each)) for name, each in errors.items()}
    return {**measure("c-bar", errors=means, rms=rms), "errors": errors, "rms": rms}


_Scores = tuple[dict[str, list[float]], dict[str, float]]


def _score(
    evaluation: Evaluation, folder: Path, names: Sequence[str], missing: str, damaged: str
) -> _Scores:
    """Return by corruption the errors by severity, and the RMS calibration error.

    missing, damaged: what to do about a set without all corruptions, and about a damaged array.
    """
    arrays = any(
        path.suffix == ".npy" and not is_ignored_name(path.name) for path in folder.iterdir()
    )
    places = {
        name: folder / f"{name}.npy" if arrays else corruption_folder(folder, name)
        for name in names
    }
    _refuse_missing(folder, places, f"and the mean is over all; {missing}")
    if arrays:
        return _score_arrays(evaluation, places, damaged)
    return _score_trees(evaluation, places)


def _refuse_missing(folder: Path, places: Mapping[str, Path], remedy: str) -> None:
    absent = [place for place in places.values() if not place.exists()]
    if absent:
        raise MissingDataError(
            f"{folder} has no {absent[0].relative_to(folder)} ({len(absent)} of {len(places)} are "
            f"missing), {remedy}"
        )


def _score_arrays(evaluation: Evaluation, places: Mapping[str, Path], remedy: str) -> _Scores:
    """Return by corruption the errors by severity, and the RMS calibration error of all images."""
    labels = _labels(next(iter(places.values())).parent, evaluation.data, remedy)
    # All are checked before the first is predicted, which may take long.
    side = evaluation.data.side
    arrays = {name: open_images(path, 4, side, remedy) for name, path in places.items()}
    for name, path in places.items():
        if len(arrays[name]) != len(labels):
            raise PipelineError(
                f"{path} has {len(arrays[name])} images for {len(labels)} labels; {remedy}"
            )
    evaluation.meter.begin(len(arrays) * len(labels))
    errors, rms = {}, {}
    for name, images in arrays.items():
        found = evaluation.classifier.predict(ArrayImages(images))
        right = found.predicted == labels
        errors[name] = [float((~severity).mean()) for severity in np.split(right, SEVERITIES)]
        rms[name] = calibration_error(found.confidence, right)
    return errors, rms


def _score_trees(evaluation: Evaluation, places: Mapping[str, Path]) -> _Scores:
    """Return by corruption the errors by severity, and the mean of their RMS calibration errors."""
    data = evaluation.data
    folders = {name: _severities(place, data.notices) for name, place in places.items()}
    errors: dict[str, list[float]] = {}
    rms: dict[str, float] = {}
    for name, severities in folders.items():
        errors[name], sure = [], []
        n = 0
        for folder in severities:
            images, labels, _ = open_tree(folder, data.resizing_transform.cropping_only(), data)
            if n and len(images) != n:
                raise PipelineError(
                    f"{folder} has {len(images)} images and {severities[0]} {n}; unpack the "
                    "set again"
                )
            if not errors[name] and len(errors) == 1:
                evaluation.meter.begin(len(places) * SEVERITIES * len(images))
            n = len(images)
            found = evaluation.classifier.predict(images)
            right = found.predicted == labels
            errors[name].append(float((~right).mean()))
            sure.append(calibration_error(found.confidence, right))
        rms[name] = float(np.mean(sure))
    return errors, rms


def _severities(place: Path, notices: Notices) -> list[Path]:
    """Return the five folders of a corruption, from the least severe on.

    They are named by numbers: 1 to 5, or the severities themselves (0.80, 1.60, ...), as the script
    of ImageNet-C-Bar's authors writes them.
    """
    numbered = [
        name for name in class_folders(place, ignored=notices.ignored) if _SEVERITY.fullmatch(name)
    ]
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


def _labels(folder: Path, data: EvaluationData, remedy: str) -> NDArray[np.int64]:
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


def open_images(
    path: Path, ndim: int, side: int, remedy: str = DOWNLOAD_AGAIN
) -> NDArray[np.uint8]:
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
        if of_other_size and (path.parent / MAKE_C_RECORD).exists():
            remedy = f"remove {path.parent} and run pixmix-eval make-c --checkpoint FILE"
        raise PipelineError(
            f"{path} is {images.dtype} of shape {images.shape}; it should hold uint8 images "
            f"of {side}x{side}x3 in {ndim} dimensions; {remedy}"
        )
    return images.view(np.uint8)


# --- Perturbations -------------------------------------------------------------------------------


def evaluate_perturbations(evaluation: Evaluation) -> dict[str, Any]:
    """Return how often predictions flip in NAME-P: the mean and, of ImageNet-P, mFR."""
    data = evaluation.data
    large = data.name == IMAGENET
    names = tuple(ALEXNET_FLIPS) if large else (*CIFAR_PERTURBATIONS, evaluation.tenth_perturbation)
    folder, _ = data.find_suite_folder("p")
    places = {
        name: corruption_folder(folder, name) if large else folder / f"{name}.npy" for name in names
    }
    _refuse_missing(folder, places, f"and the mean is over all; {remedy_for(data.name, '-P')}")
    flips = (_flips_of_videos if large else _flips_of_arrays)(evaluation, places)
    return {**measure("p", flips=flips, imagenet_p_flips=flips if large else None), "flips": flips}


def _flips_of_arrays(evaluation: Evaluation, places: Mapping[str, Path]) -> dict[str, float]:
    arrays = {name: open_images(path, 5, evaluation.data.side) for name, path in places.items()}
    evaluation.meter.begin(sum(each.shape[0] * each.shape[1] for each in arrays.values()))
    flips = {}
    for name, sequences in arrays.items():
        n, frames = sequences.shape[:2]
        if n == 0 or frames < 2:
            raise PipelineError(
                f"{places[name]} has {n} sequences of {frames} frames; {DOWNLOAD_AGAIN}"
            )
        flat = sequences.reshape(n * frames, *sequences.shape[2:])
        found = evaluation.classifier.predict(ArrayImages(flat))
        flips[name] = flip_probability(found.predicted.reshape(n, frames), noise=name in NOISES)
    return flips


def _flips_of_videos(evaluation: Evaluation, places: Mapping[str, Path]) -> dict[str, float]:
    """Return by perturbation the mean over videos of each one's flip probability."""
    data = evaluation.data
    videos = {name: list_videos(place, data.notices) for name, place in places.items()}
    evaluation.meter.begin(VIDEO_FRAMES * sum(map(len, videos.values())))
    flips = {}
    for name, files in videos.items():
        predicted = evaluation.classifier.predict_videos(
            files, data.resizing_transform.cropping_only()
        )
        each = [flip_probability(frames[None], noise=name in NOISES) for frames in predicted]
        flips[name] = float(np.mean(each))
    return flips


def overlapping_operations(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the operations of a network's training that overlap C's corruptions.

    Args:
        metadata: of the checkpoint; "recipe" is its training's.

    Returns:
        `OVERLAPPING_OPERATIONS`, or nothing where the training did not draw them or is not known.
    """
    recipe = metadata.get("recipe")
    if not isinstance(recipe, Mapping):
        return ()
    augment = recipe.get("augment")
    pixmix = recipe.get("pixmix")
    all_ops = {
        "pixmix": isinstance(pixmix, Mapping) and pixmix.get("all_ops") is True,
        # Recipes without this field are of versions that always drew them.
        "augmix": recipe.get("augmix_all_ops", True) is True,
        "trivialaugment": True,
    }
    return (
        OVERLAPPING_OPERATIONS if isinstance(augment, str) and all_ops.get(augment, False) else ()
    )
