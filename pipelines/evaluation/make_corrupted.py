"""Sets like CIFAR-10-C for images that have no official one, in a folder such as DIGITS-C-made.

By the extra `corruptions` (imagecorruptions-imaug), whose constants are ImageNet-C's: results on
such a set compare networks with each other, and not with published results on CIFAR-10-C.
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
"""Corruptions that draw from a generator of their own, whose seed is an argument."""

_SMALLEST = 32
"""Pixels of a side, which the package asks for."""


def make_corrupted(
    data: EvaluationData,
    out: Path,
    *,
    n: int | None = None,
    seed: int = 0,
    names: Sequence[str] = CORRUPTIONS,
    progress: Progress = no_progress,
) -> Path:
    """Write a folder of corrupted images in CIFAR-10-C's layout, or what of it is missing.

    Args:
        data: the images, as a network of theirs would see them.
        out: folder for "NAME-C-made".
        n: only the first n images; None for all.
        seed: of the noise: image i of a corruption and severity depends on it and on i alone.
        names: of corruptions.
        progress: called with images done, and all.

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
            f"corruptions need imagecorruptions-imaug; run {install_extra('corruptions')}"
        ) from error
    test = data.require_test()
    if data.side < _SMALLEST:
        raise PipelineError(
            f"the images have {data.side}x{data.side} pixels, and the corruptions need at least "
            f"{_SMALLEST}x{_SMALLEST}; use --checkpoint with a network of larger images"
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
    """Write what of a set is missing; see `make_corrupted`."""
    images = data.require_test().images
    repeated = np.tile(labels, SEVERITIES)
    shape = (len(repeated), data.side, data.side, 3)
    _same_or_new(folder, _made_of(data, labels, seed))
    with new_file(folder / "labels.npy") as file:
        np.save(file, repeated, allow_pickle=False)
    if data.classes:
        write_file(folder / CLASSES_FILE, "".join(f"{name}\n" for name in data.classes).encode())
    total, done = len(names) * len(repeated), 0
    progress(0, total)
    for name in names:
        path = folder / f"{name}.npy"
        if _is_whole(path, shape):
            done += len(repeated)
            progress(done, total)
            continue
        with new_file(path) as file:
            # Image by image, for all of them may be larger than the memory.
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


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether a corruption has been written; a damaged one is written again."""
    if not path.exists():
        return False
    try:
        there = open_array(path, DOWNLOAD_AGAIN)
    except PipelineError:
        return False
    return there.shape == shape and there.dtype == np.uint8


def _image(images: Images, index: int) -> NDArray[np.generic]:
    return np.ascontiguousarray(images.read(range(index, index + 1))[0])


def _corrupted(
    corrupt: Callable[..., NDArray[np.uint8]],
    image: NDArray[np.generic],
    name: str,
    severity: int,
    seed: int,
) -> NDArray[np.uint8]:
    """Corrupt an image by a seed alone.

    The package draws from numpy's global state, which is put back; two corruptions draw from a
    generator of their own.
    """
    own = {"seed": seed} if name in _SEEDED else {}
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(corrupt(image, severity, corruption_name=name, **own), np.uint8)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _made_of(data: EvaluationData, labels: NDArray[np.int64], seed: int) -> MakeCRecord:
    """Return what decides a set."""
    images = data.require_test().images
    hashes = (sha256(_image(images, i).tobytes()) for i in range(len(labels)))
    return MakeCRecord(
        seed=seed, n=len(labels), labels=sha256(labels.tobytes()), classes=data.classes,
        side=data.side, images=sha256("".join(hashes).encode()),
        made_by=f"pixmix-eval make-c, {_PACKAGE} {version(_PACKAGE)}",
    )  # fmt: skip


def _same_or_new(folder: Path, asked: MakeCRecord) -> None:
    """Write down what a set is made of, or check that it is the same.

    Raises:
        PipelineError: if the folder holds another set, or one that this command did not make.
    """
    made = read_make_c_record(folder, f"remove {folder} and run the command again")
    if made is not None:
        for name in asked.__struct_fields__:
            there, value = getattr(made, name), getattr(asked, name)
            if there != value:
                raise PipelineError(
                    f"{folder} was made with {name} {there!s:.80}, and this is {value!s:.80}; "
                    "choose another folder by --out, or remove it"
                )
    elif any(folder.glob("*.npy")):
        raise PipelineError(f"{folder} was not made by this command; choose another by --out")
    else:
        write_file(folder / MAKE_C_RECORD, msgspec.json.format(msgspec.json.encode(asked)) + b"\n")
