"""Make a dataset like CIFAR-10-C from any test set, in a folder such as DIGITS-C-made.

The extra ``corruptions`` (imagecorruptions-imaug) applies them with ImageNet-C's constants. Results
on such a dataset compare networks with each other, not with published results on CIFAR-10-C.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError, install_extra
from pipelines.evaluation.corruptions import CLASSES_FILE, CORRUPTIONS, SEVERITIES
from pipelines.evaluation.data import EvaluationData
from pipelines.evaluation.folders import (
    MAKE_C_RECORD,
    MAKE_C_SUFFIX,
    MakeCRecord,
    read_make_c_record,
)
from pipelines.evaluation.images import DOWNLOAD_AGAIN, Images
from pipelines.system.files import (
    check_no_file,
    folder_lock,
    new_file,
    remove_partial_files,
    sha256,
    write_file,
)
from pipelines.system.progress import Progress, no_progress
from pipelines.system.untrusted import open_array

_PACKAGE = "imagecorruptions-imaug"

_SEEDED = frozenset({"glass_blur", "impulse_noise"})
"""Corruptions that take a seed argument instead of drawing from numpy's global state."""

_SMALLEST = 32
"""Smallest side that the package accepts, pixels."""


def make_corrupted(
    data: EvaluationData,
    out: Path,
    *,
    n: int | None = None,
    seed: int = 0,
    names: Sequence[str] = CORRUPTIONS,
    progress: Progress = no_progress,
) -> Path:
    """Write corrupted images in CIFAR-10-C's layout, and complete what a stopped run left.

    Args:
        data: test images, preprocessed to the input size of a network.
        out: parent folder of "NAME-C-made".
        n: number of images, from the first on; None for all.
        seed: seed of the noise; image i at a corruption and severity depends only on seed and i.
        names: corruptions to write.
        progress: called with the number of images done and the total.

    Returns:
        The folder "NAME-C-made".

    Raises:
        PipelineError: if the extra is not installed, or the folder holds another dataset.
        OSError: if the folder cannot be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from imagecorruptions import corrupt
    except ImportError as error:
        raise PipelineError(
            f"corruptions need imagecorruptions-imaug; run {install_extra('corruptions')}"
        ) from error
    test = data.require_test()
    if data.side < _SMALLEST:
        raise PipelineError(
            f"the images have {data.side}x{data.side} pixels, and the corruptions need at least "
            f"{_SMALLEST}x{_SMALLEST}; pass the --checkpoint of a network with larger input images"
        )
    unwritable = [name for name in data.classes if len(name.splitlines()) != 1]
    if unwritable:
        raise PipelineError(
            f"the class name {unwritable[0]!r} is not one line of text; rename the class"
        )
    labels = test.labels[:n]
    folder = out / f"{data.name}{MAKE_C_SUFFIX}"
    check_no_file(folder, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder / ".lock", busy=f"another process is writing to {folder}; wait for it"):
        remove_partial_files(folder)
        _write(data, labels, folder, corrupt, seed=seed, names=names, progress=progress)
    return folder


def _write(
    data: EvaluationData,
    labels: NDArray[np.int64],
    folder: Path,
    corrupt: Callable[..., NDArray[np.uint8]],
    *,
    seed: int,
    names: Sequence[str],
    progress: Progress,
) -> None:
    """Write the record, the labels and each missing array; see `make_corrupted`."""
    images = data.require_test().images
    repeated = np.tile(labels, SEVERITIES)
    shape = (len(repeated), data.side, data.side, 3)
    _check_or_write_record(folder, _record(data, labels, seed))
    with new_file(folder / "labels.npy") as file:
        np.save(file, repeated, allow_pickle=False)
    if data.classes:
        write_file(folder / CLASSES_FILE, "".join(f"{name}\n" for name in data.classes).encode())
    total, done = len(names) * len(repeated), 0
    progress(0, total)
    for name in names:
        path = folder / f"{name}.npy"
        if _is_complete(path, shape):
            done += len(repeated)
            progress(done, total)
            continue
        with new_file(path) as file:
            # One image at a time: together they may not fit into memory.
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for severity in range(1, SEVERITIES + 1):
                for index in range(len(labels)):
                    image = _image(images, index)
                    key = (seed, CORRUPTIONS.index(name), severity, index)
                    file.write(_corrupted(corrupt, image, name, severity, _seed(*key)).tobytes())
                    done += 1
                    if done % 100 == 0:
                        progress(done, total)
        progress(done, total)


def _is_complete(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether an array has been written; a damaged one is written again."""
    if not path.exists():
        return False
    try:
        existing = open_array(path, DOWNLOAD_AGAIN)
    except PipelineError:
        return False
    return existing.shape == shape and existing.dtype == np.uint8


def _image(images: Images, index: int) -> NDArray[np.generic]:
    return np.ascontiguousarray(images.read(range(index, index + 1))[0])


def _corrupted(
    corrupt: Callable[..., NDArray[np.uint8]],
    image: NDArray[np.generic],
    name: str,
    severity: int,
    seed: int,
) -> NDArray[np.uint8]:
    """Corrupt an image reproducibly.

    The package draws from numpy's global state, which is restored afterwards.
    """
    keywords = {"seed": seed} if name in _SEEDED else {}
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(corrupt(image, severity, corruption_name=name, **keywords), np.uint8)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _record(data: EvaluationData, labels: NDArray[np.int64], seed: int) -> MakeCRecord:
    images = data.require_test().images
    hashes = (sha256(_image(images, i).tobytes()) for i in range(len(labels)))
    return MakeCRecord(
        seed=seed, n=len(labels), labels=sha256(labels.tobytes()), classes=data.classes,
        side=data.side, images=sha256("".join(hashes).encode()),
        made_by=f"pixmix-eval make-c, {_PACKAGE} {version(_PACKAGE)}",
    )  # fmt: skip


def _check_or_write_record(folder: Path, record: MakeCRecord) -> None:
    """Write the record of a new dataset, or check that an existing one has the same record.

    Raises:
        PipelineError: if the folder holds another dataset, or one that make-c did not make.
    """
    existing = read_make_c_record(folder, f"remove {folder} and run the command again")
    if existing is not None:
        for name in record.__struct_fields__:
            then, now = getattr(existing, name), getattr(record, name)
            if then != now:
                raise PipelineError(
                    f"{folder} was made with {name} {then!s:.80}, this command has {now!s:.80}; "
                    "use another --out, or remove the folder"
                )
    elif any(folder.glob("*.npy")):
        raise PipelineError(f"{folder} was not made by this command; use another --out")
    else:
        write_file(folder / MAKE_C_RECORD, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
