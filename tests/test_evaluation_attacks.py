from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines.evaluation.suites import evaluate, pgd
from pipelines.report.evaluations import table
from tiny_evaluation import classifier, evaluation


def test_an_attack_on_some_images_is_that_on_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(_classify: object, images: torch.Tensor, labels: torch.Tensor, **how: Any) -> Any:  # noqa: ANN401
        seen.append((labels, how["start"]))
        return images

    monkeypatch.setattr("pipelines.evaluation.suites.pgd", remember)
    whole = evaluation(tmp_path, classifier=classifier(12))
    evaluate(whole, ["adversarial"])
    found = evaluate(replace(whole, adversarial_images=5), ["adversarial"]).values
    (labels, starts), (some_labels, some_random_starts) = seen
    chosen = [0, 2, 4, 7, 9]
    torch.testing.assert_close(some_labels, labels[chosen], rtol=0, atol=0)
    torch.testing.assert_close(some_random_starts, starts[chosen], rtol=0, atol=0)
    assert (found["adversarial"]["images"], found["adversarial"]["of_images"]) == (5, 12)
    assert "5 of 12 images" in table({"a network": found}, {})


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4))


@pytest.mark.parametrize("quirk", [False, True])
def test_an_adversary_never_goes_further_than_epsilon(quirk: bool) -> None:
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
    # The released code's box lies round the random start: it goes further.
    assert (distance > 2.2 / 255) if quirk else (distance <= 2 / 255 + 1e-6)
    with torch.no_grad():
        losses = [functional.cross_entropy(module(each), labels) for each in (attacked, images)]
    assert float(losses[0]) > float(losses[1])


def test_the_quirk_is_the_released_codes_step_by_step() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(9, 3, 6, 6, generator=generator)
    images[0], images[1] = 0, 1  # where the start that is not cut to 0..1 shows
    start = torch.rand(images.shape, generator=generator)
    labels = torch.arange(9) % 4
    module = linear()
    # There the image and the start share their memory, and so the box moves with the noise.
    noised = images + 2 / 255 * (2 * start - 1)
    attacked = noised
    for _ in range(20):
        attacked = attacked.detach().requires_grad_()
        loss = functional.cross_entropy(module(attacked), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = attacked.detach() + 0.5 / 255 * gradient.sign()
        attacked = torch.min(torch.max(attacked, noised - 2 / 255), noised + 2 / 255).clamp(0, 1)
    found = pgd(module, images, labels, start=start, reference_quirk=True)
    torch.testing.assert_close(found, attacked, atol=1e-7, rtol=0)


def test_for_a_linear_network_the_adversary_finds_the_corner_of_the_box() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    images = torch.full((1, 3, 2, 2), 0.5)
    weight = module[1].weight
    attacked = pgd(module, images, torch.tensor([0]), start=torch.full_like(images, 0.5))
    worse = (weight[1] - weight[0]).sign().view(1, 3, 2, 2)
    torch.testing.assert_close(attacked, images + 2 / 255 * worse, atol=1e-6, rtol=0)
