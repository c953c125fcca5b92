"""Sets like CIFAR-10-C for pictures that have no official one.

By the extra `corruptions` (imagecorruptions-imaug), whose constants are ImageNet-C's: figures on
such a set compare networks with each other, and not with what is printed of CIFAR-10-C.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.corrupted import CLASSES_FILE, CORRUPTIONS, SEVERITIES, load_array
from pipelines.evaluation.request import Data
from pipelines.shards.files import check_no_file, new_file, sha256, write_file
from pipelines.shards.progress import Progress, no_progress


def make_corrupted(
    data: Data,
    out: Path,
    *,
    n: int | None = None,
    seed: int = 0,
    names: Sequence[str] = CORRUPTIONS,
    progress: Progress = no_progress,
) -> Path:
    """Write a folder of corrupted pictures in CIFAR-10-C's layout, or what of it is missing.

    Args:
        data: the pictures, as a network of theirs would see them.
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
    test = data.need_test()
    labels = test.labels[:n]
    folder = out / f"{data.name}-C"
    check_no_file(folder, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    repeated = np.tile(labels, SEVERITIES)
    shape = (len(repeated), data.side, data.side, 3)
    _same_or_new(folder, _asked_for(data, labels, seed))
    with new_file(folder / "labels.npy") as file:
        np.save(file, repeated, allow_pickle=False)
    if data.classes:
        write_file(folder / CLASSES_FILE, "".join(f"{name}\n" for name in data.classes).encode())
    total, done = len(names) * len(repeated), 0
    progress(0, total)
    for name in names:
        path = folder / f"{name}.npy"
        if path.exists():
            if load_array(path, mapped=True).shape != shape:
                raise PipelineError(
                    f"{path} is not of shape {shape}; remove it, and it is made anew"
                )
            done += len(repeated)
            progress(done, total)
            continue
        with new_file(path) as file:
            # Picture by picture, for all of them may be larger than the memory.
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for severity in range(1, SEVERITIES + 1):
                for index in range(len(labels)):
                    picture = np.ascontiguousarray(test.pictures.read(range(index, index + 1))[0])
                    key = (seed, CORRUPTIONS.index(name), severity, index)
                    file.write(_corrupted(corrupt, picture, name, severity, _seed(*key)).tobytes())
                    done += 1
                    if done % 100 == 0:
                        progress(done, total)
        progress(done, total)
    return folder


def _corrupted(
    corrupt: Callable[..., NDArray[np.uint8]],
    picture: NDArray[np.generic],
    name: str,
    severity: int,
    seed: int,
) -> NDArray[np.uint8]:
    """Corrupt a picture; the package draws from numpy's global state, which is put back."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(corrupt(picture, severity, corruption_name=name), np.uint8)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _asked_for(data: Data, labels: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Return what decides a set, as plain JSON values: of the pictures, the first and the last."""
    pictures = data.need_test().pictures
    ends = {
        name: sha256(np.ascontiguousarray(pictures.read(range(i, i + 1))[0]).tobytes())
        for name, i in (("first", 0), ("last", len(labels) - 1))
    }
    return {"seed": seed, "n": len(labels), "labels": sha256(labels.tobytes()),
            "side": data.side, **ends}  # fmt: skip


def _same_or_new(folder: Path, asked: dict[str, Any]) -> None:
    """Write down what a set is made of, or see that it is the same."""
    path = folder / "made-of.json"
    if path.exists():
        try:
            made = json.loads(path.read_bytes())
        except ValueError as error:
            raise PipelineError(
                f"{path} is damaged; remove {folder}, and it is made anew"
            ) from error
        for name, value in asked.items():
            if made.get(name) != value:
                raise PipelineError(
                    f"{folder} was made with {name} {made.get(name)}, and this is {value}; choose "
                    "another folder by --out, or remove it"
                )
    elif (folder / "labels.npy").exists():
        raise PipelineError(f"{folder} was not made by this command; choose another by --out")
    else:
        write_file(path, (json.dumps(asked, indent=1) + "\n").encode())
