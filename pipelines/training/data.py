"""Open the data of a training: shards on disk or at an address, or a dataset to shard first."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipelines.datasets import Dataset, dataset_named, dataset_of_kind
from pipelines.errors import PipelineError
from pipelines.loading.mixing_set import image_source
from pipelines.models.checkpoints import read_initial_weights
from pipelines.models.registry import find_outputs
from pipelines.shards.archives import SPLITS
from pipelines.shards.format import MANIFEST_NAME, ShardSet
from pipelines.shards.output import Folder
from pipelines.shards.remote import Remote, RemoteShards, names_shards, open_set
from pipelines.shards.request import ShardRequest
from pipelines.shards.sharding import make_shards
from pipelines.shards.sources import DatasetSource
from pipelines.system.files import check_no_file
from pipelines.system.objects import NotFoundError, address_inside, shown
from pipelines.system.processes import available_cores, run_chunks
from pipelines.system.progress import Progress
from pipelines.training.checkpoints import ALREADY_TRAINED, find_checkpoints

_TEST_NAMES = ("test", "val", "valid", "validation", "dev", "eval")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Shards to train on, and shards to test on or None."""

    train: RemoteShards
    test: RemoteShards | None


def check_inputs(
    out: Path,
    mixing_sets: Sequence[Path | str],
    *,
    weights: Path | None = None,
    resume: bool = True,
    cache_dir: Path | None = None,
    remote: Remote | None = None,
) -> None:
    """Check the inputs of a training before any data are read or sharded.

    Args:
        out: folder of the results; it is not created.
        mixing_sets: mixing sets; see `image_source`.
        weights: file of weights to fine-tune; not read if `out` has a checkpoint.
        resume: whether `out` may have a checkpoint.
        cache_dir: cache of remote shards; see `open_mixing_set`.
        remote: how remote shards are read; None for the defaults.

    Raises:
        PipelineError: if a mixing set is missing or empty, a parent of `out` is a file, the weights
            cannot be read, or `out` has a checkpoint and `resume` is False.
        OSError: if `out` cannot be written, or a mixing set cannot be read.
    """
    check_no_file(out / "checkpoints", "--out")
    existing = next(each for each in (out, *out.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass
    exists = bool(find_checkpoints(out))
    if exists and not resume:
        raise PipelineError(f"{out} {ALREADY_TRAINED}")
    if weights is not None and not exists:
        read_initial_weights(weights)
    for each in mixing_sets:
        if len(image_source(each, cache_dir=cache_dir, remote=remote)) == 0:
            raise PipelineError(f"{each} holds no images; use another --mixing-set")


def open_training_data(
    name: str,
    location: Path | str | None,
    out: Path,
    progress: Progress,
    *,
    writes_shards: bool = True,
    cache_dir: Path | None = None,
    remote: Remote | None = None,
) -> TrainingData:
    """Open the data of a training.

    Args:
        name: name of a dataset in `pipelines.datasets`.
        location: a folder, or as text an address, with shards of pixmix-shard in one folder per
            split; for CIFAR also the official archive or the folder that torchvision downloaded to.
            None for datasets that an installed library provides.
        out: folder for new shards, if the data are not in shards.
        progress: called while shards are written, split by split.
        writes_shards: whether this process writes new shards; the others open them.
        cache_dir: cache of remote shards; see `open_mixing_set`.
        remote: how remote shards are read; None for the defaults.

    Raises:
        PipelineError: if the dataset is unknown, or no training data are found.
        OSError: if the data cannot be read.
    """
    dataset = dataset_named(name)
    if location is None and not dataset.bundled:
        raise PipelineError(f"{name} needs data; pass its folder or address with --data")
    open_shards = partial(open_set, cache_dir=cache_dir, remote=remote)
    if isinstance(location, str):
        return _checked(dataset, _open_address(location, open_shards))
    if location is not None and (location / "train" / MANIFEST_NAME).exists():
        return _checked(dataset, _open_folder(location, open_shards))
    if location is not None and (location / MANIFEST_NAME).exists():
        return _checked(dataset, TrainingData(train=open_shards(location), test=None))
    if dataset.reader is None or (dataset.bundled and location is not None):
        raise _no_shards_error(dataset, location)
    if writes_shards:
        _write_shards(dataset, location, out, progress)
    elif not (out / "train" / MANIFEST_NAME).exists():
        raise PipelineError(
            f"{out} has no shards: process 0 wrote them on its own host; write them once with "
            f"pixmix-shard {name} and pass --data on every host, or use an --out that all share"
        )
    return _open_folder(out, open_shards)


def _no_shards_error(dataset: Dataset, location: Path | None) -> PipelineError:
    """Return the error for a folder without shards."""
    inside = _shards_inside(dataset, location)
    if inside is not None:
        remedy = f"but {inside} has; use --data {inside}"
    elif dataset.bundled:
        remedy = (
            f"omit --data to write shards now, or write them first: pixmix-shard {dataset.name} OUT"
        )
    else:
        remedy = (
            "make shards of your images first with pixmix-shard imagefolder SRC OUT, and pass "
            "--data OUT"
        )
    return PipelineError(
        f"{location} has no train/{MANIFEST_NAME}{',' if inside else ';'} {remedy}"
    )


def _shards_inside(dataset: Dataset, location: Path | None) -> Path | None:
    """Return the subfolder with shards that has the dataset's name, or the only subfolder."""
    if location is None or not location.is_dir():
        return None
    folders = sorted(each.parent.parent for each in location.glob(f"*/train/{MANIFEST_NAME}"))
    named = [each for each in folders if each.name == dataset.name]
    candidates = named or folders
    return candidates[0] if len(candidates) == 1 else None


def _checked(dataset: Dataset, data: TrainingData) -> TrainingData:
    """Return the data after checking that they fit the dataset and have classes."""
    train = data.train.shards
    is_other = dataset_of_kind(train.kind) not in (None, dataset)
    if is_other and dataset.n_classes is not None:
        raise PipelineError(
            f"{train.location} is {train.kind} and not {dataset.name}; use pixmix-train "
            f"{train.kind}, or pass other --data"
        )
    if len(train) and int(train.samples["label"].min()) < 0:
        raise PipelineError(
            f"{train.location} has images without a class, as a mixing set has; pass shards of "
            "pixmix-shard imagefolder"
        )
    return data


_OpenShards = Callable[[Path | str], RemoteShards]


def _open_folder(folder: Path, open_shards: _OpenShards) -> TrainingData:
    tests = [folder / name for name in _TEST_NAMES if (folder / name / MANIFEST_NAME).exists()]
    return TrainingData(
        train=open_shards(folder / "train"), test=open_shards(tests[0]) if tests else None
    )


def _open_address(address: str, open_shards: _OpenShards) -> TrainingData:
    """Open ADDRESS/train and the test set beside it if there is one, or else ADDRESS itself."""
    if names_shards(address):
        return TrainingData(train=open_shards(address), test=None)
    try:
        train = open_shards(address_inside(address, "train"))
    except NotFoundError:
        try:
            return TrainingData(train=open_shards(address), test=None)
        except NotFoundError as error:
            raise PipelineError(
                f"{shown(address)} has neither train/{MANIFEST_NAME} nor {MANIFEST_NAME}; check "
                f"the address and the credentials ({error})"
            ) from error
    for name in _TEST_NAMES:
        try:
            return TrainingData(train=train, test=open_shards(address_inside(address, name)))
        except NotFoundError:
            continue
    return TrainingData(train=train, test=None)


def _write_shards(dataset: Dataset, location: Path | None, out: Path, progress: Progress) -> None:
    """Write the shards of both splits, except for those that exist."""
    for split in SPLITS:
        request = ShardRequest(
            store=Folder(path=out / split),
            source=DatasetSource(dataset=dataset.name, path=location, split=split),
            name=f"{dataset.name}-{split}",
            split=split,
            shard_size=dataset.shard_size,
            jobs=available_cores(),
        )
        try:
            make_shards(request, run=run_chunks, progress=progress)
        except PipelineError as error:
            if _shards_inside(dataset, location) is not None and not out.exists():
                raise _no_shards_error(dataset, location) from error
            raise


def hold_out(train: RemoteShards, fraction: float) -> tuple[RemoteShards, RemoteShards | None]:
    """Split shards into a training and a validation set.

    The last shards are held out: pixmix-shard shuffles samples over all shards.

    Args:
        train: all shards.
        fraction: fraction of the shards to hold out, 0..0.5; 0 for no validation set.

    Returns:
        The training set, and the validation set or None.

    Raises:
        PipelineError: if there are too few shards.
    """
    if fraction == 0:
        return train, None
    names = [shard.file for shard in train.shards.shards]
    n = max(1, round(fraction * len(names)))
    if n >= len(names):
        raise PipelineError(
            f"{train.shards.location} has {len(names)} shard, too few to hold one out for "
            "validation; make it again with --num-shards 20, or leave --val-fraction out"
        )
    return train.part(names[:-n]), train.part(names[-n:])


def outputs_for(shards: ShardSet, known: Sequence[str], outputs: int) -> Tensor | None:
    """Return the network output for each label of a test or validation set.

    Args:
        shards: the dataset, whose classes may be fewer or in another order than the network's.
        known: class name of each output of the network; empty if unknown.
        outputs: number of outputs of the network.

    Returns:
        (classes,) int64, or None if label i stands for output i.

    Raises:
        PipelineError: if the network lacks a class of the dataset, or images have no class.
    """
    labels = shards.samples["label"]
    if len(labels) and labels.min() < 0:
        raise PipelineError(
            f"{shards.location} has images without a class; use shards of images with classes"
        )
    if known and shards.classes:
        by_label = find_outputs(shards.classes, known, shards.location)
        return None if shards.classes == tuple(known) else torch.from_numpy(by_label)
    if len(labels) and labels.max() >= outputs:
        raise PipelineError(
            f"{shards.location} has {int(labels.max()) + 1} classes and the training set has "
            f"{outputs}; use a test set with the classes of the training set"
        )
    return None
