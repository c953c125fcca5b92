"""Sets like CIFAR-10-C for pictures that have no official one.

By the extra `corruptions` (imagecorruptions-imaug), whose constants are ImageNet-C's: figures on
such a set compare networks with each other, and not with what is printed of CIFAR-10-C.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.suites import CORRUPTIONS, SEVERITIES, TestSet
from pipelines.shards.files import new_file
from pipelines.shards.progress import Progress, no_progress


def make_corrupted(
    test: TestSet,
    out: Path,
    *,
    n: int | None = None,
    seed: int = 0,
    names: Sequence[str] = CORRUPTIONS,
    progress: Progress = no_progress,
) -> Path:
    """Write a folder of corrupted pictures in CIFAR-10-C's layout, or what of it is missing.

    Args:
        test: the pictures.
        out: folder for "NAME-C".
        n: only the first n pictures; None for all.
        seed: of the noise: picture i of a corruption and severity depends on it and on i alone.
        names: of corruptions.
        progress: called with pictures done, and all.

    Returns:
        The folder.

    Raises:
        PipelineError: if the extra is not installed, or the folder holds another set.
        OSError: if it cannot be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from imagecorruptions import corrupt
    except ImportError as error:
        raise PipelineError(
            "corruptions need imagecorruptions-imaug; run pip install 'pixmix[corruptions]'"
        ) from error
    pictures, labels = test.pictures[:n], test.labels[:n]
    folder = out / f"{test.name}-C"
    folder.mkdir(parents=True, exist_ok=True)
    repeated = np.tile(labels, SEVERITIES)
    _same_or_new(folder / "labels.npy", repeated)
    total, done = len(names) * len(repeated), 0
    progress(0, total)
    for name in names:
        path = folder / f"{name}.npy"
        if path.exists():
            done += len(repeated)
            progress(done, total)
            continue
        corrupted = np.empty((len(repeated), *pictures.shape[1:]), np.uint8)
        for severity in range(1, SEVERITIES + 1):
            for index, picture in enumerate(pictures):
                # The package draws from numpy's global state, which is put back.
                state = np.random.get_state()  # noqa: NPY002
                np.random.seed(_seed(seed, CORRUPTIONS.index(name), severity, index))  # noqa: NPY002
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        made = corrupt(
                            np.ascontiguousarray(picture), severity, corruption_name=name
                        )
                finally:
                    np.random.set_state(state)  # noqa: NPY002
                corrupted[(severity - 1) * len(labels) + index] = made
            done += len(labels)
            progress(done, total)
        with new_file(path) as file:
            np.save(file, corrupted, allow_pickle=False)
    return folder


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _same_or_new(path: Path, labels: NDArray[np.int64]) -> None:
    """Write the labels, or see that they are there."""
    if not path.exists():
        with new_file(path) as file:
            np.save(file, labels, allow_pickle=False)
    elif not np.array_equal(np.load(path, allow_pickle=False), labels):
        raise PipelineError(
            f"{path.parent} was made of other pictures; choose another folder by --out"
        )
