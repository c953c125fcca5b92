"""Networks for CIFAR, as the literature trains them, and weights from checkpoints."""
