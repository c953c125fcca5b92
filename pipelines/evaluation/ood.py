"""Out-of-distribution data: whether a network is less confident about what it was not trained on.

    ROOT/outliers/dtd/...                   a folder of images: textures, LSUN, Places
         outliers/svhn/test_32x32.mat       SVHN, as it is distributed
         outliers/cifar100/manifest.json    shards, perhaps in test/
         outliers/cifar-100-python/...      the official archive of CIFAR, unpacked
         imagenet-o/n01443537/*.JPEG        photographs of none of its classes
         imagenet-r/n01443537/*.jpg         200 of ImageNet's classes, drawn, sewn, carved
         imagenet-a/n01498041/*.jpg         200 of them, photographs that a ResNet-50 gets wrong

Each image's shorter side is resized to the network's, and the centre is cropped. Three synthetic
datasets need no download (Hendrycks, Mazeika & Dietterich, "Deep Anomaly Detection with Outlier
Exposure", ICLR 2019, appendix A; written anew from its description).

On ImageNet-R, -A and -O (Hendrycks et al., "The Many Faces of Robustness", ICCV 2021, and "Natural
Adversarial Examples", CVPR 2021) predictions and the softmax are restricted to the 200 classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import DATASETS
from pipelines.errors import PipelineError
from pipelines.evaluation.data import open_tree
from pipelines.evaluation.folders import MissingDataError, Notices, unreadable
from pipelines.evaluation.images import (
    DOWNLOAD_AGAIN,
    ArrayImages,
    GeneratedImages,
    Images,
    ResizeCrop,
    Subset,
    folder_images,
    shard_images,
    source_images,
)
from pipelines.evaluation.metrics import measure
from pipelines.evaluation.predictions import Evaluation
from pipelines.shards.format import MANIFEST_NAME, open_shards
from pipelines.shards.images import is_ignored_name
from pipelines.shards.sources import DatasetSource
from pipelines.system.files import open_regular

FOLDER = "outliers"

_SHARE = 5
"""There are five ID images for each OOD one."""
_ROUNDS = 10
_LARGE = 64
"""Pixels. Of larger synthetic images there is one round: they are costly, and much alike."""

_SVHN = "test_32x32.mat"
_MOST_MAT = 1 << 32
"""Bytes of SVHN's file, and of its images: extra_32x32.mat, the largest, has 1.6 billion."""

RESTRICTED_CLASSES = 200
"""Of ImageNet-R, -A and -O."""


def evaluate_ood(evaluation: Evaluation, confidence: NDArray[np.float32]) -> dict[str, Any]:
    """Return how well confidence tells OOD images from the test's: the mean, and by dataset.

    Of each OOD dataset, one image for five of the test's is drawn ten times, and metrics are
    averaged; a dataset that has fewer is taken whole.

    confidence: (n,), of the predictions for the test set.
    """
    datasets = _datasets(evaluation, len(confidence))
    wanted = max(1, len(confidence) // _SHARE)
    rounds = {
        name: _rounds(evaluation.seed, place, len(images), wanted)
        for place, (name, images) in enumerate(datasets.items())
    }
    # Each image that is in a round is predicted once.
    used = {name: np.unique(np.concatenate(each)) for name, each in rounds.items()}
    evaluation.meter.begin(sum(map(len, used.values())))
    found: dict[str, dict[str, float]] = {}
    for name, images in datasets.items():
        outside = evaluation.classifier.predict(Subset(images, used[name])).confidence
        metrics = [
            measure(
                "ood",
                id_scores=-confidence,
                ood_scores=-outside[np.searchsorted(used[name], numbers)],
            )
            for numbers in rounds[name]
        ]
        found[name] = {**_means(metrics), "n": len(used[name])}
    means = _means([*found.values()])
    del means["n"]
    return {**means, "datasets": found}


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([each[key] for each in metrics])) for key in metrics[0]}


