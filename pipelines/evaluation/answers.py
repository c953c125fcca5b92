"""What a network answers, and how sure it is of it, over any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from pipelines.loading.preparation import Triple
from pipelines.loading.processes import Processes

Read = Callable[[range], NDArray[np.generic]]
"""Gives pictures of some numbers, (n, H, W, 3) uint8 or float32 in 0..1, read when asked for."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """predicted: (n,) int64 classes; confidence: (n,) float32, the largest softmax value."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]

    def error(self, labels: NDArray[np.integer]) -> float:
        """Return the share of wrong answers."""
        return float((self.predicted != labels).mean())


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network and how it wants its pictures.

    module: in evaluation mode, on the processes' device; mean, std: of its input, for 0..1.
    batch_size: pictures at once in a process. No more than a batch is ever held.
    """

    module: nn.Module
    mean: Triple
    std: Triple
    processes: Processes
    batch_size: int = 500

    def logits(self, images: Tensor) -> Tensor:
        """Classify (B, 3, H, W) float32 in 0..1 on the device; returns (B, classes) float32."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
        normalized = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        found: Tensor = self.module(normalized)
        return found.float()

    def answer(
        self, n: int, read: Read, change: Callable[[Tensor, range], Tensor] | None = None
    ) -> Answers:
        """Answer n pictures, each in one process, and return all answers in every one.

        Args:
            n: pictures.
            read: gives pictures by their numbers.
            change: of a batch in 0..1 and its numbers, before it is answered; an attack.
        """
        rank, size = self.processes.world.rank, self.processes.world.size
        own = range(n * rank // size, n * (rank + 1) // size)
        predicted, confidence = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for begin in range(own.start, own.stop, self.batch_size):
            numbers = range(begin, min(begin + self.batch_size, own.stop))
            images = as_images(read(numbers), self.processes.device)
            if change is not None:
                images = change(images, numbers)
            with torch.no_grad():
                sure = self.logits(images).softmax(1).max(1)
            predicted.append(sure.indices.cpu().numpy())
            confidence.append(sure.values.cpu().numpy())
        mine = Answers(predicted=np.concatenate(predicted), confidence=np.concatenate(confidence))
        if size == 1:
            return mine
        parts: list[Answers] = [mine] * size
        distributed.all_gather_object(parts, mine)
        return Answers(
            predicted=np.concatenate([each.predicted for each in parts]),
            confidence=np.concatenate([each.confidence for each in parts]),
        )


def as_images(pictures: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return (B, H, W, 3) uint8 or float32 pictures as (B, 3, H, W) float32 in 0..1."""
    images = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images.float()
