"""The metrics of the PixMix paper: functions of arrays, and the table of what each suite measures.

To add a metric, write a function and a row of `METRICS`: its suite computes it, and the JSON, the
tables, the reports and the radar plot show it.

Formulas: Hendrycks et al., "PixMix", CVPR 2022, section 4; Hendrycks & Dietterich, ICLR 2019, for
corruptions and perturbations; the released code, github.com/andyzoujm/pixmix at f867e87, except
where docstrings name an error in it.
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
    """Return the share of wrong predictions. correct: (n,)."""
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
        raise ValueError(f"predictions of shape {predictions.shape}; pass two frames or more")
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
        ValueError: if there are no samples, shapes differ or the norm is unknown.
    """
    confidence, correct = _paired(confidence, correct)
    if bin_size < 1:
        raise ValueError(f"bin_size is {bin_size}; use at least 1")
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
    raise ValueError(f"norm is {norm!r}; use rms, mad or max")


def aurra(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Return the area under the response rate accuracy curve, 0..1.

    The mean over all response rates of the accuracy among the most confident predictions.

    confidence: (n,); correct: (n,).

    Raises:
        ValueError: if there are no samples, or shapes differ.
    """
    confidence, correct = _paired(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return float((np.cumsum(correct[order]) / answered).mean())


def soft_f1(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Return the soft F1 score of detecting wrong predictions by their doubt, 1 - confidence, 0..1.

    Twice the doubt in wrong predictions, over that plus the doubt in right ones plus the confidence
    in wrong ones; 0 where no prediction is wrong.

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
    """Return the slope of the cross entropy's sum in 1 / temperature."""
    total = 0.0
    for begin in range(0, len(labels), _CHUNK):
        some = logits[begin : begin + _CHUNK].astype(np.float64)
        right = some[np.arange(len(some)), labels[begin : begin + _CHUNK]]
        total += float((_softmax(some * inverse) * some).sum() - right.sum())
    return total


def scaled_confidence(logits: Floats, temperature: float) -> NDArray[np.float32]:
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
            f"confidence of shape {confidence.shape} and correct of shape {correct.shape}; pass "
            "one of each for every sample, and at least one sample"
        )
    return confidence, correct


# --- Out-of-distribution detection ---------------------------------------------------------------


def auroc(id_scores: Floats, ood_scores: Floats) -> float:
    """Return how often an OOD sample scores above an ID one, ties as half: the area under the ROC.

    id_scores, ood_scores: (n,), (m,), higher for what looks out-of-distribution.

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
    """Return the average precision at detecting OOD samples, all samples of a tie at once.

    id_scores, ood_scores: (n,), (m,), higher for what looks out-of-distribution.

    Raises:
        ValueError: if either is empty.
    """
    true, false = _curve(*_scored(id_scores, ood_scores))
    precision = true / (true + false)
    gained = np.diff(true, prepend=0) / true[-1]
    return float((precision * gained).sum())


def fpr_at_tpr(id_scores: Floats, ood_scores: Floats, tpr: float = 0.95) -> float:
    """Return the false positive rate at a true positive rate: FPR95.

    All samples of one score are detected together, and the highest score at which at least `tpr` of
    the OOD samples are detected is taken. The released code takes the score whose recall is nearest
    to 95 %, which may be less than that, and of several scores with that recall the lowest. So the
    two differ where samples tie, and by the ID samples between two OOD ones.

    id_scores, ood_scores: (n,), (m,), higher for what looks out-of-distribution.

    Raises:
        ValueError: if either is empty, or tpr is not above 0 and at most 1.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is {tpr}; use a number above 0 and at most 1")
    true, false = _curve(*_scored(id_scores, ood_scores))
    enough = int(np.argmax(true >= tpr * true[-1]))
    return float(false[enough] / false[-1])


