"""The metrics of the PixMix paper as functions of arrays, and a table of each suite's metrics.

To add a metric, write a function and add a row to `METRICS`. Its suite then computes it, and the
JSON, the tables, the reports and the radar plot show it.

Formulas: Hendrycks et al., "PixMix", CVPR 2022, section 4; for corruptions and perturbations
Hendrycks & Dietterich, ICLR 2019; and the released code, github.com/andyzoujm/pixmix at f867e87,
except where a docstring names an error in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def error(correct: NDArray[np.bool_]) -> float:
    """Return the error, 0..1. correct: (n,) bool."""
    return float((~correct).mean())


def mean(values: Mapping[str, float]) -> float:
    """Return the unweighted mean over corruptions or perturbations."""
    return float(np.mean(list(values.values())))


# --- Corruptions and perturbations ---------------------------------------------------------------

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
"""AlexNet's mean errors on ImageNet-C, the divisors of mCE (github.com/hendrycks/robustness)."""

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
"""AlexNet's flip probabilities on ImageNet-P, the divisors of mFR."""

NOISES = frozenset({"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"})
"""Perturbations whose frames are each drawn from the first frame, not from the previous one."""


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """Return the mCE on ImageNet-C: the mean over 15 corruptions of error / AlexNet's error.

    Args:
        errors: for each corruption the mean error over its five severities, 0..1.

    Raises:
        ValueError: if one of the 15 corruptions is missing.
    """
    return _relative(errors, ALEXNET_ERRORS)


def mean_flip_rate(flips: Mapping[str, float]) -> float:
    """Return the mFR on ImageNet-P: the mean over 10 perturbations of flips / AlexNet's flips.

    Args:
        flips: for each perturbation its `flip_probability`.

    Raises:
        ValueError: if one of the 10 perturbations is missing.
    """
    return _relative(flips, ALEXNET_FLIPS)


def _relative(values: Mapping[str, float], alexnet: Mapping[str, float]) -> float:
    missing = sorted(alexnet.keys() - values.keys())
    if missing:
        raise ValueError(
            f"{', '.join(missing)} missing; the mean must be over all {len(alexnet)} values"
        )
    return float(np.mean([values[name] / value for name, value in alexnet.items()]))


def flip_probability(predictions: Integers, *, noise: bool) -> float:
    """Return how often a prediction changes from one frame to the next, 0..1.

    Args:
        predictions: (sequences, frames) predicted classes.
        noise: whether to compare with the first frame instead of the previous one, because the
            frames of a noise sequence are independent.

    Raises:
        ValueError: if there are fewer than two frames.
    """
    if predictions.ndim != 2 or predictions.shape[1] < 2:
        raise ValueError(f"predictions of shape {predictions.shape}; pass two frames or more")
    before = predictions[:, :1] if noise else predictions[:, :-1]
    return float((predictions[:, 1:] != before).mean())


# --- Calibration ---------------------------------------------------------------------------------


