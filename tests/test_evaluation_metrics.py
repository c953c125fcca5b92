from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch.nn import functional

from pipelines.evaluation.metrics import (
    ALEXNET_ERRORS,
    ALEXNET_FLIPS,
    INPUTS,
    METRICS,
    Metric,
    aupr,
    auroc,
    aurra,
    calibration_error,
    flip_probability,
    fpr_at_tpr,
    mean_corruption_error,
    mean_flip_rate,
    measure,
    scaled_confidence,
    soft_f1,
    tune_temperature,
)
from pipelines.evaluation.suites import SUITES

# Few values, so that ties are frequent.
SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)


def labelled(id_scores: list[float], ood_scores: list[float]) -> tuple[list[int], list[float]]:
    return [0] * len(id_scores) + [1] * len(ood_scores), id_scores + ood_scores


@given(id_scores=SCORES, ood_scores=SCORES)
def test_auroc_equals_scikit_learn(id_scores: list[float], ood_scores: list[float]) -> None:
    found = auroc(np.array(id_scores), np.array(ood_scores))
    assert found == pytest.approx(roc_auc_score(*labelled(id_scores, ood_scores)), abs=1e-12)


@given(id_scores=SCORES, ood_scores=SCORES)
def test_auroc_is_how_often_an_ood_sample_scores_higher(
    id_scores: list[float], ood_scores: list[float]
) -> None:
    wins = [(o > i) + (o == i) / 2 for o in ood_scores for i in id_scores]
    assert auroc(np.array(id_scores), np.array(ood_scores)) == pytest.approx(
        np.mean(wins), abs=1e-12
    )


@given(id_scores=SCORES, ood_scores=SCORES)
def test_aupr_equals_the_average_precision_of_scikit_learn(
    id_scores: list[float], ood_scores: list[float]
) -> None:
    found = aupr(np.array(id_scores), np.array(ood_scores))
    assert found == pytest.approx(
        average_precision_score(*labelled(id_scores, ood_scores)), abs=1e-12
    )


@given(id_scores=SCORES, ood_scores=SCORES, recall=st.floats(0.01, 1))
def test_fpr_at_tpr_equals_scikit_learns_roc_curve(
    id_scores: list[float], ood_scores: list[float], recall: float
) -> None:
    false, true, _ = roc_curve(*labelled(id_scores, ood_scores), drop_intermediate=False)
    # Exclude recalls at which rounding decides.
    assume(all(abs(each - recall) > 1e-9 for each in true))
    expected = false[np.argmax(true >= recall)]
    found = fpr_at_tpr(np.array(id_scores), np.array(ood_scores), recall)
    assert found == pytest.approx(expected, abs=1e-12)


@given(id_scores=SCORES, ood_scores=SCORES, recall=st.floats(0.01, 1))
def test_fpr_at_tpr_with_ties_equals_a_plain_loop(
    id_scores: list[float], ood_scores: list[float], recall: float
) -> None:
    for score in sorted({*id_scores, *ood_scores}, reverse=True):
        found = sum(each >= score for each in ood_scores)
        if found >= recall * len(ood_scores):
            expected = sum(each >= score for each in id_scores) / len(id_scores)
            break
    assert fpr_at_tpr(np.array(id_scores), np.array(ood_scores), recall) == pytest.approx(expected)


def nearest_recall(id_scores: list[float], ood_scores: list[float], recall: float) -> float:
    """FPR by the released code's convention: the nearest recall, at the lowest such score."""
    best, fpr = 2.0, 0.0
    for score in sorted({*id_scores, *ood_scores}):
        distance = abs(sum(each >= score for each in ood_scores) / len(ood_scores) - recall)
        if distance < best - 1e-12:
            best, fpr = distance, sum(each >= score for each in id_scores) / len(id_scores)
    return fpr


