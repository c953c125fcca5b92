"""Adversaries: projected gradient descent (Madry et al., ICLR 2018), and the error under it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.evaluation.images import Subset
from pipelines.evaluation.metrics import measure
from pipelines.evaluation.predictions import Evaluation


def adversarial(evaluation: Evaluation) -> dict[str, Any]:
    """Return the error under PGD."""
    classifier, test = evaluation.classifier, evaluation.data.need_test()
    n = len(test.images)
    wanted = min(evaluation.adversarial_images or n, n)
    attacked = np.arange(wanted) * n // wanted
    evaluation.meter.begin(wanted)

    def attack(images: Tensor, numbers: range) -> Tensor:
        chosen = attacked[numbers.start : numbers.stop]
        return pgd(
            classifier.logits,
            images,
            torch.from_numpy(test.labels[chosen]).to(images.device),
            start=_starts(evaluation.seed, chosen.tolist(), images),
            epsilon=evaluation.epsilon / 255,
            step=evaluation.epsilon / 4 / 255,
            reference_quirk=evaluation.pgd_reference_quirk,
        )

    found = classifier.predict(Subset(test.images, attacked), change=attack)
    return {
        **measure("adversarial", correct=found.predicted == test.labels[attacked]),
        "images": wanted,
        "of_images": n,
        "epsilon": evaluation.epsilon,
        "reference_quirk": evaluation.pgd_reference_quirk,
    }


def _starts(seed: int, numbers: Sequence[int], images: Tensor) -> Tensor:
    """Draw random starts, each image's from its own number: batches and processes do not show."""
    shape = images.shape[1:]
    drawn = [
        np.random.Generator(np.random.Philox(key=[seed, number])).random(shape, np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.stack(drawn)).to(images.device)


def pgd(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    epsilon: float = 2 / 255,
    step: float = 0.5 / 255,
    steps: int = 20,
    reference_quirk: bool = False,
) -> Tensor:
    """Return adversarial images, each within epsilon of its original.

    Untargeted, bounded in the maximum norm, from a random start in the box. The defaults are the
    PixMix paper's for CIFAR.

    Args:
        classify: from images (B, 3, H, W) float32 in 0..1 to logits (B, classes).
        images: (B, 3, H, W) float32 in 0..1.
        labels: (B,) int64.
        start: like images, 0..1; position in the box to start from.
        epsilon: maximum change of a value.
        step: size of a step.
        steps: number of steps.
        reference_quirk: put the box around the random start, before it is clamped to 0..1, instead
            of around the image, as the released code does, whose images are up to 2 epsilon away:
            for comparison with published results.

    Returns:
        (B, 3, H, W) float32 in 0..1, without a gradient.
    """
    noised = images + epsilon * (2 * start - 1)
    centre = noised if reference_quirk else images
    low, high = centre - epsilon, centre + epsilon
    attacked = noised if reference_quirk else noised.clamp(0, 1)
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        loss = functional.cross_entropy(classify(attacked), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() + step * gradient.sign()
        attacked = torch.minimum(torch.maximum(moved, low), high).clamp(0, 1)
    return attacked.detach()
