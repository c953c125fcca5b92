"""The measures of the PixMix paper, as functions of arrays.

Formulas: Hendrycks et al., "PixMix", CVPR 2022, section 4; Hendrycks & Dietterich, ICLR 2019, for
corruptions and perturbations; the released code, github.com/andyzoujm/pixmix at f867e87, except
where it is wrong, which is said.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

ALEXNET_ERRORS: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's mean errors on ImageNet-C (github.com/hendrycks/robustness): what mCE divides by."""

ALEXNET_FLIPS: Mapping[str, float] = {
    "gaussian_noise": 0.23653,
    "shot_noise": 0.30062,
    "motion_blur": 0.09297,
    "zoom_blur": 0.05942,
    "snow": 0.11928,
    "brightness": 0.04889,
    "translate": 0.11007,
    "rotate": 0.13104,
    "tilt": 0.07050,
    "scale": 0.23531,
}
"""AlexNet's flip probabilities on ImageNet-P (github.com/hendrycks/robustness)."""

NOISES = frozenset({"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"})
"""Perturbations whose frames follow from the first one, not from each other."""


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """Return ImageNet's mCE: the mean over 15 corruptions of errors over AlexNet's, 1 its own.

    errors: of each corruption, the mean over its five severities, 0..1.

    Raises:
        ValueError: if one of the 15 is missing.
    """
    return _relative(errors, ALEXNET_ERRORS)


def mean_flip_rate(flips: Mapping[str, float]) -> float:
    """Return ImageNet's mFR: the mean over 10 perturbations of the flips over AlexNet's.

    flips: of each perturbation, its `flip_probability`.

    Raises:
        ValueError: if one of the 10 is missing.
    """
    return _relative(flips, ALEXNET_FLIPS)


def _relative(found: Mapping[str, float], of_alexnet: Mapping[str, float]) -> float:
    missing = sorted(of_alexnet.keys() - found.keys())
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: the mean is over {len(of_alexnet)} kinds")
    return float(np.mean([found[name] / value for name, value in of_alexnet.items()]))


def flip_probability(predictions: Integers, *, noise: bool) -> float:
    """Return how often a prediction changes from frame to frame, 0..1.

    predictions: (sequences, frames), classes. noise: compare with the first frame instead of the
    one before, for in noise no frame follows from the one before.

    Raises:
        ValueError: if there are fewer than two frames.
    """
    if predictions.ndim != 2 or predictions.shape[1] < 2:
        raise ValueError(f"predictions of shape {predictions.shape}; give two frames or more")
    before = predictions[:, :1] if noise else predictions[:, :-1]
    return float((predictions[:, 1:] != before).mean())


# --- Calibration ---------------------------------------------------------------------------------