def test_fpr_at_tpr_differs_from_the_released_code_as_documented() -> None:
    ood_scores = [3.0] * 9 + [1.0]
    # Nine of ten is nearest to 92 % but below it.
    assert nearest_recall([0.0, 1.0, 4.0, 5.0], ood_scores, 0.92) == 0.5
    assert fpr_at_tpr(np.array([0.0, 1.0, 4.0, 5.0]), np.array(ood_scores), 0.92) == 0.75
    # Of two scores with this recall the lower one has the higher FPR.
    assert nearest_recall([0.0, 2.0, 4.0, 5.0], ood_scores, 0.9) == 0.75
    assert fpr_at_tpr(np.array([0.0, 2.0, 4.0, 5.0]), np.array(ood_scores), 0.9) == 0.5
    # Both conventions agree if no ID score is between the two OOD scores.
    id_scores = [0.0, 0.5, 4.0, 5.0]
    assert nearest_recall(id_scores, ood_scores, 0.9) == fpr_at_tpr(
        np.array(id_scores), np.array(ood_scores), 0.9
    )


def test_ood_metrics_equal_values_computed_by_hand() -> None:
    id_scores, ood_scores = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.35, 0.9])
    assert auroc(id_scores, ood_scores) == pytest.approx(7 / 8)
    assert aupr(id_scores, ood_scores) == pytest.approx((1 + 2 / 3) / 2)
    assert fpr_at_tpr(id_scores, ood_scores) == 0.25


# --- Calibration ---------------------------------------------------------------------------------


def slow_calibration(confidence: list[float], correct: list[bool], size: int) -> list[float]:
    """Return size and gap of each bin."""
    pairs = sorted(zip(confidence, correct, strict=True), key=lambda pair: pair[0])
    n_bins = max(len(pairs) // size, 1)
    bins = [pairs[i * size : (i + 1) * size] for i in range(n_bins)]
    bins[-1] = pairs[(n_bins - 1) * size :]
    return [
        (len(each), np.mean([p[0] for p in each]) - np.mean([p[1] for p in each]))  # type: ignore[misc]
        for each in bins
    ]


@given(data=st.data(), n=st.integers(1, 60), size=st.integers(1, 20))
def test_calibration_errors_equal_a_plain_loop_over_bins(
    data: st.DataObject, n: int, size: int
) -> None:
    confidence = data.draw(st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n, unique=True))
    correct = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    bins = slow_calibration(confidence, correct, size)
    assert sum(each[0] for each in bins) == n  # type: ignore[index]
    arrays = np.array(confidence), np.array(correct)
    rms = np.sqrt(sum(k * gap**2 for k, gap in bins) / n)  # type: ignore[misc]
    mad = sum(k * abs(gap) for k, gap in bins) / n  # type: ignore[misc]
    most = max(abs(gap) for _, gap in bins)  # type: ignore[misc]
    assert calibration_error(*arrays, bin_size=size) == pytest.approx(rms, abs=1e-9)
    assert calibration_error(*arrays, norm="mad", bin_size=size) == pytest.approx(mad, abs=1e-9)
    assert calibration_error(*arrays, norm="max", bin_size=size) == pytest.approx(most, abs=1e-9)


@given(data=st.data(), n=st.integers(1, 400))
def test_calibration_errors_and_aurra_equal_pytorch_ood(data: st.DataObject, n: int) -> None:
    oracle = pytest.importorskip("pytorch_ood.metrics.functional")
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Without ties, whose order is not defined.
    confidence = generator.permutation(n).astype(np.float64) / n
    correct = generator.random(n) < confidence
    tensors = torch.from_numpy(confidence), torch.from_numpy(correct)
    for norm, p in (("rms", "2"), ("mad", "1"), ("max", "infty")):
        found = calibration_error(confidence, correct, norm=norm)
        assert found == pytest.approx(oracle.calibration_error(*tensors, p=p), abs=1e-9)
    assert aurra(confidence, correct) == pytest.approx(oracle.aurra(*tensors), abs=1e-9)


