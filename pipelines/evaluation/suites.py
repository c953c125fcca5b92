"""The safety measures of the paper for pictures of CIFAR's kind, suite by suite.

    ROOT/test/manifest.json            the test set: shards, or the official archive of CIFAR
         CIFAR-10-C/fog.npy ...        and labels.npy: five severities, each in the test's order
         CIFAR-10-C-Bar/...            likewise
         CIFAR-10-P/gaussian_noise.npy sequences of frames

Layouts: github.com/hendrycks/robustness and github.com/facebookresearch/augmentation-corruption.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.answers import Answers, Classifier
from pipelines.evaluation.attacks import pgd
from pipelines.evaluation.metrics import (
    NOISES,
    aupr,
    auroc,
    aurra,
    calibration_error,
    false_positives_at,
    flip_probability,
)
from pipelines.evaluation.outliers import SYNTHETIC
from pipelines.shards.progress import Progress, no_progress

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
"""Of CIFAR-C, those that are scored; four more are for tuning."""

BAR_CORRUPTIONS = (
    "blue_noise_sample", "brownish_noise", "checkerboard_cutout", "inverse_sparkles",
    "pinch_and_twirl", "ripple", "circular_motion_blur", "lines", "sparkles",
    "transverse_chromatic_abberation",
)  # fmt: skip
"""Of CIFAR-C-bar (Mintun et al., NeurIPS 2021), spelt as its files are."""

PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "spatter", "brightness",
    "translate", "rotate", "tilt", "scale",
)  # fmt: skip
"""Of CIFAR-P, as its authors' script scores them."""

SEVERITIES = 5

_OUTLIER_SHARE = 5
"""Of usual pictures there are five times as many as of odd ones."""
_OUTLIER_ROUNDS = 10

SUITES = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "anomaly")


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """pictures: (n, H, W, 3) uint8, memory-mapped; labels: (n,). name: as "CIFAR-10"."""

    __test__ = False

    name: str
    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated, where its data lie, and how.

    seed: of attacks and synthetic outliers. epsilon: of PGD, in levels of 255.
    pgd_reference_quirk: see `attacks.pgd`.
    """

    classifier: Classifier
    test: TestSet
    root: Path
    seed: int = 0
    epsilon: float = 2.0
    pgd_reference_quirk: bool = False


@dataclass(frozen=True, kw_only=True)
class Findings:
    """values: numbers by name, by suite; missing: a line for each suite that lacks its data."""

    values: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]


class MissingDataError(PipelineError):
    """A suite has nothing to read; the message says what and where to get it."""


def evaluate(
    evaluation: Evaluation, suites: Sequence[str], *, progress: Progress = no_progress
) -> Findings:
    """Run suites and return what was found; one without its data is named and left out.

    Args:
        evaluation: what, and where.
        suites: of `SUITES`.
        progress: called with how many are done, and how many there are.

    Raises:
        PipelineError: if data are there and are not what they should be.
        ValueError: for a suite that is none.
    """
    unknown = [name for name in suites if name not in SUITES]
    if unknown:
        raise ValueError(f"no suite is named {unknown[0]!r}; give of {', '.join(SUITES)}")
    # Answers to the clean pictures serve several suites.
    clean = evaluation.classifier.answer(
        len(evaluation.test.labels), partial(_take, evaluation.test.pictures)
    )
    values: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, str] = {}
    progress(0, len(suites))
    for done, name in enumerate(suites):
        try:
            values[name] = _RUN[name](evaluation, clean)
        except MissingDataError as error:
            missing[name] = str(error)
        progress(done + 1, len(suites))
    return Findings(values=values, missing=missing)


def _take(pictures: NDArray[np.generic], numbers: range) -> NDArray[np.generic]:
    return pictures[numbers.start : numbers.stop]


# --- Suites --------------------------------------------------------------------------------------


def _clean(evaluation: Evaluation, clean: Answers) -> dict[str, Any]:
    return {"error": clean.error(evaluation.test.labels), "n": len(evaluation.test.labels)}


def _calibration(evaluation: Evaluation, clean: Answers) -> dict[str, Any]:
    return calibration(clean, evaluation.test.labels)


def calibration(answers: Answers, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the calibration errors and AURRA of answers."""
    right = answers.predicted == labels
    return {
        "rms": calibration_error(answers.confidence, right),
        "mad": calibration_error(answers.confidence, right, norm="mad"),
        "max": calibration_error(answers.confidence, right, norm="max"),
        "aurra": aurra(answers.confidence, right),
    }


def _corrupted(
    evaluation: Evaluation, _clean: Answers, *, suffix: str, names: Sequence[str], source: str
) -> dict[str, Any]:
    """Return mean error and mean RMS calibration error over corruptions and severities."""
    folder = evaluation.root / f"{evaluation.test.name}{suffix}"
    if not folder.is_dir():
        raise MissingDataError(f"{folder} is not there; get it from {source}")
    there = [name for name in names if (folder / f"{name}.npy").exists()]
    absent = [name for name in names if name not in there]
    if absent:
        raise MissingDataError(
            f"{folder} has no {absent[0]}.npy ({len(absent)} of {len(names)} are missing), and the "
            f"mean is over all; get it from {source}"
        )
    labels = _labels(folder)
    errors: dict[str, list[float]] = {}
    rms: dict[str, float] = {}
    for name in there:
        pictures = _open_array(folder / f"{name}.npy", 4)
        if len(pictures) != len(labels):
            raise PipelineError(
                f"{folder / name}.npy has {len(pictures)} pictures for {len(labels)} labels; get "
                "it again"
            )
        answers = evaluation.classifier.answer(len(labels), partial(_take, pictures))
        each = np.split(answers.predicted != labels, SEVERITIES)
        errors[name] = [float(severity.mean()) for severity in each]
        rms[name] = calibration_error(answers.confidence, answers.predicted == labels)
    return {
        "mean_error": float(np.mean(list(errors.values()))),
        "mean_rms": float(np.mean(list(rms.values()))),
        "errors": errors,
        "rms": rms,
    }


