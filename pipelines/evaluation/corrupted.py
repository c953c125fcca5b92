"""Robustness: pictures that were corrupted, and sequences in which they are perturbed.

    ROOT/CIFAR-10-C/fog.npy, labels.npy     five severities, each in the test's order
         CIFAR-10-C-Bar/...                 likewise
         CIFAR-10-P/gaussian_noise.npy      sequences of frames
         ImageNet-C/fog/3/n01440764/*.JPEG  five severities, a folder a class
         ImageNet-C-Bar/...                 likewise
         ImageNet-P/tilt/n01440764/*.mp4    sequences of frames

Layouts: github.com/hendrycks/robustness and github.com/facebookresearch/augmentation-corruption.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.data import open_tree
from pipelines.evaluation.metrics import (
    ALEXNET_FLIPS,
    NOISES,
    calibration_error,
    flip_probability,
    mean_corruption_error,
    mean_flip_rate,
)
from pipelines.evaluation.pictures import Stored
from pipelines.evaluation.request import IMAGENET, Evaluation, MissingDataError, find_folder
from pipelines.evaluation.videos import answer_videos, find_videos
from pipelines.models.outputs import outputs_of

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

CIFAR_PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "brightness", "translate",
    "rotate", "tilt", "scale",
)  # fmt: skip
"""Of CIFAR-P, without the tenth, in which its authors' script and generator differ."""

SEVERITIES = 5

CLASSES_FILE = "classes.txt"

_AUTHORS = {
    ("CIFAR-10", "-C"): "https://zenodo.org/record/2535967",
    ("CIFAR-10", "-P"): "https://zenodo.org/record/2535967",
    ("CIFAR-100", "-C"): "https://zenodo.org/record/3555552",
    ("CIFAR-100", "-P"): "https://zenodo.org/record/2535967",
    (IMAGENET, "-C"): "https://zenodo.org/record/2235448",
    (IMAGENET, "-P"): "https://zenodo.org/record/3565846",
    **dict.fromkeys(
        ((name, "-C-Bar") for name in ("CIFAR-10", "CIFAR-100", IMAGENET)),
        "https://github.com/facebookresearch/augmentation-corruption",
    ),
}
"""Where the sets are that their authors distribute, by test set and suffix."""


def _remedy(name: str, suffix: str) -> str:
    """Return how a set that is missing is got, for the end of an error."""
    ways = [f"get it from {_AUTHORS[name, suffix]}"] if (name, suffix) in _AUTHORS else []
    if suffix == "-C" and name != IMAGENET:
        ways.append("make one by pixmix-eval make-c")
    return ", or ".join(ways) or f"nobody distributes one of {name}; leave the suite out"


