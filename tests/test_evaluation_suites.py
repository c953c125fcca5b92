from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

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
    pgd,
    suites_for,
)
from pipelines.report.evaluations import table
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


def test_an_attack_on_some_images_equals_the_attack_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(_: object, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:  # noqa: ANN401
        calls.append((labels, options["start"]))
        return images

    monkeypatch.setattr("pipelines.evaluation.suites.pgd", record)
    on_all = evaluation(tmp_path, classifier=classifier(12))
    evaluate(on_all, ["adversarial"])
    values = evaluate(replace(on_all, adversarial_images=5), ["adversarial"]).values
    (labels, starts), (some_labels, some_starts) = calls
    indices = [0, 2, 4, 7, 9]
    torch.testing.assert_close(some_labels, labels[indices], rtol=0, atol=0)
    torch.testing.assert_close(some_starts, starts[indices], rtol=0, atol=0)
    assert (values["adversarial"]["images"], values["adversarial"]["of_images"]) == (5, 12)
    assert "5 of 12 images" in table({"a network": values}, {})


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4))


@pytest.mark.parametrize("quirk", [False, True])
def test_adversarial_images_stay_within_epsilon(quirk: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(9, 3, 6, 6, generator=generator)
    images[0], images[1] = 0, 1
    start = torch.rand(images.shape, generator=generator)
    labels = torch.arange(9) % 4
    module = linear()
    before = images.clone()
    attacked = pgd(module, images, labels, start=start, reference_quirk=quirk)
    assert torch.equal(images, before)
    distance = (attacked - images).abs().max().item()
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1
    # The released code centres the ball at the random start, so images are further away.
    assert (distance > 2.2 / 255) if quirk else (distance <= 2 / 255 + 1e-6)
    with torch.no_grad():
        losses = [functional.cross_entropy(module(each), labels) for each in (attacked, images)]
    assert float(losses[0]) > float(losses[1])


def test_the_reference_quirk_equals_the_released_code() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(9, 3, 6, 6, generator=generator)
    images[0], images[1] = 0, 1  # Here a start that is not clamped to 0..1 makes a difference.
    start = torch.rand(images.shape, generator=generator)
    labels = torch.arange(9) % 4
    module = linear()
    # In the released code image and start share memory, so the ball moves with the noise.
    started = images + 2 / 255 * (2 * start - 1)
    attacked = started
    for _ in range(20):
        attacked = attacked.detach().requires_grad_()
        loss = functional.cross_entropy(module(attacked), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = attacked.detach() + 0.5 / 255 * gradient.sign()
        attacked = torch.min(torch.max(attacked, started - 2 / 255), started + 2 / 255).clamp(0, 1)
    actual = pgd(module, images, labels, start=start, reference_quirk=True)
    torch.testing.assert_close(actual, attacked, atol=1e-7, rtol=0)


def test_pgd_finds_the_worst_corner_for_a_linear_network() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    images = torch.full((1, 3, 2, 2), 0.5)
    weight = module[1].weight
    attacked = pgd(module, images, torch.tensor([0]), start=torch.full_like(images, 0.5))
    worse = (weight[1] - weight[0]).sign().view(1, 3, 2, 2)
    torch.testing.assert_close(attacked, images + 2 / 255 * worse, atol=1e-6, rtol=0)


def test_suites_without_data_are_reported_and_the_others_run(tmp_path: Path) -> None:
    found = evaluate(evaluation(tmp_path))
    assert set(found.values) == {"clean", "calibration", "adversarial", "ood"}
    assert set(found.missing) == {"c", "c-bar", "p"}
    assert all("\n" not in line for line in found.missing.values())
    write_corrupted(tmp_path / "TINY-C-Bar", CIFAR_BAR[:-1])
    found = evaluate(evaluation(tmp_path), ["c-bar"])
    assert "has no transverse_chromatic_abberation.npy (1 of 10" in found.missing["c-bar"]


def test_an_unknown_suite_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'x'"):
        evaluate(evaluation(tmp_path), ["clean", "x"])


def test_evaluation_does_not_depend_on_the_batch_size_or_change_global_state(
    tmp_path: Path,
) -> None:
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


def test_each_half_is_scaled_with_the_temperature_of_the_other_half(tmp_path: Path) -> None:
    found = evaluate(evaluation(tmp_path), ["calibration"]).values["calibration"]
    logits = classifier().logits(as_tensor(IMAGES, ALONE.device)).numpy()
    of_even, of_odd = (tune_temperature(logits[k::2], LABELS[k::2]) for k in range(2))
    assert found["temperature"] == pytest.approx((of_even + of_odd) / 2)
    confidence = np.empty(N, np.float32)
    confidence[::2] = scaled_confidence(logits[::2], of_odd)
    confidence[1::2] = scaled_confidence(logits[1::2], of_even)
    right = logits.argmax(1) == LABELS
    assert found["rms_temperature_scaled"] == pytest.approx(calibration_error(confidence, right))


def test_imagenet_r_is_evaluated_without_a_test_set(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-r", range(0, 1000, 5))
    found = evaluate(imagenet_evaluation(tmp_path), ["clean", "r", "o", "ood"])
    assert found.values["r"]["error"] == 0
    assert set(found.missing) == {"clean", "o", "ood"}
    assert "no val/CLASS" in found.missing["clean"]
    with pytest.raises(PipelineError, match=r"has no test/manifest\.json"):
        open_evaluation_data(tmp_path, {"classes": 10})


def test_only_imagenet_has_its_natural_suites(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", [7])
    imagenet = imagenet_evaluation(tmp_path)
    assert suites_for(imagenet) == SUITES
    assert suites_for(replace(imagenet, data=replace(imagenet.data, name="PETS"))) == GENERAL_SUITES


def test_predicted_images_are_counted_by_suite(tmp_path: Path) -> None:
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


def test_each_suite_computes_all_its_metrics(tmp_path: Path) -> None:
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
    # Metrics relative to AlexNet exist only for the official ImageNet-C and ImageNet-P.
    for metric in METRICS:
        assert (metric.key in values[metric.suite]) == (metric.unit != "% of AlexNet"), metric