def _datasets(evaluation: Evaluation, n: int) -> dict[str, Images]:
    """Return the OOD datasets by name: the synthetic ones, then those of the folder."""
    side = evaluation.data.side
    number = max(1, n // _SHARE) * (_ROUNDS if side <= _LARGE else 1)
    datasets: dict[str, Images] = {
        name: GeneratedImages(number, partial(_synthetic_image, evaluation.seed, name, side))
        for name in SYNTHETIC
    }
    folder, notices = evaluation.data.root / FOLDER, evaluation.data.notices
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if is_ignored_name(path.name):
                notices.ignored.add(str(path))
            elif path.name in SYNTHETIC:
                raise PipelineError(f"{path} has the name of a synthetic OOD dataset; rename it")
            elif path.is_dir():
                datasets[path.name] = open_ood(path, evaluation.data.resizing_transform, notices)
    empty = [name for name, images in datasets.items() if len(images) == 0]
    if empty:
        raise PipelineError(f"{folder / empty[0]} holds no images; put some into it, or remove it")
    return datasets


def open_ood(folder: Path, transform: ResizeCrop, notices: Notices | None = None) -> Images:
    """Open an OOD dataset: shards, SVHN's .mat, CIFAR's archive, or any folder of images.

    Raises:
        PipelineError: if there is none.
        OSError: if it cannot be read.
    """
    for place in (folder, folder / "test"):
        if (place / MANIFEST_NAME).exists():
            return shard_images(open_shards(place), transform)
    if (folder / _SVHN).exists():
        images = _read_svhn(folder / _SVHN)
        if images.shape[1:3] != (transform.side, transform.side):
            images = np.stack([transform(image) for image in images])
        return ArrayImages(images)
    for row in DATASETS.values():
        if row.folder == folder.name:
            source = DatasetSource(dataset=row.name, path=folder, split="test")
            return source_images(source, transform)
    return folder_images(folder, transform, notices)


def _read_svhn(path: Path) -> NDArray[np.uint8]:
    """Return SVHN's images, (n, 32, 32, 3)."""
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise PipelineError(
            f"{path} needs scipy, which is not installed; run pip install scipy"
        ) from error
    try:
        with open_regular(path, max_bytes=_MOST_MAT) as file:
            # Its size, before it is decompressed.
            shape = next(shape for name, shape, _ in whosmat(file) if name == "X")
            if math.prod(shape) > _MOST_MAT:
                raise ValueError(f"X is of shape {shape}")
            file.seek(0)
            # (32, 32, 3, n); a .mat holds arrays and nothing that is run.
            images = np.asarray(loadmat(file, variable_names=["X"])["X"])
    except OSError as error:
        raise unreadable(path, error, DOWNLOAD_AGAIN) from error
    except Exception as error:
        # scipy's parser fails in many ways.
        reason = str(error) or type(error).__name__
        raise PipelineError(
            f"{path} is not a .mat of SVHN ({reason:.200}); {DOWNLOAD_AGAIN}"
        ) from error
    if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3):
        raise PipelineError(
            f"{path} holds {images.dtype} of shape {images.shape} and not images of SVHN, "
            f"(32, 32, 3, n) uint8; {DOWNLOAD_AGAIN}"
        )
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2))


def _rounds(seed: int, place: int, n: int, wanted: int) -> list[NDArray[np.int64]]:
    """Return the numbers of the images of each round, none twice in a round."""
    if n <= wanted:
        return [np.arange(n)]
    if n >= wanted * _ROUNDS:
        # There are enough to take each at most once.
        generator = np.random.Generator(np.random.Philox(key=[seed, place]))
        return list(generator.permutation(n)[: wanted * _ROUNDS].reshape(_ROUNDS, wanted))
    return [
        np.random.Generator(np.random.Philox(key=[seed, place << 32 | round_ + 1])).choice(
            n, wanted, replace=False
        )
        for round_ in range(_ROUNDS)
    ]


# --- ImageNet-R, -A and -O -----------------------------------------------------------------------