def test_the_most_confident_bin_is_included() -> None:
    # The released code leaves this bin out and would return 0.
    confidence = np.concatenate([np.full(100, 0.5), np.full(100, 0.99)])
    correct = np.concatenate([np.tile([True, False], 50), np.zeros(100, bool)])
    assert calibration_error(confidence, correct) == pytest.approx(np.sqrt(0.5 * 0.99**2))


def test_fewer_samples_than_bin_size_are_one_bin() -> None:
    assert calibration_error(np.array([0.9, 0.7]), np.array([True, True])) == pytest.approx(0.2)


def test_aurra_is_the_mean_accuracy_of_the_most_confident_predictions() -> None:
    confidence = np.array([0.2, 0.9, 0.5])
    correct = np.array([False, True, False])
    assert aurra(confidence, correct) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert aurra(confidence, np.array([True] * 3)) == 1


# --- Corruptions and perturbations ---------------------------------------------------------------


def test_alexnets_own_mce_and_mfr_are_one() -> None:
    assert len(ALEXNET_ERRORS) == 15
    assert len(ALEXNET_FLIPS) == 10
    assert mean_corruption_error(ALEXNET_ERRORS) == pytest.approx(1)
    assert mean_flip_rate(ALEXNET_FLIPS) == pytest.approx(1)
    assert np.mean(list(ALEXNET_ERRORS.values())) == pytest.approx(0.788993, abs=1e-6)
    halved = {name: value / 2 for name, value in ALEXNET_ERRORS.items()} | {"spatter": 9.0}
    assert mean_corruption_error(halved) == pytest.approx(0.5)


def test_mce_needs_all_corruptions() -> None:
    some = {name: value for name, value in ALEXNET_ERRORS.items() if name != "fog"}
    with pytest.raises(ValueError, match="fog missing; the mean must be over all 15"):
        mean_corruption_error(some)


def test_flips_are_counted_from_the_previous_frame_or_in_noise_from_the_first() -> None:
    predictions = np.array([[0, 1, 1, 0], [2, 2, 2, 2]])
    assert flip_probability(predictions, noise=False) == pytest.approx(2 / 6)
    assert flip_probability(np.array([[0, 1, 1, 1]]), noise=False) == pytest.approx(1 / 3)
    assert flip_probability(np.array([[0, 1, 1, 1]]), noise=True) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc(np.array([]), np.array([1.0])), "at least one ID and one OOD sample"),
        (lambda: aupr(np.array([1.0]), np.zeros((2, 2))), r"ood_scores of shape \(2, 2\)"),
        (lambda: fpr_at_tpr(np.ones(2), np.ones(2), 0), "tpr is 0"),
        (lambda: calibration_error(np.ones(2), np.ones(3, bool)), r"shape \(2,\) and correct"),
        (lambda: calibration_error(np.ones(2), np.ones(2, bool), norm="l2"), "norm is 'l2'"),
        (lambda: calibration_error(np.ones(2), np.ones(2, bool), bin_size=0), "bin_size is 0"),
        (lambda: aurra(np.array([]), np.array([], bool)), "at least one sample"),
        (lambda: flip_probability(np.zeros((3, 1), int), noise=True), "two frames or more"),
    ],
)
def test_metrics_reject_invalid_inputs(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


# --- Temperature and soft F1 ---------------------------------------------------------------------


def test_soft_f1_equals_a_value_computed_by_hand() -> None:
    confidence = np.array([0.9, 0.6, 0.8, 0.5])
    correct = np.array([True, True, False, False])
    # Wrong: uncertainty .2 + .5, confidence .8 + .5. Correct: uncertainty .1 + .4.
    assert soft_f1(confidence, correct) == pytest.approx(1.4 / (1.4 + 1.3 + 0.5))
    assert soft_f1(np.array([0.0, 1.0]), np.array([False, True])) == 1
    assert soft_f1(np.array([1.0, 1.0]), np.array([True, True])) == 0


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tune_temperature_recovers_the_temperature_of_the_labels(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (60_000, 5)).astype(np.float32)
    soft = np.exp(logits / temperature)
    labels = (soft.cumsum(1) > rng.random((60_000, 1)) * soft.sum(1, keepdims=True)).argmax(1)
    found = tune_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.03)

    def loss(value: float) -> float:
        given = torch.from_numpy(logits.astype(np.float64) / value)
        return float(functional.cross_entropy(given, torch.from_numpy(labels)))

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))
    confidence = scaled_confidence(logits, found)
    expected = torch.from_numpy(logits / np.float32(found)).softmax(1).max(1).values
    np.testing.assert_allclose(confidence, expected.numpy(), rtol=1e-5)