def calibration_error(
    confidence: Floats, correct: NDArray[np.bool_], *, norm: str = "rms", bin_size: int = 100
) -> float:
    """Return the calibration error over bins with the same number of samples.

    Samples are sorted by confidence and put into bins of `bin_size`; the last bin also takes the
    remainder. The released code leaves out the last bin, which is the most confident one, and fails
    if there are fewer samples than one bin; here every bin counts.

    Args:
        confidence: (n,) 0..1, the largest softmax value.
        correct: (n,) bool.
        norm: "rms", "mad" (mean absolute) or "max", over bins weighted by their sizes.
        bin_size: samples per bin.

    Raises:
        ValueError: if the arrays are empty, the shapes differ, or the norm is unknown.
    """
    confidence, correct = _paired(confidence, correct)
    if bin_size < 1:
        raise ValueError(f"bin_size is {bin_size}; use at least 1")
    order = np.argsort(confidence, kind="stable")
    sorted_confidence = confidence[order].astype(np.float64)
    sorted_correct = correct[order].astype(np.float64)
    n = len(order)
    starts = np.arange(max(n // bin_size, 1)) * bin_size
    sizes = np.diff(np.append(starts, n))
    gaps = np.add.reduceat(sorted_confidence, starts) - np.add.reduceat(sorted_correct, starts)
    gaps /= sizes
    if norm == "rms":
        return float(np.sqrt((sizes / n * gaps**2).sum()))
    if norm == "mad":
        return float((sizes / n * np.abs(gaps)).sum())
    if norm == "max":
        return float(np.abs(gaps).max())
    raise ValueError(f"norm is {norm!r}; use rms, mad or max")


def aurra(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Return the area under the response rate accuracy curve, 0..1.

    This is the mean, over all response rates, of the accuracy of the most confident predictions.

    Args:
        confidence: (n,).
        correct: (n,) bool.

    Raises:
        ValueError: if the arrays are empty, or the shapes differ.
    """
    confidence, correct = _paired(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    responses = np.arange(1, len(order) + 1)
    return float((np.cumsum(correct[order]) / responses).mean())


def soft_f1(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Return the soft F1 score of detecting errors by their uncertainty, 1 - confidence, 0..1.

    True positives are the summed uncertainty of wrong predictions, false negatives their summed
    confidence, and false positives the summed uncertainty of correct predictions.

    Args:
        confidence: (n,) 0..1.
        correct: (n,) bool.

    Returns:
        2 TP / (2 TP + FN + FP); 0 if every prediction is correct with confidence 1.

    Raises:
        ValueError: if the arrays are empty, or the shapes differ.
    """
    confidence, correct = _paired(confidence, correct)
    uncertainty = 1 - confidence.astype(np.float64)
    positives = uncertainty[~correct].sum()
    missed = (1 - uncertainty[~correct]).sum()
    total = 2 * positives + missed + uncertainty[correct].sum()
    return float(2 * positives / total) if total > 0 else 0.0


_TEMPERATURES = (0.05, 20.0)
_CHUNK = 4096


def tune_temperature(logits: Floats, labels: Integers) -> float:
    """Return the temperature that minimizes the cross entropy of logits / temperature.

    The cross entropy is convex in 1 / temperature, and bisection finds the zero of its slope
    between the temperatures 0.05 and 20 (Guo et al., ICML 2017).

    Args:
        logits: (n, classes), of samples that are not used for the metrics.
        labels: (n,).

    Raises:
        ValueError: if the arrays are empty, or the shapes differ.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape}; pass one label "
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
    """Return the derivative of the summed cross entropy with respect to 1 / temperature."""
    total = 0.0
    for begin in range(0, len(labels), _CHUNK):
        chunk = logits[begin : begin + _CHUNK].astype(np.float64)
        of_labels = chunk[np.arange(len(chunk)), labels[begin : begin + _CHUNK]]
        total += float((_softmax(chunk * inverse) * chunk).sum() - of_labels.sum())
    return total


def scaled_confidence(logits: Floats, temperature: float) -> NDArray[np.float32]:
    """Return the largest softmax values of logits / temperature, (n,) float32.

    Args:
        logits: (n, classes).
        temperature: above 0.
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
            f"confidence of shape {confidence.shape} and correct of shape {correct.shape}; pass "
            "one value of each per sample, and at least one sample"
        )
    return confidence, correct


# --- Out-of-distribution detection ---------------------------------------------------------------


def auroc(id_scores: Floats, ood_scores: Floats) -> float:
    """Return the area under the ROC curve of OOD detection, 0..1; OOD samples are the positives.

    This is how often an OOD sample scores higher than an ID sample; ties count one half.

    Args:
        id_scores: (n,), higher for samples that look out-of-distribution.
        ood_scores: (m,), higher for samples that look out-of-distribution.

    Raises:
        ValueError: if either is empty.
    """
    scores, is_ood = _scored(id_scores, ood_scores)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    m, n = int(is_ood.sum()), int((~is_ood).sum())
    return float((ranks[is_ood].sum() - m * (m + 1) / 2) / (m * n))


def aupr(id_scores: Floats, ood_scores: Floats) -> float:
    """Return the average precision of OOD detection, 0..1; tied samples are detected together.

    Args:
        id_scores: (n,), higher for samples that look out-of-distribution.
        ood_scores: (m,), higher for samples that look out-of-distribution.

    Raises:
        ValueError: if either is empty.
    """
    true, false = _curve(*_scored(id_scores, ood_scores))
    precision = true / (true + false)
    recall_steps = np.diff(true, prepend=0) / true[-1]
    return float((precision * recall_steps).sum())


def fpr_at_tpr(id_scores: Floats, ood_scores: Floats, tpr: float = 0.95) -> float:
    """Return the false positive rate at a true positive rate, by default FPR95.

    The threshold is the highest score at which at least `tpr` of the OOD samples are detected; tied
    samples are detected together. The released code takes the threshold whose recall is nearest to
    95 %, which may be below it, and the lowest of several thresholds with that recall. The results
    differ for tied samples, and by the ID samples between two OOD samples.

    Args:
        id_scores: (n,), higher for samples that look out-of-distribution.
        ood_scores: (m,), higher for samples that look out-of-distribution.
        tpr: true positive rate, above 0 and at most 1.

    Raises:
        ValueError: if either is empty, or tpr is out of range.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is {tpr}; use a number above 0 and at most 1")
    true, false = _curve(*_scored(id_scores, ood_scores))
    enough = int(np.argmax(true >= tpr * true[-1]))
    return float(false[enough] / false[-1])


def _scored(id_scores: Floats, ood_scores: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return all scores, (n + m,), and which of them are of OOD samples."""
    id_scores, ood_scores = np.asarray(id_scores, np.float64), np.asarray(ood_scores, np.float64)
    if id_scores.ndim != 1 or ood_scores.ndim != 1 or 0 in (len(id_scores), len(ood_scores)):
        raise ValueError(
            f"id_scores of shape {id_scores.shape} and ood_scores of shape {ood_scores.shape}; "
            "pass one score per sample, and at least one ID and one OOD sample"
        )
    is_ood = np.repeat([False, True], [len(id_scores), len(ood_scores)])
    return np.concatenate([id_scores, ood_scores]), is_ood


def _curve(
    scores: NDArray[np.float64], is_ood: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return true and false positives at each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    last = np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
    true = np.cumsum(is_ood[order])[last]
    return true, last + 1 - true


# --- The table -----------------------------------------------------------------------------------

INPUTS: Mapping[str, str] = {
    "correct": "(n,) bool, whether each prediction is correct",
    "confidence": "(n,) float32, the largest softmax value of each prediction",
    "scaled_confidence": "(n,) float32, confidence after temperature scaling",
    "errors": "corruption -> mean error over its severities",
    "imagenet_c_errors": "errors, only for the official ImageNet-C",
    "rms": "corruption -> RMS calibration error",
    "flips": "perturbation -> flip probability",
    "imagenet_p_flips": "flips, only for ImageNet-P",
    "id_scores": "(n,) float32, OOD score of each in-distribution image",
    "ood_scores": "(m,) float32, OOD score of each out-of-distribution image",
}
"""The inputs that suites pass to metrics, by name."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that a suite measures.

    Attributes:
        suite: the suite that computes it.
        key: its key in the suite's JSON.
        name: its name in tables and plots.
        compute: function that returns it.
        inputs: arguments of `compute`, as names in `INPUTS`.
        better: whether smaller or larger values are better.
        unit: "%" for fractions in 0..1; "% of AlexNet" for ratios, which may be above 1; "" for
            other numbers.
        headline: whether tables, reports and CSV files show it.
    """

    suite: str
    key: str
    name: str
    compute: Callable[..., float]
    inputs: tuple[str, ...]
    better: Literal["smaller", "larger"] = "smaller"
    unit: Literal["%", "% of AlexNet", ""] = "%"
    headline: bool = True

    def __post_init__(self) -> None:
        """Validate the inputs.

        Raises:
            ValueError: if an input is not in `INPUTS`.
        """
        unknown = [name for name in self.inputs if name not in INPUTS]
        if unknown:
            raise ValueError(
                f"{self.suite}.{self.key} has an input {unknown[0]!r}; use {', '.join(INPUTS)}"
            )

    def format(self, value: float) -> str:
        """Format a value for tables."""
        return f"{100 * value:.2f} %" if self.unit else f"{value:.4g}"

    def goodness(self, value: float) -> float:
        """Return a number that is larger for better values; 1 is the best for fractions."""
        return value if self.better == "larger" else 1 - value


def _calibration_metrics(suite: str, dataset: str) -> tuple[Metric, ...]:
    inputs = ("confidence", "correct")
    return (
        Metric(suite=suite, key="rms", name=f"RMS calibration error{dataset}", inputs=inputs,
               compute=calibration_error),
        Metric(suite=suite, key="aurra", name=f"AURRA{dataset}", inputs=inputs, compute=aurra,
               better="larger", headline=False),
    )  # fmt: skip


def _ood_metrics(suite: str, name: str) -> tuple[Metric, ...]:
    inputs = ("id_scores", "ood_scores")
    return (
        Metric(suite=suite, key="auroc", name=f"{name}, AUROC", inputs=inputs, compute=auroc,
               better="larger"),
        Metric(suite=suite, key="aupr", name=f"{name}, AUPR", inputs=inputs, compute=aupr,
               better="larger"),
        Metric(suite=suite, key="fpr95", name=f"{name}, FPR95", inputs=inputs,
               compute=fpr_at_tpr),
    )  # fmt: skip


METRICS: tuple[Metric, ...] = (
    Metric(suite="clean", key="error", name="clean error", compute=error, inputs=("correct",)),
    Metric(
        suite="c", key="mce", name="mCE (C, AlexNet = 100 %)",
        compute=mean_corruption_error, inputs=("imagenet_c_errors",), unit="% of AlexNet",
    ),
    Metric(suite="c", key="mean_error", name="mean corruption error (C)", compute=mean,
           inputs=("errors",)),
    Metric(suite="c-bar", key="mean_error", name="mean corruption error (C-bar)", compute=mean,
           inputs=("errors",)),
    Metric(suite="r", key="error", name="error (ImageNet-R)", compute=error, inputs=("correct",)),
    Metric(suite="a", key="error", name="error (ImageNet-A)", compute=error, inputs=("correct",)),
    Metric(
        suite="p", key="mfr", name="mFR (P, AlexNet = 100 %)", compute=mean_flip_rate,
        inputs=("imagenet_p_flips",), unit="% of AlexNet",
    ),
    Metric(suite="p", key="mean_flip_probability", name="mean flip probability (P)",
           compute=mean, inputs=("flips",)),
    Metric(suite="adversarial", key="error", name="adversarial error (PGD)", compute=error,
           inputs=("correct",)),
    *_calibration_metrics("calibration", ""),
    Metric(
        suite="calibration", key="mad", name="MAD calibration error", headline=False,
        compute=partial(calibration_error, norm="mad"), inputs=("confidence", "correct"),
    ),
    Metric(
        suite="calibration", key="max", name="maximum calibration error", headline=False,
        compute=partial(calibration_error, norm="max"), inputs=("confidence", "correct"),
    ),
    Metric(
        suite="calibration", key="soft_f1", name="soft F1", headline=False, better="larger",
        compute=soft_f1, inputs=("confidence", "correct"),
    ),
    Metric(
        suite="calibration", key="rms_temperature_scaled",
        name="RMS calibration error after temperature scaling",
        compute=calibration_error, inputs=("scaled_confidence", "correct"),
    ),
    Metric(suite="c", key="mean_rms", name="RMS calibration error (C)", compute=mean,
           inputs=("rms",)),
    Metric(suite="c-bar", key="mean_rms", name="RMS calibration error (C-bar)", compute=mean,
           inputs=("rms",), headline=False),
    *_calibration_metrics("r", " (ImageNet-R)"),
    *_calibration_metrics("a", " (ImageNet-A)"),
    *_ood_metrics("ood", "OOD detection"),
    *_ood_metrics("o", "OOD detection (ImageNet-O)"),
)  # fmt: skip
"""All metrics, in the order of the tables."""

HEADLINES = tuple(metric for metric in METRICS if metric.headline)
"""The metrics that tables, reports, CSV files and the radar plot show."""


def measure(suite: str, **inputs: object) -> dict[str, float]:
    """Return the metrics of a suite by key.

    Args:
        suite: the suite.
        inputs: values for the names in `INPUTS`; a metric with an input of None is left out.

    Raises:
        KeyError: if a metric needs an input that is not passed.
    """
    values = {}
    for metric in METRICS:
        if metric.suite == suite:
            arguments = [inputs[name] for name in metric.inputs]
            if all(each is not None for each in arguments):
                values[metric.key] = metric.compute(*arguments)
    return values