def corrupted(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors on NAME-C: their mean and, of ImageNet-C, mCE."""
    large = evaluation.data.name == IMAGENET
    found = _corrupted(evaluation, "-C", CORRUPTIONS)
    if large:
        errors = {name: float(np.mean(each)) for name, each in found["errors"].items()}
        found["mce"] = mean_corruption_error(errors)
    return found


def corrupted_bar(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors on NAME-C-Bar, and their mean."""
    large = evaluation.data.name == IMAGENET
    return _corrupted(evaluation, "-C-Bar", IMAGENET_BAR if large else CIFAR_BAR)


def _corrupted(evaluation: Evaluation, suffix: str, names: Sequence[str]) -> dict[str, Any]:
    """Return mean error and mean RMS calibration error over corruptions and severities."""
    data = evaluation.data
    folder = find_folder(data.root, f"{data.name}{suffix}")
    remedy = _remedy(data.name, suffix)
    if folder is None:
        raise MissingDataError(f"{data.root / data.name}{suffix} is not there; {remedy}")
    arrays = any(folder.glob("*.npy"))
    places = {name: folder / f"{name}.npy" if arrays else _tree(folder, name) for name in names}
    absent = [name for name, place in places.items() if not place.exists()]
    if absent:
        raise MissingDataError(
            f"{folder} has no {places[absent[0]].relative_to(folder)} ({len(absent)} of "
            f"{len(names)} are missing), and the mean is over all; {remedy}"
        )
    answer = _answer_array if arrays else _answer_tree
    errors: dict[str, list[float]] = {}
    rms: dict[str, float] = {}
    for name, place in places.items():
        errors[name], rms[name] = answer(evaluation, place)
    return {
        "mean_error": float(np.mean(list(errors.values()))),
        "mean_rms": float(np.mean(list(rms.values()))),
        "errors": errors,
        "rms": rms,
    }


def _answer_array(evaluation: Evaluation, path: Path) -> tuple[list[float], float]:
    """Return the errors by severity, and the RMS calibration error of all severities together."""
    labels = _labels(path.parent, evaluation.data.classes)
    pictures = _open_array(path, 4, evaluation.data.side)
    if len(pictures) != len(labels):
        raise PipelineError(
            f"{path} has {len(pictures)} pictures for {len(labels)} labels; get it again"
        )
    answers = evaluation.classifier.answer(Stored(pictures))
    right = answers.predicted == labels
    errors = [float((~severity).mean()) for severity in np.split(right, SEVERITIES)]
    return errors, calibration_error(answers.confidence, right)


def _answer_tree(evaluation: Evaluation, place: Path) -> tuple[list[float], float]:
    """Return the errors by severity, and the mean of the severities' RMS calibration errors."""
    data = evaluation.data
    errors, rms = [], []
    sizes: list[int] = []
    for severity in range(1, SEVERITIES + 1):
        pictures, labels, _ = open_tree(
            place / str(severity), data.resized.as_it_is(), data.classes
        )
        sizes.append(len(pictures))
        if sizes[-1] != sizes[0]:
            raise PipelineError(
                f"{place / str(severity)} has {sizes[-1]} pictures and {place / '1'} {sizes[0]}; "
                "unpack the set again"
            )
        answers = evaluation.classifier.answer(pictures)
        right = answers.predicted == labels
        errors.append(float((~right).mean()))
        rms.append(calibration_error(answers.confidence, right))
    return errors, float(np.mean(rms))


def _tree(folder: Path, name: str) -> Path:
    """Return where a corruption lies: in the folder, or in that of its group, as noise/."""
    inside = [path / name for path in sorted(folder.iterdir()) if (path / name).is_dir()]
    return folder / name if (folder / name).is_dir() or not inside else inside[0]


def _labels(folder: Path, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the outputs of the network for the labels of a set.

    folder/classes.txt says the names of the labels, a line each; without it, and without names of
    the network's classes, label i is output i.
    """
    path = folder / "labels.npy"
    if not path.exists():
        raise PipelineError(f"{folder} has no labels.npy; get the whole set again")
    labels: NDArray[np.int64] = load_array(path).astype(np.int64)
    if labels.ndim != 1 or len(labels) == 0 or len(labels) % SEVERITIES:
        raise PipelineError(
            f"{path} has shape {labels.shape}; it should hold as many labels for each of "
            f"{SEVERITIES} severities"
        )
    names = folder / CLASSES_FILE
    if not classes or not names.exists():
        return labels
    outputs = outputs_of(names.read_text().splitlines(), classes, str(names))
    if labels.min() < 0 or labels.max() >= len(outputs):
        raise PipelineError(
            f"{path} has labels from {labels.min()} to {labels.max()} and {names} {len(outputs)} "
            "names; make the set again"
        )
    return outputs[labels]


def load_array(path: Path, *, mapped: bool = False) -> NDArray[np.generic]:
    """Open an array of a file, without running anything that it may hold.

    Raises:
        PipelineError: if there is none in it.
        OSError: if it cannot be read.
    """
    try:
        found: NDArray[np.generic] = np.load(
            path, mmap_mode="r" if mapped else None, allow_pickle=False
        )
    except (ValueError, EOFError) as error:
        raise PipelineError(f"{path} is no whole array ({error}); get it again") from error
    return found


def _open_array(path: Path, ndim: int, side: int) -> NDArray[np.uint8]:
    """Open an array of uint8 pictures, (..., side, side, 3), without reading it."""
    pictures = load_array(path, mapped=True)
    if (
        pictures.dtype != np.uint8
        or pictures.ndim != ndim
        or pictures.shape[-3:] != (side, side, 3)
    ):
        raise PipelineError(
            f"{path} is {pictures.dtype} of shape {pictures.shape}; it should hold uint8 pictures "
            f"of {side}x{side}x3 in {ndim} dimensions"
        )
    return pictures.view(np.uint8)


# --- Perturbations -------------------------------------------------------------------------------


def perturbed(evaluation: Evaluation) -> dict[str, Any]:
    """Return how often answers flip in sequences of NAME-P, their mean and, of ImageNet-P, mFR."""
    data = evaluation.data
    large = data.name == IMAGENET
    names = tuple(ALEXNET_FLIPS) if large else (*CIFAR_PERTURBATIONS, evaluation.tenth_perturbation)
    folder = find_folder(data.root, f"{data.name}-P")
    remedy = _remedy(data.name, "-P")
    if folder is None:
        raise MissingDataError(f"{data.root / data.name}-P is not there; {remedy}")
    places = {name: _tree(folder, name) if large else folder / f"{name}.npy" for name in names}
    absent = [place for place in places.values() if not place.exists()]
    if absent:
        raise MissingDataError(
            f"{folder} has no {absent[0].relative_to(folder)} ({len(absent)} of {len(names)} are "
            f"missing); {remedy}"
        )
    flips = {
        name: (_flips_of_videos if large else _flips_of_array)(evaluation, place, name in NOISES)
        for name, place in places.items()
    }
    found: dict[str, Any] = {
        "mean_flip_probability": float(np.mean(list(flips.values()))),
        "flips": flips,
    }
    if large:
        found["mfr"] = mean_flip_rate(flips)
    return found


def _flips_of_array(evaluation: Evaluation, path: Path, noise: bool) -> float:
    sequences = _open_array(path, 5, evaluation.data.side)
    n, frames = sequences.shape[:2]
    flat = sequences.reshape(n * frames, *sequences.shape[2:])
    answers = evaluation.classifier.answer(Stored(flat))
    return flip_probability(answers.predicted.reshape(n, frames), noise=noise)


def _flips_of_videos(evaluation: Evaluation, folder: Path, noise: bool) -> float:
    """Return the mean over videos of each one's flip probability."""
    predicted = answer_videos(
        evaluation.classifier, find_videos(folder), evaluation.data.resized.as_it_is()
    )
    return float(np.mean([flip_probability(each[None], noise=noise) for each in predicted]))