def _scored(id_scores: Floats, ood_scores: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    inside, outside = np.asarray(id_scores, np.float64), np.asarray(ood_scores, np.float64)
    if inside.ndim != 1 or outside.ndim != 1 or len(inside) == 0 or len(outside) == 0:
        raise ValueError(
            f"scores of shapes {inside.shape} and {outside.shape}; pass one score for each sample, "
            "and samples of both kinds"
        )
    is_ood = np.repeat([False, True], [len(inside), len(outside)])
    return np.concatenate([inside, outside]), is_ood


def _curve(
    scores: NDArray[np.float64], is_ood: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the OOD and the ID samples at or above each score, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    true = np.cumsum(is_ood[order])[last]
    return true, last + 1 - true


# --- The table -----------------------------------------------------------------------------------

INPUTS: Mapping[str, str] = {
    "correct": "(n,) bool, whether each prediction is right",
    "confidence": "(n,) float32, the largest softmax value of each prediction",
    "scaled_confidence": "(n,) float32, the same after temperature scaling",
    "errors": "corruption -> mean error over its severities",
    "imagenet_c_errors": "the same of the official ImageNet-C",
    "rms": "corruption -> RMS calibration error",
    "flips": "perturbation -> flip probability",
    "imagenet_p_flips": "the same of ImageNet-P",
    "id_scores": "(n,) float32, doubt about each in-distribution image",
    "ood_scores": "(m,) float32, doubt about each out-of-distribution image",
}
"""What suites hand to metrics, by name."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that a suite measures.

    Attributes:
        suite: the suite; key: the metric's key in the suite's JSON.
        name: what tables and plots call it.
        compute: returns it from the `inputs`, which are names of `INPUTS`.
        better: which direction is better.
        unit: "%" of a share in 0..1; "% of AlexNet" of a ratio, which may be above 1; "" of others.
        headline: whether tables, reports and CSV show it.
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
        """Refuse an input that no suite has.

        Raises:
            ValueError: if there is one.
        """
        unknown = [name for name in self.inputs if name not in INPUTS]
        if unknown:
            raise ValueError(
                f"{self.suite}.{self.key} has an input {unknown[0]!r}; use {', '.join(INPUTS)}"
            )

    def format(self, value: float) -> str:
        """Return a value as tables show it."""
        return f"{100 * value:.2f} %" if self.unit else f"{value:.4g}"

    def goodness(self, value: float) -> float:
        """Return a number that is larger for a better value; of a share, 1 is the best."""
        return value if self.better == "larger" else 1 - value


def _calibration(suite: str, of: str) -> tuple[Metric, ...]:
    """Return the calibration metrics that a set of labelled images has."""
    both = ("confidence", "correct")
    return (
        Metric(suite=suite, key="rms", name=f"RMS calibration error{of}", inputs=both,
               compute=calibration_error),
        Metric(suite=suite, key="aurra", name=f"AURRA{of}", inputs=both, compute=aurra,
               better="larger", headline=False),
    )  # fmt: skip


def _detection(suite: str, of: str) -> tuple[Metric, ...]:
    """Return the metrics of out-of-distribution detection."""
    both = ("id_scores", "ood_scores")
    return (
        Metric(suite=suite, key="auroc", name=f"{of}, AUROC", inputs=both, compute=auroc,
               better="larger"),
        Metric(suite=suite, key="aupr", name=f"{of}, AUPR", inputs=both, compute=aupr,
               better="larger"),
        Metric(suite=suite, key="fpr95", name=f"{of}, FPR95", inputs=both, compute=fpr_at_tpr),
    )  # fmt: skip


METRICS: tuple[Metric, ...] = (
    Metric(suite="clean", key="error", name="clean error", compute=error, inputs=("correct",)),
    Metric(
        suite="c", key="mce", name="mean corruption error (C, AlexNet 100 %)",
        compute=mean_corruption_error, inputs=("imagenet_c_errors",), unit="% of AlexNet",
    ),
    Metric(suite="c", key="mean_error", name="corruption error (C)", compute=mean,
           inputs=("errors",)),
    Metric(suite="c-bar", key="mean_error", name="corruption error (C-bar)", compute=mean,
           inputs=("errors",)),
    Metric(suite="r", key="error", name="error on ImageNet-R", compute=error, inputs=("correct",)),
    Metric(suite="a", key="error", name="error on ImageNet-A", compute=error, inputs=("correct",)),
    Metric(
        suite="p", key="mfr", name="mean flip rate (P, AlexNet 100 %)", compute=mean_flip_rate,
        inputs=("imagenet_p_flips",), unit="% of AlexNet",
    ),
    Metric(suite="p", key="mean_flip_probability", name="flip probability (P)", compute=mean,
           inputs=("flips",)),
    Metric(suite="adversarial", key="error", name="adversarial error (PGD)", compute=error,
           inputs=("correct",)),
    *_calibration("calibration", ""),
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
    *_calibration("r", " (R)"),
    *_calibration("a", " (A)"),
    *_detection("ood", "OOD detection"),
    *_detection("o", "OOD detection (O)"),
)  # fmt: skip
"""All metrics, in the order of the tables."""

HEADLINES = tuple(metric for metric in METRICS if metric.headline)
"""Those that tables, reports, CSV and the radar plot show."""


def measure(suite: str, **inputs: object) -> dict[str, float]:
    """Compute the metrics of a suite, by their keys.

    Args:
        suite: the suite.
        inputs: by the names of `INPUTS`; metrics with an input that is None are left out.

    Raises:
        KeyError: if a row needs an input that the suite never has.
    """
    found = {}
    for metric in METRICS:
        if metric.suite == suite:
            arguments = [inputs[name] for name in metric.inputs]
            if all(each is not None for each in arguments):
                found[metric.key] = metric.compute(*arguments)
    return found
