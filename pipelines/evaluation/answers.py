"""What a network answers, and how sure it is of it, over any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from pipelines.errors import PipelineError
from pipelines.evaluation.pictures import Pictures
from pipelines.loading.batches import Triple
from pipelines.loading.workers import prefetch
from pipelines.models.opening import shapes_are_told
from pipelines.system.process_group import Processes

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a network says of n pictures.

    predicted: (n,) int64 outputs; confidence: (n,) float32, the largest softmax value.
    logits: (n, outputs) float32, where they were asked for.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None

    def error(self, labels: NDArray[np.integer]) -> float:
        """Return the share of wrong answers."""
        return float((self.predicted != labels).mean())


def _count_nothing(_n: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network and how it wants its pictures.

    module: in evaluation mode, on the processes' device; mean, std: of its input, for 0..1.
    batch_size: pictures at once in a process. No more than a batch is ever held.
    count: called with the number of images of each batch when this process has answered it.
    """

    module: nn.Module
    mean: Triple
    std: Triple
    processes: Processes
    batch_size: int = 500
    count: Callable[[int], None] = _count_nothing

    def logits(self, images: Tensor) -> Tensor:
        """Classify (B, 3, H, W) float32 in 0..1 on the device; returns (B, classes) float32."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
        normalized = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        with shapes_are_told(self.module, normalized):
            found: Tensor = self.module(normalized)
            # Of another shape, it fails here and is told.
            _images, _classes = found.shape
        return found.float()

    def answer(
        self,
        pictures: Pictures,
        *,
        change: Callable[[Tensor, range], Tensor] | None = None,
        outputs: NDArray[np.int64] | None = None,
        logits: bool = False,
    ) -> Answers:
        """Answer pictures, each in one process, and return all answers in every one.

        Args:
            pictures: what is asked; of decoded ones the next batch is read meanwhile.
            change: of a batch in 0..1 and its numbers, before it is answered; an attack.
            outputs: those that are answered with, and that the softmax is over; None for all.
            logits: whether logits are returned, too.

        Raises:
            PipelineError: in every process, if an output is not finite.
        """
        rank, size = self.processes.world.rank, self.processes.world.size
        n = len(pictures)
        own = range(n * rank // size, n * (rank + 1) // size)
        batches = [
            range(begin, min(begin + self.batch_size, own.stop))
            for begin in range(own.start, own.stop, self.batch_size)
        ]
        predicted, confidence = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        kept: list[NDArray[np.float32]] = []
        for numbers, read in zip(
            batches, prefetch(iter(batches), pictures.read, pictures.ahead), strict=True
        ):
            images = as_images(read, self.processes.device)
            if change is not None:
                images = change(images, numbers)
            with torch.no_grad():
                found = self.logits(images)
                if outputs is not None:
                    found = found[:, torch.from_numpy(outputs).to(found.device)]
                sure = found.softmax(1).max(1)
            places = sure.indices.cpu().numpy()
            predicted.append(places if outputs is None else outputs[places])
            # An infinite output may be hidden by the softmax; all processes are to see it.
            sound = found.isfinite().all(1)
            confidence.append(sure.values.where(sound, torch.nan).cpu().numpy())
            if logits:
                kept.append(found.cpu().numpy())
            self.count(len(numbers))
        mine = Answers(
            predicted=np.concatenate(predicted),
            confidence=np.concatenate(confidence),
            logits=np.concatenate(kept) if kept else None,
        )
        parts = self.gather(mine)
        stacked = [each.logits for each in parts if each.logits is not None]
        sureness = np.concatenate([each.confidence for each in parts])
        check_outputs(~np.isnan(sureness))
        return Answers(
            predicted=np.concatenate([each.predicted for each in parts]),
            confidence=sureness,
            logits=np.concatenate(stacked) if stacked else None,
        )

    def gather(self, mine: Part) -> list[Part]:
        """Return what every process has, by rank; all must call it."""
        size = self.processes.world.size
        parts = [mine] * size
        if size > 1:
            distributed.all_gather_object(parts, mine)
        return parts


def check_outputs(finite: NDArray[np.bool_]) -> None:
    """Refuse a network that answers with what is no number.

    finite: (n,), whether all outputs for a picture are.

    Raises:
        PipelineError: if some are not.
    """
    if not finite.all():
        raise PipelineError(
            f"outputs of the network are NaN or infinite for {(~finite).sum()} of {len(finite)} "
            "pictures; look for NaN in its weights, and whether --mean and --std are its own"
        )


def as_images(pictures: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return (B, H, W, 3) uint8 or float32 pictures as (B, 3, H, W) float32 in 0..1."""
    images = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images.float()