def calibration_error(
    confidence: Floats, correct: NDArray[np.bool_], *, norm: str = "rms", bin_size: int = 100
) -> float:
    """Return the calibration error in bins of equally many samples.

    Samples are sorted by confidence and put into bins of `bin_size`, of which the last takes the
    remainder. The released code leaves the last bin out, the most confident one, and fails with
    fewer samples than a bin has; here every bin counts.

    confidence: (n,) 0..1, the largest softmax value; correct: (n,).
    norm: "rms", "mad" (mean absolute) or "max", over bins weighted by their sizes.

    Raises:
        ValueError: if there are no samples, shapes differ or the norm is none.
    """
    confidence, correct = _paired(confidence, correct)
    if bin_size < 1:
        raise ValueError(f"bin_size is {bin_size}; give at least 1")
    order = np.argsort(confidence, kind="stable")
    sure, right = confidence[order].astype(np.float64), correct[order].astype(np.float64)
    n = len(order)
    starts = np.arange(max(n // bin_size, 1)) * bin_size
    sizes = np.diff(np.append(starts, n))
    gaps = (np.add.reduceat(sure, starts) - np.add.reduceat(right, starts)) / sizes
    if norm == "rms":
        return float(np.sqrt((sizes / n * gaps**2).sum()))
    if norm == "mad":
        return float((sizes / n * np.abs(gaps)).sum())
    if norm == "max":
        return float(np.abs(gaps).max())
    raise ValueError(f"norm is {norm!r}; give rms, mad or max")


def aurra(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Return the area under the response rate accuracy curve, 0..1.

    The mean over all response rates of the accuracy among the most confident answers.

    confidence: (n,); correct: (n,).

    Raises:
        ValueError: if there are no samples, or shapes differ.
    """
    confidence, correct = _paired(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return float((np.cumsum(correct[order]) / answered).mean())


def soft_f1(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Return the soft F1 score of finding wrong answers by their doubt, 1 - confidence, 0..1.

    Twice the doubt in wrong answers, over that and the doubt in right answers and the confidence in
    wrong ones; 0 where no answer is wrong.

    confidence: (n,) 0..1; correct: (n,).

    Raises:
        ValueError: if there are no samples, or shapes differ.
    """
    confidence, correct = _paired(confidence, correct)
    doubt = 1 - confidence.astype(np.float64)
    found, missed = doubt[~correct].sum(), (1 - doubt[~correct]).sum()
    total = 2 * found + missed + doubt[correct].sum()
    return float(2 * found / total) if total > 0 else 0.0


_TEMPERATURES = (0.05, 20.0)
_CHUNK = 4096


def tune_temperature(logits: Floats, labels: Integers) -> float:
    """Return the temperature by which logits are divided for the least mean cross entropy.

    In 1 / temperature the cross entropy is convex, and the place where its slope is 0 is found by
    halving, within 0.05 and 20 (Guo et al., ICML 2017).

    logits: (n, classes); labels: (n,), of samples on which nothing else is then measured.

    Raises:
        ValueError: if there are no samples, or shapes differ.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape}; give one label "
            "for each row, and at least one"
        )
    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    while high / low > 1 + 1e-5:
        middle = float(np.sqrt(low * high))
        if _slope(logits, labels, middle) > 0:
            high = middle
        else:
            low = middle
    return float(1 / np.sqrt(low * high))


def _slope(logits: Floats, labels: Integers, inverse: float) -> float:
    """Return the slope of the cross entropy's sum in 1 / temperature."""
    total = 0.0
    for begin in range(0, len(labels), _CHUNK):
        some = logits[begin : begin + _CHUNK].astype(np.float64)
        right = some[np.arange(len(some)), labels[begin : begin + _CHUNK]]
        total += float((_softmax(some * inverse) * some).sum() - right.sum())
    return total


def tempered_confidence(logits: Floats, temperature: float) -> NDArray[np.float32]:
    """Return the largest softmax value of logits over a temperature, (n,) float32.

    logits: (n, classes); temperature: above 0.
    """
    chunks = [
        _softmax(logits[begin : begin + _CHUNK].astype(np.float64) / temperature).max(1)
        for begin in range(0, len(logits), _CHUNK)
    ]
    return np.concatenate(chunks).astype(np.float32)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    softmax: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return softmax


def _paired(confidence: Floats, correct: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    if confidence.shape != correct.shape or confidence.ndim != 1 or len(confidence) == 0:
        raise ValueError(
            f"confidence of shape {confidence.shape} and correct of shape {correct.shape}; give "
            "one of each for every sample, and at least one sample"
        )
    return confidence, correct


# --- Anomaly detection ---------------------------------------------------------------------------


def auroc(usual: Floats, odd: Floats) -> float:
    """Return how often an odd sample scores above a usual one, ties as half: the area under ROC.

    usual, odd: (n,), (m,) anomaly scores.

    Raises:
        ValueError: if there are none of a kind.
    """
    scores, is_odd = _scored(usual, odd)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    m, n = int(is_odd.sum()), int((~is_odd).sum())
    return float((ranks[is_odd].sum() - m * (m + 1) / 2) / (m * n))


def aupr(usual: Floats, odd: Floats) -> float:
    """Return the average precision at finding odd samples, with all ties at once.

    usual, odd: (n,), (m,) anomaly scores.

    Raises:
        ValueError: if there are none of a kind.
    """
    hits, alarms = _curve(*_scored(usual, odd))
    precision = hits / (hits + alarms)
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((precision * gained).sum())


def false_positives_at(usual: Floats, odd: Floats, recall: float = 0.95) -> float:
    """Return the share of usual samples that alarm where `recall` of the odd ones do.

    All samples of one score alarm together, and the highest score at which at least `recall` of the
    odd samples alarm is taken. The released code takes the score whose recall is nearest to 95 %,
    which may be less than that, and of several scores with that recall the lowest. So the two
    differ where samples tie, and by the usual samples that lie between two odd ones.

    usual, odd: (n,), (m,) anomaly scores.

    Raises:
        ValueError: if there are none of a kind, or recall is not above 0 and at most 1.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; give a number above 0 and at most 1")
    hits, alarms = _curve(*_scored(usual, odd))
    enough = int(np.argmax(hits >= recall * hits[-1]))
    return float(alarms[enough] / alarms[-1])


def _scored(usual: Floats, odd: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    usual, odd = np.asarray(usual, np.float64), np.asarray(odd, np.float64)
    if usual.ndim != 1 or odd.ndim != 1 or len(usual) == 0 or len(odd) == 0:
        raise ValueError(
            f"scores of shapes {usual.shape} and {odd.shape}; give one for each sample, and "
            "samples of both kinds"
        )
    is_odd = np.repeat([False, True], [len(usual), len(odd)])
    return np.concatenate([usual, odd]), is_odd


def _curve(
    scores: NDArray[np.float64], is_odd: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the odd and the usual samples at or above each score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    hits = np.cumsum(is_odd[order])[last]
    return hits, last + 1 - hits
