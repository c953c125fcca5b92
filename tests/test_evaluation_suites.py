from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imagenet_folders import (
    EVERY_FIFTH,
    SEVERITIES,
    imagenet_evaluation,
    write_outliers,
    write_p,
    write_severities,
    write_tree,
)
from pipelines.errors import PipelineError
from pipelines.evaluation.corruptions import CIFAR_BAR, CORRUPTIONS
from pipelines.evaluation.data import open_evaluation_data
from pipelines.evaluation.metrics import (
    METRICS,
    calibration_error,
    scaled_confidence,
    tune_temperature,
)
from pipelines.evaluation.predictions import as_tensor
from pipelines.evaluation.suites import (
    GENERAL_SUITES,
    IMAGENET_SUITES,
    SUITES,
    evaluate,
    suites_for,
)
from tiny_evaluation import (
    ALONE,
    IMAGES,
    LABELS,
    PERTURBATIONS,
    N,
    classifier,
    evaluation,
    write_corrupted,
)


def test_suites_without_data_are_named_and_the_others_run(tmp_path: Path) -> None:
    found = evaluate(evaluation(tmp_path))
    assert set(found.values) == {"clean", "calibration", "adversarial", "ood"}
    assert set(found.missing) == {"c", "c-bar", "p"}
    assert all("\n" not in line for line in found.missing.values())
    write_corrupted(tmp_path / "TINY-C-Bar", CIFAR_BAR[:-1])
    found = evaluate(evaluation(tmp_path), ["c-bar"])
    assert "has no transverse_chromatic_abberation.npy (1 of 10" in found.missing["c-bar"]


def test_an_unknown_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'x'"):
        evaluate(evaluation(tmp_path), ["clean", "x"])


def test_evaluation_does_not_depend_on_the_batch_nor_leave_a_trace(tmp_path: Path) -> None:
    state = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    before = IMAGES.copy()
    first, second = (
        evaluate(evaluation(tmp_path, classifier=classifier(size)), GENERAL_SUITES).values
        for size in (3, 12)
    )
    assert first["adversarial"] == second["adversarial"]
    assert first["ood"]["datasets"]["blobs"] == pytest.approx(second["ood"]["datasets"]["blobs"])
    np.testing.assert_array_equal(IMAGES, before)
    assert np.random.get_state()[1].tolist() == state[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])


def test_each_half_is_tempered_by_what_the_other_half_wants(tmp_path: Path) -> None:
    found = evaluate(evaluation(tmp_path), ["calibration"]).values["calibration"]
    logits = classifier().logits(as_tensor(IMAGES, ALONE.device)).numpy()
    of_even, of_odd = (tune_temperature(logits[k::2], LABELS[k::2]) for k in range(2))
    assert found["temperature"] == pytest.approx((of_even + of_odd) / 2)
    confidence = np.empty(N, np.float32)
    confidence[::2] = scaled_confidence(logits[::2], of_odd)
    confidence[1::2] = scaled_confidence(logits[1::2], of_even)
    right = logits.argmax(1) == LABELS
    assert found["rms_temperature_scaled"] == pytest.approx(calibration_error(confidence, right))


def test_without_a_test_set_imagenets_other_sets_are_still_evaluated(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-r", range(0, 1000, 5))
    found = evaluate(imagenet_evaluation(tmp_path), ["clean", "r", "o", "ood"])
    assert found.values["r"]["error"] == 0
    assert set(found.missing) == {"clean", "o", "ood"}
    assert "no val/CLASS" in found.missing["clean"]
    with pytest.raises(PipelineError, match=r"has no test/manifest\.json"):
        open_evaluation_data(tmp_path, {"classes": 10})


def test_the_suites_of_a_set_are_those_of_its_kind(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", [7])
    imagenet = imagenet_evaluation(tmp_path)
    assert suites_for(imagenet) == SUITES
    assert suites_for(replace(imagenet, data=replace(imagenet.data, name="PETS"))) == GENERAL_SUITES


def test_images_that_are_answered_are_counted_by_suite(tmp_path: Path) -> None:
    write_outliers(tmp_path)
    write_severities(tmp_path / "ImageNet-C", CORRUPTIONS, SEVERITIES)
    write_p(tmp_path)
    shown: dict[str, list[tuple[int, int]]] = {}
    asked = imagenet_evaluation(tmp_path)
    asked = replace(asked, classifier=replace(asked.classifier, batch_size=2))
    evaluate(
        asked,
        ["clean", "c", "p", "adversarial", "ood"],
        progress=lambda suite, done, total: shown.setdefault(suite, []).append((done, total)),
    )
    assert shown["clean"] == [(0, 4), (2, 4), (4, 4)]
    assert shown["c"][-1] == (75 * 5, 75 * 5)
    assert shown["adversarial"][-1] == (4, 4)
    assert shown["ood"][-1][0] == shown["ood"][-1][1] > 30
    assert shown["p"][0][0] == 0
    assert all(done <= total for each in shown.values() for done, total in each)


def test_every_metric_of_the_table_is_measured_by_its_suite(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    write_corrupted(tmp_path / "TINY-C-Bar", CIFAR_BAR)
    (tmp_path / "TINY-P").mkdir()
    for name in PERTURBATIONS:
        np.save(tmp_path / "TINY-P" / f"{name}.npy", np.zeros((2, 4, 8, 8, 3), np.uint8))
    values = evaluate(evaluation(tmp_path), GENERAL_SUITES).values
    folders = tmp_path / "imagenet"
    write_tree(folders / "val", EVERY_FIFTH)
    for suite in IMAGENET_SUITES:
        write_tree(folders / f"imagenet-{suite}", EVERY_FIFTH)
    values = {**values, **evaluate(imagenet_evaluation(folders), IMAGENET_SUITES).values}
    # Relative to AlexNet, of ImageNet's own C and P alone.
    for metric in METRICS:
        assert (metric.key in values[metric.suite]) == (metric.unit != "% of AlexNet"), metric
