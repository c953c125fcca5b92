"""Robustness to corruptions (C, C-bar) and consistency under perturbations (P).

    ROOT/CIFAR-10-C/fog.npy, labels.npy     five severities, each in the order of the test set
         CIFAR-10-C-made/...                same layout, made by pixmix-eval make-c
         CIFAR-10-C-Bar/...                 same layout
         ImageNet-C/fog/3/n01440764/*.JPEG  five severities, one folder per class
         ImageNet-C-Bar/...                 same layout, or severities such as 0.80 in place of 1
         CIFAR-10-P/gaussian_noise.npy      (n, frames, 32, 32, 3)
         ImageNet-P/tilt/n01440764/*.mp4    one video per sequence

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
"""The 15 scored corruptions of CIFAR-C and ImageNet-C, without the 4 for validation."""

CIFAR_BAR = (
    "blue_noise_sample", "brownish_noise", "checkerboard_cutout", "inverse_sparkles",
    "pinch_and_twirl", "ripple", "circular_motion_blur", "lines", "sparkles",
    "transverse_chromatic_abberation",
)  # fmt: skip
"""The corruptions of CIFAR-C-bar (Mintun et al., NeurIPS 2021), spelled as in its file names."""

IMAGENET_BAR = (
    "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout",
    "cocentric_sine_waves", "inverse_sparkles", "perlin_noise", "plasma_noise",
    "single_frequency_greyscale", "sparkles",
)  # fmt: skip
"""The corruptions of ImageNet-C-bar, spelled as in its folder names."""

SEVERITIES = 5

CIFAR_PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "brightness", "translate",
    "rotate", "tilt", "scale",
)  # fmt: skip
"""The perturbations of CIFAR-P except the tenth, which differs between the authors' scripts."""


OVERLAPPING_OPERATIONS = tuple(row.name for row in OPERATIONS if row.overlaps_c)
"""PixMix and AugMix draw these only with --all-ops; TrivialAugment always draws them."""


CLASSES_FILE = "classes.txt"

_SEVERITY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


# --- Corruptions ---------------------------------------------------------------------------------


