"""A network's predictions and their confidence, computed by any number of processes."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from pipelines.errors import PipelineError
from pipelines.evaluation.data import EvaluationData
from pipelines.evaluation.images import Images, ResizeCrop, read_frames
from pipelines.loading.config import Triple
from pipelines.models.registry import explain_shape_errors
from pipelines.system.process_group import Processes
from pipelines.system.processes import available_cores, prefetch

Part = TypeVar("Part")

VIDEO_FRAMES = 31
"""Of a video of ImageNet-P; so many videos are read at once that their frames make a batch."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a network predicts for n images.

    predicted: (n,) int64 outputs; confidence: (n,) float32, the largest softmax value.
    logits: (n, outputs) float32, where they were asked for.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network and its preprocessing.

    module: in evaluation mode, on the processes' device; mean, std: of its input, for 0..1.
    batch_size: per process. No more than a batch of images is ever held.
    count: called with the number of images of each batch after this process has predicted it.
    """

    module: nn.Module
    mean: Triple
    std: Triple
    processes: Processes
    batch_size: int = 500
    count: Callable[[int], None] = lambda _n: None

    def logits(self, images: Tensor) -> Tensor:
        """Classify (B, 3, H, W) float32 in 0..1 on the device; returns (B, classes) float32."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
        normalized = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        with explain_shape_errors(self.module, normalized):
            found: Tensor = self.module(normalized)
            # An output of another shape fails here, and the error says so.
            _images, _classes = found.shape
        return found.float()

    def predict(
        self,
        images: Images,
        *,
        change: Callable[[Tensor, range], Tensor] | None = None,
        outputs: NDArray[np.int64] | None = None,
        logits: bool = False,
    ) -> Predictions:
        """Predict images, each in one process, and return all predictions in every process.

        Args:
            images: the images; of decoded ones the next batch is prefetched.
            change: applied to a batch in 0..1, with its numbers, before prediction; an attack.
            outputs: those that may be predicted, over which the softmax is; None for all.
            logits: whether logits are returned, too.

        Raises:
            PipelineError: in every process, if an output is not finite.
        """
        batches = _batches(self._own(len(images)), self.batch_size)
        predicted, confidence = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        kept: list[NDArray[np.float32]] = []
        for numbers, read in zip(
            batches, prefetch(iter(batches), images.read, images.prefetch), strict=True
        ):
            batch = as_tensor(read, self.processes.device)
            if change is not None:
                batch = change(batch, numbers)
            found, places, sure = self._forward(batch, outputs)
            predicted.append(places if outputs is None else outputs[places])
            confidence.append(sure)
            if logits:
                kept.append(found.cpu().numpy())
            self.count(len(numbers))
        mine = Predictions(
            predicted=np.concatenate(predicted),
            confidence=np.concatenate(confidence),
            logits=np.concatenate(kept) if kept else None,
        )
        parts = self.gather(mine)
        stacked = [each.logits for each in parts if each.logits is not None]
        whole = np.concatenate([each.confidence for each in parts])
        _check_finite(~np.isnan(whole))
        return Predictions(
            predicted=np.concatenate([each.predicted for each in parts]),
            confidence=whole,
            logits=np.concatenate(stacked) if stacked else None,
        )

    def predict_videos(
        self, videos: Sequence[Path], transform: ResizeCrop
    ) -> list[NDArray[np.int64]]:
        """Return the outputs predicted for the frames of each video, in every process.

        Args:
            videos: their files; each is read in one process.
            transform: how a frame becomes the network's image.

        Raises:
            PipelineError: if one cannot be read, or, in every process, if an output is not finite.
        """
        own = self._own(len(videos))
        groups = _batches(own, max(1, self.batch_size // VIDEO_FRAMES))

        def read(group: range) -> list[NDArray[np.uint8]]:
            with ThreadPoolExecutor(min(len(group), available_cores())) as pool:
                return list(pool.map(lambda number: read_frames(videos[number], transform), group))

        mine: list[NDArray[np.int64]] = []
        for sequences in prefetch(iter(groups), read, 1):
            found = []
            frames = np.concatenate(sequences)
            for batch in _batches(range(len(frames)), self.batch_size):
                images = as_tensor(frames[batch.start : batch.stop], self.processes.device)
                _, places, sure = self._forward(images)
                # -1: outputs that are not finite, which all processes must see.
                found.append(np.where(np.isnan(sure), -1, places))
                self.count(len(batch))
            ends = np.cumsum([len(each) for each in sequences])[:-1]
            mine.extend(np.split(np.concatenate(found), ends))
        whole = [each for part in self.gather(mine) for each in part]
        if whole:
            _check_finite(np.concatenate(whole) >= 0)
        return whole

    def _forward(
        self, images: Tensor, outputs: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, NDArray[np.int64], NDArray[np.float32]]:
        """Return a batch's logits, the positions of the largest, and the confidence.

        The confidence is NaN where an output is not finite, which the softmax might hide.
        """
        with torch.no_grad():
            found = self.logits(images)
            if outputs is not None:
                found = found[:, torch.from_numpy(outputs).to(found.device)]
            largest = found.softmax(1).max(1)
            sure = largest.values.where(found.isfinite().all(1), torch.nan)
        return found, largest.indices.cpu().numpy(), sure.cpu().numpy()

    def _own(self, n: int) -> range:
        """Return which of n items this process takes."""
        rank, size = self.processes.world.rank, self.processes.world.size
        return range(n * rank // size, n * (rank + 1) // size)

    def gather(self, mine: Part) -> list[Part]:
        """Return what every process has, by rank; all must call it."""
        size = self.processes.world.size
        parts = [mine] * size
        if size > 1:
            distributed.all_gather_object(parts, mine)
        return parts


def _batches(numbers: range, size: int) -> list[range]:
    return [
        range(begin, min(begin + size, numbers.stop))
        for begin in range(numbers.start, numbers.stop, size)
    ]


def _check_finite(finite: NDArray[np.bool_]) -> None:
    if not finite.all():
        raise PipelineError(
            f"outputs of the network are NaN or infinite for {(~finite).sum()} of {len(finite)} "
            "images; look for NaN in its weights, and whether --mean and --std are its own"
        )


def as_tensor(images: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return (B, H, W, 3) uint8 or float32 images as (B, 3, H, W) float32 in 0..1."""
    tensor = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


# --- What is evaluated ---------------------------------------------------------------------------


@dataclass(kw_only=True)
class Meter:
    """Counts the images that are predicted, for a progress bar.

    show: called with the suite, the images done, and all. processes: that predict at once, of which
    this one counts its own.
    """

    show: Callable[[str, int, int], None]
    processes: int = 1
    suite: str = ""
    done: int = 0
    total: int = 0

    def begin(self, total: int) -> None:
        """Begin to count, now that the suite knows how many images it has."""
        self.done, self.total = 0, total
        self.show(self.suite, 0, total)

    def add(self, n: int) -> None:
        """Count images that this process has predicted."""
        self.done = min(self.done + n * self.processes, self.total)
        self.show(self.suite, self.done, self.total)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network, the data to evaluate it on, and the settings.

    overlap: operations of the network's training that overlap the corruptions of C.
    meter: counts predicted images; see `suites.evaluate`.
    seed: of attacks and synthetic OOD datasets. epsilon: of PGD, in levels of 255.
    adversarial_images: how many test images PGD attacks, spread evenly; None for all.
    pgd_reference_quirk: see `attacks.pgd`. tenth_perturbation: of CIFAR-P's ten: its authors'
    script scores spatter, their generator lists snow.
    """

    classifier: Classifier
    data: EvaluationData
    overlap: tuple[str, ...] = ()
    meter: Meter = field(default_factory=lambda: Meter(show=lambda *_: None))
    seed: int = 0
    epsilon: float = 2.0
    adversarial_images: int | None = None
    pgd_reference_quirk: bool = False
    tenth_perturbation: Literal["spatter", "snow"] = "spatter"


# --- Preprocessing -------------------------------------------------------------------------------

_OPTIONS = {"mean": "--mean", "std": "--std", "image_size": "--image-size",
            "evaluation_resize": "--resize"}  # fmt: skip


def with_overrides(
    metadata: Mapping[str, Mapping[str, Any]], overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the metadata of checkpoints, completed by options where they lack something.

    Metadata stand. "crop" in them decides "image_size" and "evaluation_resize".

    Args:
        metadata: by checkpoint.
        overrides: those of "mean", "std", "image_size" and "evaluation_resize" that are set.

    Raises:
        PipelineError: if all metadata have what an option sets, and one has another value.
    """
    completed = {path: dict(each) for path, each in metadata.items()}
    for name, value in overrides.items():
        by = "crop" if name in ("image_size", "evaluation_resize") else name
        for path, each in metadata.items():
            if by not in each:
                more = {"crop": "resized"} if by == "crop" else {}
                completed[path].update({name: value, **more})
        if all(by in each for each in metadata.values()):
            for path, each in metadata.items():
                if each.get(name) != value:
                    own = name if each.get(name) else by
                    raise PipelineError(
                        f"the metadata of {path} have {own} {each[own]!r}; omit {_OPTIONS[name]} "
                        f"{value}"
                    )
    return completed


def preprocessing_json(evaluation: Evaluation, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing as plain JSON values.

    "mean" and "std", for 0..1; "image_size", the side of the network's images; "resize", their
    shorter side before the centre crop, or None; "guessed": which of these are defaults.

    metadata: of the network, completed by options.
    """
    classifier, data = evaluation.classifier, evaluation.data
    guessed = [name for name in ("mean", "std") if name not in metadata]
    return {
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "image_size": data.side,
        "resize": None if data.transform is None else data.transform.resize,
        "guessed": guessed if "crop" in metadata else [*guessed, "image_size", "resize"],
    }


def describe_preprocessing(found: Mapping[str, Any]) -> str:
    """Return what `preprocessing_json` returns as a line."""
    mean, std = (" ".join(f"{each:g}" for each in found[name]) for name in ("mean", "std"))
    size = f"{found['image_size']}x{found['image_size']}"
    described = (
        f"images of {size}, not resized"
        if found["resize"] is None
        else f"shorter side resized to {found['resize']}, centre crop of {size}"
    )
    options = ", ".join(f"--{name.replace('_', '-')}" for name in found["guessed"])
    guessed = f"; guessed without {options}" if options else ""
    return f"mean {mean}, std {std}, {described}{guessed}"