def _labels(folder: Path) -> NDArray[np.int64]:
    path = folder / "labels.npy"
    if not path.exists():
        raise PipelineError(f"{folder} has no labels.npy; get the whole set again")
    labels: NDArray[np.int64] = np.load(path, allow_pickle=False).astype(np.int64)
    if labels.ndim != 1 or len(labels) == 0 or len(labels) % SEVERITIES:
        raise PipelineError(
            f"{path} has shape {labels.shape}; it should hold as many labels for each of "
            f"{SEVERITIES} severities"
        )
    return labels


def _open_array(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Open an array of uint8 pictures, (..., H, W, 3), without reading it."""
    try:
        pictures: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise PipelineError(f"{path} is no array of pictures ({error}); get it again") from error
    if pictures.dtype != np.uint8 or pictures.ndim != ndim or pictures.shape[-1] != 3:
        raise PipelineError(
            f"{path} is {pictures.dtype} of shape {pictures.shape}; it should hold uint8 pictures "
            f"in {ndim} dimensions"
        )
    return pictures


def _perturbed(evaluation: Evaluation, _clean: Answers) -> dict[str, Any]:
    """Return how often answers flip in sequences, and their mean."""
    folder = evaluation.root / f"{evaluation.test.name}-P"
    paths = {name: folder / f"{name}.npy" for name in PERTURBATIONS}
    absent = [name for name, path in paths.items() if not path.exists()]
    if absent:
        raise MissingDataError(
            f"{folder} has no {absent[0]}.npy; get it from https://zenodo.org/record/2535967"
        )
    flips = {}
    for name, path in paths.items():
        sequences = _open_array(path, 5)
        n, frames = sequences.shape[:2]
        flat = sequences.reshape(n * frames, *sequences.shape[2:])
        answers = evaluation.classifier.answer(n * frames, partial(_take, flat))
        predicted = answers.predicted.reshape(n, frames)
        flips[name] = flip_probability(predicted, noise=name in NOISES)
    return {"mean_flip_probability": float(np.mean(list(flips.values()))), "flips": flips}


def _adversarial(evaluation: Evaluation, _clean: Answers) -> dict[str, Any]:
    """Return the error under PGD."""
    test, classifier = evaluation.test, evaluation.classifier
    device = classifier.processes.device

    def attack(images: torch.Tensor, numbers: range) -> torch.Tensor:
        labels = torch.from_numpy(test.labels[numbers.start : numbers.stop]).to(device)
        return pgd(
            classifier.logits,
            images,
            labels,
            start=_starts(evaluation.seed, numbers, images),
            epsilon=evaluation.epsilon / 255,
            step=evaluation.epsilon / 4 / 255,
            reference_quirk=evaluation.pgd_reference_quirk,
        )

    answers = classifier.answer(len(test.labels), partial(_take, test.pictures), attack)
    return {
        "error": answers.error(test.labels),
        "epsilon": evaluation.epsilon,
        "reference_quirk": evaluation.pgd_reference_quirk,
    }


def _starts(seed: int, numbers: range, images: torch.Tensor) -> torch.Tensor:
    """Draw random starts, each picture's from its own number: batches and processes do not show."""
    shape = images.shape[1:]
    drawn = [
        np.random.Generator(np.random.Philox(key=[seed, number])).random(shape, np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.stack(drawn)).to(images.device)


def _anomaly(evaluation: Evaluation, clean: Answers) -> dict[str, Any]:
    """Return how well the confidence tells pictures of nothing from the test's.

    Of each kind there is one for five of the test's, drawn ten times and averaged.
    """
    test, classifier = evaluation.test, evaluation.classifier
    side = test.pictures.shape[1]
    n = max(1, len(test.labels) // _OUTLIER_SHARE)
    kinds: dict[str, dict[str, float]] = {}
    for place, (name, draw) in enumerate(SYNTHETIC.items()):
        found = []
        for round_ in range(_OUTLIER_ROUNDS):
            generator = np.random.Generator(
                np.random.Philox(key=[evaluation.seed, place * _OUTLIER_ROUNDS + round_])
            )
            odd = classifier.answer(n, partial(_take, draw(generator, n, side)))
            scores = -clean.confidence, -odd.confidence
            found.append((auroc(*scores), aupr(*scores), false_positives_at(*scores)))
        means = np.mean(found, 0)
        kinds[name] = dict(zip(("auroc", "aupr", "fpr95"), map(float, means), strict=True))
    return {
        "mean_auroc": float(np.mean([each["auroc"] for each in kinds.values()])),
        "mean_aupr": float(np.mean([each["aupr"] for each in kinds.values()])),
        "mean_fpr95": float(np.mean([each["fpr95"] for each in kinds.values()])),
        "kinds": kinds,
    }


_RUN: Mapping[str, Callable[[Evaluation, Answers], dict[str, Any]]] = {
    "clean": _clean,
    "calibration": _calibration,
    "c": partial(
        _corrupted,
        suffix="-C",
        names=CORRUPTIONS,
        source="https://zenodo.org/record/2535967, or make one by pixmix-eval make-c",
    ),
    "c-bar": partial(
        _corrupted,
        suffix="-C-Bar",
        names=BAR_CORRUPTIONS,
        source="https://github.com/facebookresearch/augmentation-corruption",
    ),
    "p": _perturbed,
    "adversarial": _adversarial,
    "anomaly": _anomaly,
}
