"""What a training makes small."""

import torch
from torch import Tensor
from torch.nn import functional


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence of the predictions for views of the same pictures.

    logits: (views, B, classes).
    Returns a number, 0 to log(views). Hendrycks et al., AugMix, ICLR 2020, equation 2.
    """
    logs = functional.log_softmax(logits.float(), -1)
    # As in the source, kept from the logarithm of 0.
    mixture = logs.exp().mean(0).clamp(1e-7, 1).log()
    return (logs.exp() * (logs - mixture)).sum(-1).mean()


def loss_of_views(
    logits: Tensor, labels: Tensor, *, jsd_weight: float, label_smoothing: float
) -> Tensor:
    """Return the cross entropy of the first view, and the divergence of all of them.

    logits: (views, B, classes); labels: (B,) int64.
    """
    first = functional.cross_entropy(logits[0].float(), labels, label_smoothing=label_smoothing)
    return first + jsd_weight * jensen_shannon(logits)


def averaged(average: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> None:
    """Move averaged weights towards the current ones, in place; whole numbers are copied."""
    with torch.no_grad():
        for name, value in current.items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)
