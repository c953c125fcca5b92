"""Anomaly detection: whether a network is less sure of what is of none of its classes.

    ROOT/outliers/dtd/...                   a folder of pictures: textures, LSUN, Places
         outliers/svhn/test_32x32.mat       SVHN, as it is distributed
         outliers/cifar100/manifest.json    shards, perhaps in test/
         outliers/cifar-100-python/...      the official archive of CIFAR, unpacked

Each picture's shorter side is resized to the network's, and the centre is cut out. Three sets of
pictures of nothing need no download.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import DATASETS
from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import aupr, auroc, false_positives_at
from pipelines.evaluation.outliers import SYNTHETIC
from pipelines.evaluation.pictures import (
    Chosen,
    Drawn,
    Pictures,
    Stored,
    View,
    of_folder,
    of_shards,
    of_source,
)
from pipelines.evaluation.request import Evaluation
from pipelines.evaluation.trees import Notices
from pipelines.shards.format import MANIFEST_NAME, open_shards
from pipelines.shards.images import is_ignored_name
from pipelines.shards.sources import DatasetSource
from pipelines.system.files import open_regular

FOLDER = "outliers"

_SHARE = 5
"""Of usual pictures there are five times as many as of odd ones."""
_ROUNDS = 10
_LARGE = 64
"""Pixels. Of larger pictures of nothing there is one round: one is as good as another."""

_SVHN = "test_32x32.mat"
_MOST_MAT = 1 << 32
"""Bytes of SVHN's file, and of its images: extra_32x32.mat, the largest, has 1.6 billion."""


def anomaly(evaluation: Evaluation, confidence: NDArray[np.float32]) -> dict[str, Any]:
    """Return how well the confidence tells odd pictures from the test's, for each kind of them.

    Of each kind there is one for five of the test's, drawn ten times and averaged; of a set that
    has fewer, all are taken.

    confidence: (n,), of the answers to the test set.
    """
    sets = _sets(evaluation, len(confidence))
    wanted = max(1, len(confidence) // _SHARE)
    rounds = {
        name: _rounds(evaluation.seed, place, len(pictures), wanted)
        for place, (name, pictures) in enumerate(sets.items())
    }
    # Each picture that is in a round is answered once.
    used = {name: np.unique(np.concatenate(each)) for name, each in rounds.items()}
    evaluation.meter.begin(sum(map(len, used.values())))
    kinds = {
        name: _mean_measures(evaluation, confidence, pictures, rounds[name], used[name])
        for name, pictures in sets.items()
    }
    return {
        "mean_auroc": float(np.mean([each["auroc"] for each in kinds.values()])),
        "mean_aupr": float(np.mean([each["aupr"] for each in kinds.values()])),
        "mean_fpr95": float(np.mean([each["fpr95"] for each in kinds.values()])),
        "kinds": kinds,
    }


def _sets(evaluation: Evaluation, n: int) -> dict[str, Pictures]:
    """Return the sets of odd pictures by name: those of nothing, then those of the folder."""
    side = evaluation.data.side
    number = max(1, n // _SHARE) * (_ROUNDS if side <= _LARGE else 1)
    sets: dict[str, Pictures] = {
        name: Drawn(number, partial(_nothing, evaluation.seed, name, side)) for name in SYNTHETIC
    }
    folder, notices = evaluation.data.root / FOLDER, evaluation.data.notices
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if is_ignored_name(path.name):
                notices.ignored.add(str(path))
            elif path.name in SYNTHETIC:
                raise PipelineError(
                    f"{path} has the name of a synthetic set of outliers; rename it"
                )
            elif path.is_dir():
                sets[path.name] = open_outliers(path, evaluation.data.resized, notices)
    empty = [name for name, pictures in sets.items() if len(pictures) == 0]
    if empty:
        raise PipelineError(f"{folder / empty[0]} holds no images; put some into it, or remove it")
    return sets


def _nothing(seed: int, name: str, side: int, number: int) -> NDArray[np.float32]:
    """Draw a picture of nothing from its own number: batches and processes do not show."""
    place = list(SYNTHETIC).index(name)
    generator = np.random.Generator(np.random.Philox(key=[seed, place << 32 | number]))
    drawn: NDArray[np.float32] = SYNTHETIC[name](generator, 1, side)[0]
    return drawn


def open_outliers(folder: Path, view: View, notices: Notices | None = None) -> Pictures:
    """Open a set of odd pictures: shards, SVHN's .mat, CIFAR's archive, or any folder of pictures.

    Raises:
        PipelineError: if there is none.
        OSError: if it cannot be read.
    """
    for place in (folder, folder / "test"):
        if (place / MANIFEST_NAME).exists():
            return of_shards(open_shards(place), view)
    if (folder / _SVHN).exists():
        return Stored(_view_all(_read_svhn(folder / _SVHN), view))
    for row in DATASETS.values():
        if row.folder == folder.name:
            return of_source(DatasetSource(dataset=row.name, place=folder, split="test"), view)
    return of_folder(folder, view, notices)


def _view_all(pictures: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    if pictures.shape[1:3] == (view.side, view.side):
        return pictures
    return np.stack([view(picture) for picture in pictures])


def _read_svhn(path: Path) -> NDArray[np.uint8]:
    """Return SVHN's pictures, (n, 32, 32, 3)."""
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
            pictures = np.asarray(loadmat(file, variable_names=["X"])["X"])
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; get it again"
        ) from error
    except Exception as error:
        # scipy's parser fails in many ways.
        reason = str(error) or type(error).__name__
        raise PipelineError(f"{path} is no .mat of SVHN ({reason:.200}); get it again") from error
    if pictures.dtype != np.uint8 or pictures.shape[:3] != (32, 32, 3):
        raise PipelineError(
            f"{path} holds {pictures.dtype} of shape {pictures.shape} and not pictures of SVHN, "
            "(32, 32, 3, n) uint8; get it again"
        )
    return np.ascontiguousarray(pictures.transpose(3, 0, 1, 2))


def _mean_measures(
    evaluation: Evaluation,
    confidence: NDArray[np.float32],
    pictures: Pictures,
    rounds: Sequence[NDArray[np.int64]],
    used: NDArray[np.int64],
) -> dict[str, float]:
    """Return AUROC, AUPR and the false positive rate of a set, averaged over rounds."""
    answers = evaluation.classifier.answer(Chosen(pictures, used))
    found = []
    for numbers in rounds:
        scores = -confidence, -answers.confidence[np.searchsorted(used, numbers)]
        found.append((auroc(*scores), aupr(*scores), false_positives_at(*scores)))
    means = np.mean(found, 0)
    return {**dict(zip(("auroc", "aupr", "fpr95"), map(float, means), strict=True)),
            "n": len(used)}  # fmt: skip


def _rounds(seed: int, place: int, n: int, wanted: int) -> list[NDArray[np.int64]]:
    """Return the numbers that are taken in each round, none twice in a round."""
    if n <= wanted:
        return [np.arange(n)]
    if n >= wanted * _ROUNDS:
        # Of so many each is taken once.
        generator = np.random.Generator(np.random.Philox(key=[seed, place]))
        return list(generator.permutation(n)[: wanted * _ROUNDS].reshape(_ROUNDS, wanted))
    return [
        np.random.Generator(np.random.Philox(key=[seed, place << 32 | round_ + 1])).choice(
            n, wanted, replace=False
        )
        for round_ in range(_ROUNDS)
    ]
