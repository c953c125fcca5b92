"""Out-of-distribution (OOD) detection, and the errors on ImageNet-R and ImageNet-A.

    ROOT/outliers/dtd/...                   a folder of images: textures, LSUN, Places
         outliers/svhn/test_32x32.mat       SVHN's official file
         outliers/cifar100/manifest.json    shards, also in test/
         outliers/cifar-100-python/...      CIFAR's official archive, unpacked
         imagenet-o/n01443537/*.JPEG        photographs outside ImageNet-1k's classes
         imagenet-r/n01443537/*.jpg         renditions of 200 ImageNet classes
         imagenet-a/n01498041/*.jpg         photographs of 200 classes that fool a ResNet-50

The OOD score of an image is the negative confidence. Three synthetic OOD datasets need no download
(Hendrycks, Mazeika & Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019,
appendix A; an independent implementation of its description).

On ImageNet-R, -A and -O (Hendrycks et al., "The Many Faces of Robustness", ICCV 2021, and "Natural
Adversarial Examples", CVPR 2021) predictions and softmax are restricted to their 200 classes.
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
from pipelines.loading.dataset import ShardDataset
from pipelines.shards.format import MANIFEST_NAME, open_shards
from pipelines.shards.images import is_ignored_name
from pipelines.shards.sources import DatasetSource
from pipelines.system.files import open_regular

FOLDER = "outliers"

_ID_PER_OOD = 5
"""ID images per OOD image in a round."""
_ROUNDS = 10
_LARGE = 64
"""Side in pixels above which synthetic images, which are costly and much alike, get one round."""

_SVHN = "test_32x32.mat"
_MAX_MAT = 1 << 32
"""Largest SVHN file, and its images, in bytes; extra_32x32.mat has 1.6 billion."""

RESTRICTED_CLASSES = 200
"""Number of classes of ImageNet-R, -A and -O."""


def evaluate_ood(evaluation: Evaluation, confidence: NDArray[np.float32]) -> dict[str, Any]:
    """Return the OOD detection metrics of each dataset and their means.

    The metrics of a dataset are means over ten rounds, each with one OOD image for five test
    images. A dataset with fewer images has one round with all of them.

    Args:
        evaluation: the network, its data and the settings.
        confidence: (n,) float32, of the predictions for the test set.
    """
    datasets = _datasets(evaluation, len(confidence))
    n_ood = max(1, len(confidence) // _ID_PER_OOD)
    rounds = {
        name: _rounds(evaluation.seed, index, len(images), n_ood)
        for index, (name, images) in enumerate(datasets.items())
    }
    # An image in several rounds is predicted once.
    used = {name: np.unique(np.concatenate(each)) for name, each in rounds.items()}
    evaluation.meter.begin(sum(map(len, used.values())))
    results: dict[str, dict[str, float]] = {}
    for name, images in datasets.items():
        ood_confidence = evaluation.classifier.predict(Subset(images, used[name])).confidence
        metrics = [
            measure(
                "ood",
                id_scores=-confidence,
                ood_scores=-ood_confidence[np.searchsorted(used[name], indices)],
            )
            for indices in rounds[name]
        ]
        results[name] = {**_means(metrics), "n": len(used[name])}
    means = _means([*results.values()])
    del means["n"]
    return {**means, "datasets": results}


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([each[key] for each in metrics])) for key in metrics[0]}


def _datasets(evaluation: Evaluation, n: int) -> dict[str, Images]:
    """Return the synthetic OOD datasets, then those in the folder, by name.

    n: number of ID images.
    """
    side = evaluation.data.side
    n_synthetic = max(1, n // _ID_PER_OOD) * (_ROUNDS if side <= _LARGE else 1)
    datasets: dict[str, Images] = {
        name: GeneratedImages(n_synthetic, partial(_synthetic_image, evaluation.seed, name, side))
        for name in SYNTHETIC
    }
    root, notices = evaluation.data.root, evaluation.data.notices
    if root is None:
        notices.add(
            f"ood has only the synthetic datasets; pass a local --data that also has {FOLDER} to "
            "evaluate others"
        )
        return datasets
    folder = root / FOLDER
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
        raise PipelineError(f"{folder / empty[0]} holds no images; add images, or remove it")
    return datasets


def open_ood(folder: Path, transform: ResizeCrop, notices: Notices | None = None) -> Images:
    """Open an OOD dataset: shards, SVHN's .mat, CIFAR's archive, or any folder of images.

    Args:
        folder: the dataset.
        transform: resize and crop of the images.
        notices: collects ignored paths.

    Raises:
        PipelineError: if no image is found.
        OSError: if the folder cannot be read.
    """
    for each in (folder, folder / "test"):
        if (each / MANIFEST_NAME).exists():
            return shard_images(ShardDataset(open_shards(each)), transform)
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
        with open_regular(path, max_bytes=_MAX_MAT) as file:
            # The size is checked before anything is decompressed.
            shape = next(shape for name, shape, _ in whosmat(file) if name == "X")
            if math.prod(shape) > _MAX_MAT:
                raise ValueError(f"X has shape {shape}")
            file.seek(0)
            # X is (32, 32, 3, n). Reading a .mat executes no code.
            images = np.asarray(loadmat(file, variable_names=["X"])["X"])
    except OSError as error:
        raise unreadable(path, error, DOWNLOAD_AGAIN) from error
    except Exception as error:
        # scipy's parser raises exceptions of many types.
        reason = str(error) or type(error).__name__
        raise PipelineError(
            f"{path} is not a .mat file of SVHN ({reason:.200}); {DOWNLOAD_AGAIN}"
        ) from error
    if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3):
        raise PipelineError(
            f"{path} holds {images.dtype} of shape {images.shape}, expected SVHN's uint8 of shape "
            f"(32, 32, 3, n); {DOWNLOAD_AGAIN}"
        )
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2))


def _rounds(seed: int, dataset: int, n: int, n_ood: int) -> list[NDArray[np.int64]]:
    """Draw the image indices of each round, without replacement within a round.

    dataset: its position in the order of datasets; n: its images; n_ood: images per round.
    """
    if n <= n_ood:
        return [np.arange(n)]
    if n >= n_ood * _ROUNDS:
        # There are enough images to use each at most once.
        generator = np.random.Generator(np.random.Philox(key=[seed, dataset]))
        return list(generator.permutation(n)[: n_ood * _ROUNDS].reshape(_ROUNDS, n_ood))
    return [
        np.random.Generator(np.random.Philox(key=[seed, dataset << 32 | round_ + 1])).choice(
            n, n_ood, replace=False
        )
        for round_ in range(_ROUNDS)
    ]


# --- ImageNet-R, -A and -O -----------------------------------------------------------------------


def evaluate_restricted(evaluation: Evaluation, suite: str) -> dict[str, Any]:
    """Return error and calibration on ImageNet-R ("r") or ImageNet-A ("a")."""
    images, labels, outputs = _open_restricted(evaluation, suite)
    evaluation.meter.begin(len(images))
    predictions = evaluation.classifier.predict(images, outputs=outputs)
    correct = predictions.predicted == labels
    return {
        **measure(suite, correct=correct, confidence=predictions.confidence),
        "n": len(labels),
    }


def evaluate_imagenet_o(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of detecting ImageNet-O among the test images of its 200 classes."""
    images, _, outputs = _open_restricted(evaluation, "o")
    test = evaluation.data.require_test()
    id_indices = np.flatnonzero(np.isin(test.labels, outputs))
    if len(id_indices) == 0:
        raise MissingDataError(
            "the test set has no images of ImageNet-O's classes; use ImageNet's validation set"
        )
    evaluation.meter.begin(len(id_indices) + len(images))
    predict = partial(evaluation.classifier.predict, outputs=outputs)
    scores = {"id_scores": -predict(Subset(test.images, id_indices)).confidence}
    scores["ood_scores"] = -predict(images).confidence
    return {**measure("o", **scores), "n": len(images), "n_id": len(id_indices)}