def evaluate_corruptions(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors on NAME-C, their mean, and for ImageNet-C also the mCE.

    "made" describes a dataset that make-c made. "overlap" lists the training operations that
    overlap the corruptions of C. The mCE is left out for a dataset of make-c because it divides by
    AlexNet's errors on the official ImageNet-C.
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
    """Return, for each corruption, the error at each severity and the RMS calibration error.

    missing, damaged: remedies for a dataset that lacks a corruption and for a damaged array.
    """
    arrays = any(
        path.suffix == ".npy" and not is_ignored_name(path.name) for path in folder.iterdir()
    )
    paths = {
        name: folder / f"{name}.npy" if arrays else corruption_folder(folder, name)
        for name in names
    }
    _check_complete(folder, paths, missing)
    if arrays:
        return _score_arrays(evaluation, paths, damaged)
    return _score_trees(evaluation, paths)


def _check_complete(folder: Path, paths: Mapping[str, Path], remedy: str) -> None:
    absent = [path for path in paths.values() if not path.exists()]
    if absent:
        raise MissingDataError(
            f"{folder} has no {absent[0].relative_to(folder)} ({len(absent)} of {len(paths)} are "
            f"missing), and the mean must be over all of them; {remedy}"
        )


def _score_arrays(evaluation: Evaluation, paths: Mapping[str, Path], remedy: str) -> _Scores:
    """Return the scores of CIFAR's layout; the calibration error is over all five severities."""
    labels = _labels(next(iter(paths.values())).parent, evaluation.data, remedy)
    # Every array is checked before the first one is predicted, which may take long.
    side = evaluation.data.side
    arrays = {name: open_images(path, 4, side, remedy) for name, path in paths.items()}
    for name, path in paths.items():
        if len(arrays[name]) != len(labels):
            raise PipelineError(
                f"{path} has {len(arrays[name])} images for {len(labels)} labels; {remedy}"
            )
    evaluation.meter.begin(len(arrays) * len(labels))
    errors, rms = {}, {}
    for name, images in arrays.items():
        predictions = evaluation.classifier.predict(ArrayImages(images))
        correct = predictions.predicted == labels
        errors[name] = [float((~severity).mean()) for severity in np.split(correct, SEVERITIES)]
        rms[name] = calibration_error(predictions.confidence, correct)
    return errors, rms


def _score_trees(evaluation: Evaluation, paths: Mapping[str, Path]) -> _Scores:
    """Return the scores of ImageNet's layout; the calibration error is a mean over severities."""
    data = evaluation.data
    folders = {name: _severities(path, data.notices) for name, path in paths.items()}
    errors: dict[str, list[float]] = {}
    rms: dict[str, float] = {}
    for name, severities in folders.items():
        errors[name], calibration_errors = [], []
        n = 0
        for folder in severities:
            images, labels, _ = open_tree(folder, data.resizing_transform.cropping_only(), data)
            if n and len(images) != n:
                raise PipelineError(
                    f"{folder} has {len(images)} images and {severities[0]} has {n}; unpack the "
                    "dataset again"
                )
            if not errors[name] and len(errors) == 1:
                evaluation.meter.begin(len(paths) * SEVERITIES * len(images))
            n = len(images)
            predictions = evaluation.classifier.predict(images)
            correct = predictions.predicted == labels
            errors[name].append(float((~correct).mean()))
            calibration_errors.append(calibration_error(predictions.confidence, correct))
        rms[name] = float(np.mean(calibration_errors))
    return errors, rms


def _severities(folder: Path, notices: Notices) -> list[Path]:
    """Return the five severity folders of a corruption, the mildest first.

    Their names are 1 to 5, or the severities themselves (0.80, 1.60, ...), as the script of the
    authors of ImageNet-C-Bar writes them.
    """
    numbered = [
        name for name in class_folders(folder, ignored=notices.ignored) if _SEVERITY.fullmatch(name)
    ]
    if len(numbered) != SEVERITIES or len(set(map(float, numbered))) != SEVERITIES:
        names = ", ".join(numbered[:8]) or "none"
        raise PipelineError(
            f"{folder} has {len(numbered)} folders named by a severity ({names}), expected "
            f"{SEVERITIES}; unpack the dataset again"
        )
    return [folder / name for name in sorted(numbered, key=float)]


def corruption_folder(folder: Path, name: str) -> Path:
    """Return the folder of a corruption, which may be inside a group folder such as noise/."""
    inside = [
        path / name
        for path in sorted(folder.iterdir())
        if not is_ignored_name(path.name) and (path / name).is_dir()
    ]
    return folder / name if (folder / name).is_dir() or not inside else inside[0]


def _labels(folder: Path, data: EvaluationData, remedy: str) -> NDArray[np.int64]:
    """Return the network output for each label of a corrupted dataset.

    folder/classes.txt holds one class name per line, in the order of the labels. Without that file,
    CIFAR's labels have the official order, and any other label i stands for output i.
    """
    path = folder / "labels.npy"
    if not path.exists():
        raise PipelineError(f"{folder} has no labels.npy; {remedy}")
    labels = read_labels(path, remedy)
    if len(labels) == 0 or len(labels) % SEVERITIES:
        raise PipelineError(
            f"{path} has shape {labels.shape}; expected the same number of labels for each of "
            f"{SEVERITIES} severities; {remedy}"
        )
    names = folder / CLASSES_FILE
    if names.exists():
        known = read_names(names, remedy)
        _check_range(labels, len(known), path, f"{names} has {len(known)} names; {remedy}")
        used = np.unique(labels)
        if data.classes:
            # Only names with images must match: a dataset may lack images of some classes.
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
    n_outputs = data.outputs if data.outputs is not None else len(data.classes)
    if n_outputs:
        _check_range(labels, n_outputs, path, f"the network has {n_outputs} outputs; {remedy}")
    elif labels.min() < 0:
        _check_range(labels, int(labels.max()) + 1, path, remedy)
    return labels


def _check_range(labels: NDArray[np.int64], n: int, path: Path, why: str) -> None:
    if labels.min() < 0 or labels.max() >= n:
        raise PipelineError(
            f"{path} has labels from {labels.min()} to {labels.max()}, which must be within 0 to "
            f"{n - 1}; {why}"
        )


def open_images(
    path: Path, ndim: int, side: int, remedy: str = DOWNLOAD_AGAIN
) -> NDArray[np.uint8]:
    """Open an array of uint8 images, (..., side, side, 3), without reading it.

    Args:
        path: the .npy file.
        ndim: number of dimensions of the array.
        side: height and width of an image, pixels.
        remedy: what to do about a damaged file, for the end of the error.

    Returns:
        A memory map of the array.

    Raises:
        PipelineError: if the file holds anything else.
    """
    images = open_array(path, remedy)
    if images.dtype != np.uint8 or images.ndim != ndim or images.shape[-3:] != (side, side, 3):
        other_size = images.dtype == np.uint8 and images.ndim == ndim and images.shape[-1] == 3
        if other_size and (path.parent / MAKE_C_RECORD).exists():
            remedy = f"remove {path.parent} and run pixmix-eval make-c --checkpoint FILE"
        raise PipelineError(
            f"{path} is {images.dtype} of shape {images.shape}; expected uint8 images of "
            f"{side}x{side}x3 in {ndim} dimensions; {remedy}"
        )
    return images.view(np.uint8)


# --- Perturbations -------------------------------------------------------------------------------


def evaluate_perturbations(evaluation: Evaluation) -> dict[str, Any]:
    """Return the flip probabilities on NAME-P, their mean, and for ImageNet-P also the mFR."""
    data = evaluation.data
    imagenet = data.name == IMAGENET
    names = (
        tuple(ALEXNET_FLIPS) if imagenet else (*CIFAR_PERTURBATIONS, evaluation.tenth_perturbation)
    )
    folder, _ = data.find_suite_folder("p")
    paths = {
        name: corruption_folder(folder, name) if imagenet else folder / f"{name}.npy"
        for name in names
    }
    _check_complete(folder, paths, remedy_for(data.name, "-P"))
    flips = (_video_flips if imagenet else _array_flips)(evaluation, paths)
    return {
        **measure("p", flips=flips, imagenet_p_flips=flips if imagenet else None),
        "flips": flips,
    }


def _array_flips(evaluation: Evaluation, paths: Mapping[str, Path]) -> dict[str, float]:
    """Return the flip probability of each perturbation in CIFAR-P's layout."""
    arrays = {name: open_images(path, 5, evaluation.data.side) for name, path in paths.items()}
    evaluation.meter.begin(sum(each.shape[0] * each.shape[1] for each in arrays.values()))
    flips = {}
    for name, sequences in arrays.items():
        n, frames = sequences.shape[:2]
        if n == 0 or frames < 2:
            raise PipelineError(
                f"{paths[name]} has {n} sequences of {frames} frames, expected at least 1 sequence "
                f"of at least 2 frames; {DOWNLOAD_AGAIN}"
            )
        flat = sequences.reshape(n * frames, *sequences.shape[2:])
        predicted = evaluation.classifier.predict(ArrayImages(flat)).predicted
        flips[name] = flip_probability(predicted.reshape(n, frames), noise=name in NOISES)
    return flips


def _video_flips(evaluation: Evaluation, paths: Mapping[str, Path]) -> dict[str, float]:
    """Return the mean flip probability over the videos of each perturbation of ImageNet-P."""
    data = evaluation.data
    videos = {name: list_videos(path, data.notices) for name, path in paths.items()}
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
    """Return the training operations of a network that overlap the corruptions of C.

    Args:
        metadata: the checkpoint's metadata; "recipe" holds the recipe of its training.

    Returns:
        ``OVERLAPPING_OPERATIONS``, or an empty tuple if the training did not draw them or is
        unknown.
    """
    recipe = metadata.get("recipe")
    if not isinstance(recipe, Mapping):
        return ()
    augment = recipe.get("augment")
    pixmix = recipe.get("pixmix")
    all_ops = {
        "pixmix": isinstance(pixmix, Mapping) and pixmix.get("all_ops") is True,
        # Versions that wrote recipes without this field always drew them.
        "augmix": recipe.get("augmix_all_ops", True) is True,
        "trivialaugment": True,
    }
    return (
        OVERLAPPING_OPERATIONS if isinstance(augment, str) and all_ops.get(augment, False) else ()
    )
