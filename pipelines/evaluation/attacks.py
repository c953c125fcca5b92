"""Adversaries: projected gradient descent (Madry et al., ICLR 2018)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Classifier = Callable[[Tensor], Tensor]
"""From pictures (B, 3, H, W) float32 in 0..1 to logits (B, classes)."""


def pgd(
    classify: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    epsilon: float = 2 / 255,
    step: float = 0.5 / 255,
    steps: int = 20,
    reference_quirk: bool = False,
) -> Tensor:
    """Return pictures that are classified worse, each within epsilon of its original.

    Untargeted, largest change of a value bounded, from a random start in the box. The defaults are
    the PixMix paper's for CIFAR.

    Args:
        classify: in evaluation mode; takes pictures in 0..1.
        images: (B, 3, H, W) float32 in 0..1.
        labels: (B,) int64.
        start: like images, 0..1; where in the box to begin.
        epsilon: largest change of a value.
        step: of one step.
        steps: their number.
        reference_quirk: put the box around the random start, before it is cut to 0..1, instead of
            the picture, as the released code does, whose pictures are up to 2 epsilon away: for
            comparison with printed figures.

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
