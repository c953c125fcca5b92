"""Networks by name, including those for CIFAR, and their checkpoints."""