def evaluate_restricted(evaluation: Evaluation, suite: str) -> dict[str, Any]:
    """Return error and calibration on ImageNet-R ("r") or ImageNet-A ("a")."""
    images, labels, outputs = _open_restricted(evaluation, suite)
    evaluation.meter.begin(len(images))
    found = evaluation.classifier.predict(images, outputs=outputs)
    correct = found.predicted == labels
    return {
        **measure(suite, correct=correct, confidence=found.confidence),
        "n": len(labels),
    }


def evaluate_imagenet_o(evaluation: Evaluation) -> dict[str, Any]:
    """Return how well confidence tells ImageNet-O from the test images of its 200 classes."""
    images, _, outputs = _open_restricted(evaluation, "o")
    test = evaluation.data.require_test()
    inside = np.flatnonzero(np.isin(test.labels, outputs))
    if len(inside) == 0:
        raise MissingDataError(
            "no image of the test set is of ImageNet-O's classes; evaluate ImageNet's validation "
            "set"
        )
    evaluation.meter.begin(len(inside) + len(images))
    predict = partial(evaluation.classifier.predict, outputs=outputs)
    scores = {"id_scores": -predict(Subset(test.images, inside)).confidence}
    scores["ood_scores"] = -predict(images).confidence
    return {**measure("o", **scores), "n": len(images), "n_id": len(inside)}


def _open_restricted(
    evaluation: Evaluation, suite: str
) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    data = evaluation.data
    folder, _ = data.find_suite_folder(suite)
    images, labels, outputs = open_tree(folder, data.resizing_transform, data)
    if len(outputs) != RESTRICTED_CLASSES:
        raise PipelineError(
            f"{folder} has {len(outputs)} classes; expected {RESTRICTED_CLASSES}, over which the "
            "softmax is; unpack it again"
        )
    return images, labels, outputs


# --- Synthetic datasets --------------------------------------------------------------------------

_BLOB_SIGMA = 1.5
_BLOB_SHARE = 0.7
_BLOB_LEAST = 0.75


def gaussian(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Return noise, normal around grey with a standard deviation of 0.25, clipped to 0..1.

    Returns (n, side, side, 3) float32.
    """
    noise = generator.standard_normal((n, side, side, 3), np.float32)
    # N(0, 0.5) clipped to -1..1 in the source, whose images are from -1 to 1.
    cut: NDArray[np.float32] = np.clip(0.5 + 0.25 * noise, 0, 1)
    return cut


def rademacher(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Return images of which every value is 0 or 1.

    Returns (n, side, side, 3) float32, each 0 or 1.
    """
    return generator.integers(0, 2, (n, side, side, 3)).astype(np.float32)


def blobs(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Return blurred blobs: noise of zeros and ones, smoothed, of which the faint parts are black.

    The blur goes over the colours too, so blobs are nearly grey, as in the source.

    Returns (n, side, side, 3) float32 in 0..1.
    """
    noise = (generator.random((n, side, side, 3)) < _BLOB_SHARE).astype(np.float64)
    for axis in (1, 2, 3):
        noise = _blurred(noise, axis)
    noise[noise < _BLOB_LEAST] = 0
    return noise.astype(np.float32)


def _blurred(images: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return a Gaussian blur along an axis, the edge repeated, four deviations to either side."""
    radius = math.ceil(4 * _BLOB_SIGMA)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * _BLOB_SIGMA**2))
    weights /= weights.sum()
    places = np.arange(images.shape[axis])
    total = np.zeros_like(images)
    for offset, weight in zip(offsets, weights, strict=True):
        shifted = np.clip(places + offset, 0, len(places) - 1)
        total += weight * np.take(images, shifted, axis)
    return total


SYNTHETIC: Mapping[str, Callable[[np.random.Generator, int, int], NDArray[np.float32]]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "blobs": blobs,
}


def _synthetic_image(seed: int, name: str, side: int, number: int) -> NDArray[np.float32]:
    """Draw an image from its own number: batches and processes do not show."""
    place = list(SYNTHETIC).index(name)
    generator = np.random.Generator(np.random.Philox(key=[seed, place << 32 | number]))
    drawn: NDArray[np.float32] = SYNTHETIC[name](generator, 1, side)[0]
    return drawn
