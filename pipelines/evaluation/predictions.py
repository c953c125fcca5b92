"""Predict images with a network in one or more processes, and describe its preprocessing."""

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
"""Frames of most videos of ImageNet-P, by which the number of videos per batch is chosen."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for n images.

    Attributes:
        predicted: (n,) int64, the predicted output.
        confidence: (n,) float32, the largest softmax value.
        logits: (n, outputs) float32, if requested.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network and its normalization.

    Attributes:
        module: the network in evaluation mode, on the device of the process.
        mean: mean of each channel, for images in 0..1.
        std: standard deviation of each channel.
        processes: the processes that share the images.
        batch_size: images per batch of one process, the most that it holds at once.
        count: called with the number of images in each batch that this process has predicted.
    """

    module: nn.Module
    mean: Triple
    std: Triple
    processes: Processes
    batch_size: int = 500
    count: Callable[[int], None] = lambda _n: None

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, (B, classes) float32, for images (B, 3, H, W) float32 in 0..1."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
        normalized = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        with explain_shape_errors(self.module, normalized):
            logits: Tensor = self.module(normalized)
            # An output of another shape fails here, inside the context that explains it.
            _images, _classes = logits.shape
        return logits.float()

    def predict(
        self,
        images: Images,
        *,
        attack: Callable[[Tensor, range], Tensor] | None = None,
        outputs: NDArray[np.int64] | None = None,
        logits: bool = False,
    ) -> Predictions:
        """Predict images; processes share them, and each returns all predictions.

        Args:
            images: the images.
            attack: changes a batch of images in 0..1, passed with its indices, before prediction.
            outputs: outputs to which prediction and softmax are restricted; None for all.
            logits: whether to return logits.

        Raises:
            PipelineError: in every process, if an output is not finite.
        """
        batches = _batches(self._rank_range(len(images)), self.batch_size)
        predicted, confidence = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        kept: list[NDArray[np.float32]] = []
        for indices, read in zip(
            batches, prefetch(iter(batches), images.read, images.prefetch), strict=True
        ):
            batch = as_tensor(read, self.processes.device)
            if attack is not None:
                batch = attack(batch, indices)
            batch_logits, positions, batch_confidence = self._forward(batch, outputs)
            predicted.append(positions if outputs is None else outputs[positions])
            confidence.append(batch_confidence)
            if logits:
                kept.append(batch_logits.cpu().numpy())
            self.count(len(indices))
        own = Predictions(
            predicted=np.concatenate(predicted),
            confidence=np.concatenate(confidence),
            logits=np.concatenate(kept) if kept else None,
        )
        parts = self.gather(own)
        all_logits = [each.logits for each in parts if each.logits is not None]
        all_confidence = np.concatenate([each.confidence for each in parts])
        _check_finite(~np.isnan(all_confidence))
        return Predictions(
            predicted=np.concatenate([each.predicted for each in parts]),
            confidence=all_confidence,
            logits=np.concatenate(all_logits) if all_logits else None,
        )

    def predict_videos(
        self, videos: Sequence[Path], transform: ResizeCrop
    ) -> list[NDArray[np.int64]]:
        """Predict the frames of videos; processes share them, and each returns all predictions.

        Args:
            videos: files of the videos; each is read in one process.
            transform: resize and crop of the frames.

        Returns:
            For each video (frames,) int64, the predicted outputs.

        Raises:
            PipelineError: if a video cannot be read; in every process, if an output is not finite.
        """
        groups = _batches(self._rank_range(len(videos)), max(1, self.batch_size // VIDEO_FRAMES))

        def read(group: range) -> list[NDArray[np.uint8]]:
            with ThreadPoolExecutor(min(len(group), available_cores())) as pool:
                return list(pool.map(lambda index: read_frames(videos[index], transform), group))

        own: list[NDArray[np.int64]] = []
        for sequences in prefetch(iter(groups), read, 1):
            predicted = []
            frames = np.concatenate(sequences)
            for batch in _batches(range(len(frames)), self.batch_size):
                images = as_tensor(frames[batch.start : batch.stop], self.processes.device)
                _, positions, confidence = self._forward(images)
                # -1 marks outputs that are not finite, so that every process raises below.
                predicted.append(np.where(np.isnan(confidence), -1, positions))
                self.count(len(batch))
            ends = np.cumsum([len(each) for each in sequences])[:-1]
            own.extend(np.split(np.concatenate(predicted), ends))
        gathered = [each for part in self.gather(own) for each in part]
        if gathered:
            _check_finite(np.concatenate(gathered) >= 0)
        return gathered

    def _forward(
        self, images: Tensor, outputs: NDArray[np.int64] | None = None
    ) -> tuple[Tensor, NDArray[np.int64], NDArray[np.float32]]:
        """Return the logits of a batch, the positions of the largest, and the confidence.

        The confidence is NaN for an output that is not finite, which the softmax might hide.
        """
        with torch.no_grad():
            logits = self.logits(images)
            if outputs is not None:
                logits = logits[:, torch.from_numpy(outputs).to(logits.device)]
            largest = logits.softmax(1).max(1)
            confidence = largest.values.where(logits.isfinite().all(1), torch.nan)
        return logits, largest.indices.cpu().numpy(), confidence.cpu().numpy()

    def _rank_range(self, n: int) -> range:
        """Return which of n items this process predicts."""
        rank, size = self.processes.world.rank, self.processes.world.size
        return range(n * rank // size, n * (rank + 1) // size)

    def gather(self, own: Part) -> list[Part]:
        """Return the parts of all processes by rank; every process must call it."""
        size = self.processes.world.size
        parts = [own] * size
        if size > 1:
            distributed.all_gather_object(parts, own)
        return parts


def _batches(indices: range, size: int) -> list[range]:
    return [
        range(begin, min(begin + size, indices.stop))
        for begin in range(indices.start, indices.stop, size)
    ]


def _check_finite(finite: NDArray[np.bool_]) -> None:
    if not finite.all():
        raise PipelineError(
            f"outputs of the network are NaN or infinite for {(~finite).sum()} of {len(finite)} "
            "images; check its weights for NaN, and set --mean and --std as in its training"
        )


def as_tensor(images: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return (B, H, W, 3) uint8 or float32 images as (B, 3, H, W) float32 in 0..1."""
    tensor = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


# --- The evaluation ------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Meter:
    """Counts predicted images for a progress bar.

    Attributes:
        show: called with the suite, the number of images done and the total.
        processes: number of processes that share the images; this one estimates the total progress
            from its own.
        suite: name of the running suite.
        done: images predicted so far.
        total: images of the suite.
    """

    show: Callable[[str, int, int], None]
    processes: int = 1
    suite: str = ""
    done: int = 0
    total: int = 0

    def begin(self, total: int) -> None:
        """Start counting the images of a suite."""
        self.done, self.total = 0, total
        self.show(self.suite, 0, total)

    def add(self, n: int) -> None:
        """Count images that this process has predicted."""
        self.done = min(self.done + n * self.processes, self.total)
        self.show(self.suite, self.done, self.total)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network, the data to evaluate it on, and the settings.

    Attributes:
        classifier: the network.
        data: the test set and the datasets beside it.
        overlap: training operations of the network that overlap the corruptions of C.
        meter: counts predicted images; `suites.evaluate` sets it.
        seed: seed of attacks and synthetic OOD datasets.
        epsilon: maximum change of PGD, in levels of 255.
        adversarial_images: number of test images to attack, evenly spaced; None for all.
        pgd_reference_quirk: see `suites.pgd`.
        tenth_perturbation: tenth perturbation of CIFAR-P; the authors' evaluation script lists
            spatter, and their generator lists snow.
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
    """Complete the metadata of checkpoints with the options that they lack.

    Options do not replace metadata. "crop" in the metadata determines "image_size" and
    "evaluation_resize".

    Args:
        metadata: metadata by checkpoint path.
        overrides: "mean", "std", "image_size" and "evaluation_resize"; those that are set.

    Returns:
        The completed metadata by checkpoint path.

    Raises:
        PipelineError: if an option contradicts the metadata and completes no other checkpoint.
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
                    key = name if each.get(name) else by
                    raise PipelineError(
                        f"the metadata of {path} have {key} {each[key]!r}; omit {_OPTIONS[name]} "
                        f"{value}"
                    )
    return completed


def preprocessing_json(evaluation: Evaluation, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of a network as JSON values.

    Args:
        evaluation: the network and its data.
        metadata: metadata of the network, completed with options.

    Returns:
        "mean" and "std", for images in 0..1; "image_size", the side of the input in pixels;
        "resize", the shorter side before the centre crop, or None; "defaults", the names of those
        values that the metadata lack.
    """
    classifier, data = evaluation.classifier, evaluation.data
    defaults = [name for name in ("mean", "std") if name not in metadata]
    return {
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "image_size": data.side,
        "resize": None if data.transform is None else data.transform.resize,
        "defaults": defaults if "crop" in metadata else [*defaults, "image_size", "resize"],
    }


def describe_preprocessing(values: Mapping[str, Any]) -> str:
    """Return the result of `preprocessing_json` as a line of text."""
    mean, std = (" ".join(f"{each:g}" for each in values[name]) for name in ("mean", "std"))
    size = f"{values['image_size']}x{values['image_size']}"
    crop = (
        f"images of {size}, not resized"
        if values["resize"] is None
        else f"shorter side resized to {values['resize']}, centre crop of {size}"
    )
    options = ", ".join(f"--{name.replace('_', '-')}" for name in values["defaults"])
    defaults = f"; defaults used for {options}" if options else ""
    return f"mean {mean}, std {std}, {crop}{defaults}"