def test_the_temperature_stays_within_its_limits() -> None:
    logits = np.array([[9.0, 0.0], [0.0, 9.0]])
    assert tune_temperature(logits, np.array([0, 1])) == pytest.approx(0.05, rel=1e-3)
    assert tune_temperature(logits, np.array([1, 0])) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match="one label"):
        tune_temperature(logits, np.array([0]))


# --- The table -----------------------------------------------------------------------------------


def test_each_metric_has_a_unique_key_and_name() -> None:
    assert {metric.suite for metric in METRICS} <= set(SUITES)
    assert len({(metric.suite, metric.key) for metric in METRICS}) == len(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_metric_with_an_unknown_input_is_rejected() -> None:
    with pytest.raises(ValueError, match="'confidences'"):
        Metric(suite="clean", key="x", name="x", compute=np.mean, inputs=("confidences",))


def test_measure_leaves_out_metrics_with_an_input_of_none() -> None:
    correct = np.array([True, False, False, False])
    assert measure("clean", correct=correct) == {"error": 0.75}
    flips = dict.fromkeys(ALEXNET_FLIPS, 0.5)
    assert measure("p", flips=flips, imagenet_p_flips=None) == {"mean_flip_probability": 0.5}
    assert "mfr" in measure("p", flips=flips, imagenet_p_flips=flips)
    with pytest.raises(KeyError, match="flips"):
        measure("p")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: f"{metric.suite}.{metric.key}")
def test_better_networks_score_better_on_each_metric(metric: Metric) -> None:
    """A perfect network scores better than one that is wrong about everything."""
    n = 300
    perfect: dict[str, Any] = {
        "correct": np.ones(n, bool), "confidence": np.ones(n), "scaled_confidence": np.ones(n),
        "errors": {"fog": 0.0}, "rms": {"fog": 0.0}, "flips": {"tilt": 0.0},
        "imagenet_c_errors": dict.fromkeys(ALEXNET_ERRORS, 0.0),
        "imagenet_p_flips": dict.fromkeys(ALEXNET_FLIPS, 0.0),
        "id_scores": np.zeros(n), "ood_scores": np.ones(n),
    }  # fmt: skip
    wrong: dict[str, Any] = {
        **perfect, "correct": np.zeros(n, bool), "errors": {"fog": 1.0}, "rms": {"fog": 1.0},
        "flips": {"tilt": 1.0}, "imagenet_c_errors": dict.fromkeys(ALEXNET_ERRORS, 1.0),
        "imagenet_p_flips": dict.fromkeys(ALEXNET_FLIPS, 1.0),
        "id_scores": np.ones(n), "ood_scores": np.zeros(n),
    }  # fmt: skip
    assert set(INPUTS) == set(perfect)
    best, worst = (
        metric.compute(*(each[name] for name in metric.inputs)) for each in (perfect, wrong)
    )
    if metric.key == "soft_f1":
        # It is 0 if everything is correct, and best if only wrong predictions are uncertain.
        half = np.arange(n) < n // 2
        best, worst = metric.compute(half.astype(float), half), metric.compute(1.0 - half, half)
    assert metric.goodness(best) > metric.goodness(worst)