def _open_restricted(
    evaluation: Evaluation, suite: str
) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    data = evaluation.data
    folder, _ = data.find_suite_folder(suite)
    images, labels, outputs = open_tree(folder, data.resizing_transform, data)
    if len(outputs) != RESTRICTED_CLASSES:
        raise PipelineError(
            f"{folder} has {len(outputs)} class folders, expected {RESTRICTED_CLASSES}; unpack the "
            "dataset again"
        )
    return images, labels, outputs


# --- Synthetic datasets --------------------------------------------------------------------------

_BLOB_SIGMA = 1.5
_BLOB_DENSITY = 0.7
_BLOB_THRESHOLD = 0.75


def gaussian(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Draw Gaussian noise of mean 0.5 and standard deviation 0.25, clipped to 0..1.

    Returns:
        (n, side, side, 3) float32.
    """
    noise = generator.standard_normal((n, side, side, 3), np.float32)
    # N(0, 0.5) clipped to -1..1 in the source, whose images are in -1..1.
    clipped: NDArray[np.float32] = np.clip(0.5 + 0.25 * noise, 0, 1)
    return clipped


def rademacher(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Draw images whose values are 0 or 1 with equal probability.

    Returns:
        (n, side, side, 3) float32.
    """
    return generator.integers(0, 2, (n, side, side, 3)).astype(np.float32)


def blobs(generator: np.random.Generator, n: int, side: int) -> NDArray[np.float32]:
    """Draw blobs: binary noise, blurred, with values below a threshold set to 0.

    The blur also mixes the channels, so blobs are nearly grey, as in the source.

    Returns:
        (n, side, side, 3) float32 in 0..1.
    """
    noise = (generator.random((n, side, side, 3)) < _BLOB_DENSITY).astype(np.float64)
    for axis in (1, 2, 3):
        noise = _blurred(noise, axis)
    noise[noise < _BLOB_THRESHOLD] = 0
    return noise.astype(np.float32)


def _blurred(images: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Blur along an axis with a Gaussian truncated at four sigma, repeating the edge."""
    radius = math.ceil(4 * _BLOB_SIGMA)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * _BLOB_SIGMA**2))
    weights /= weights.sum()
    positions = np.arange(images.shape[axis])
    total = np.zeros_like(images)
    for offset, weight in zip(offsets, weights, strict=True):
        shifted = np.clip(positions + offset, 0, len(positions) - 1)
        total += weight * np.take(images, shifted, axis)
    return total


SYNTHETIC: Mapping[str, Callable[[np.random.Generator, int, int], NDArray[np.float32]]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "blobs": blobs,
}


def _synthetic_image(seed: int, name: str, side: int, index: int) -> NDArray[np.float32]:
    """Draw an image from its index, independent of batches and processes."""
    dataset = list(SYNTHETIC).index(name)
    generator = np.random.Generator(np.random.Philox(key=[seed, dataset << 32 | index]))
    drawn: NDArray[np.float32] = SYNTHETIC[name](generator, 1, side)[0]
    return drawn
