"""What a training is given: shards, here or at an address, or made of what torchvision has."""

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
from pipelines.models.outputs import outputs_of
from pipelines.shards.archives import SPLITS
from pipelines.shards.format import MANIFEST_NAME, ShardSet
from pipelines.shards.remote import Remote, RemoteShards, names_shards, open_set
from pipelines.shards.request import ShardRequest
from pipelines.shards.sharding import make_shards
from pipelines.shards.sources import DatasetSource
from pipelines.system.files import check_no_file
from pipelines.system.objects import NotFoundError, address_inside, shown
from pipelines.system.processes import available_cores, run_chunks
from pipelines.system.progress import Progress
from pipelines.training.checkpoints import find_checkpoints

_TEST_NAMES = ("test", "val", "valid", "validation", "dev", "eval")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Shards to train on and, where there are such, to test on."""

    train: RemoteShards
    test: RemoteShards | None


def check_inputs(
    out: Path,
    mixing_sets: Sequence[Path | str],
    *,
    weights: Path | None = None,
    cache_dir: Path | None = None,
    remote: Remote | None = None,
) -> None:
    """Look for what a training would miss, before anything is read or made.

    Args:
        out: the folder of results, which need not be there; none is made.
        mixing_sets: see `image_source`.
        weights: to begin with, which are not read where a checkpoint in `out` has others.
        cache_dir: of remote shards; see `open_mixing_set`.
        remote: how they are read; None for the defaults.

    Raises:
        PipelineError: if a mixing set is not there or has no images, `out` is in a file, or the
            weights cannot be read.
        OSError: if `out` cannot be written, or a mixing set cannot be read.
    """
    check_no_file(out / "checkpoints", "--out")
    there = next(each for each in (out, *out.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=there):
        pass
    if weights is not None and not find_checkpoints(out):
        read_initial_weights(weights)
    for each in mixing_sets:
        if len(image_source(each, cache_dir=cache_dir, remote=remote)) == 0:
            raise PipelineError(f"{each} holds no images to mix with; name another --mixing-set")


def open_training_data(
    name: str,
    place: Path | str | None,
    made: Path,
    progress: Progress,
    *,
    maker: bool = True,
    cache_dir: Path | None = None,
    remote: Remote | None = None,
) -> TrainingData:
    """Open the data of a training.

    Args:
        name: of a dataset of the table.
        place: shards as pixmix-shard makes them, with their splits in folders, in a folder or, as
            text, at an address; of CIFAR also the official archive or what torchvision made of it.
            None is for the datasets that come with a library.
        made: folder where shards are made, if they have to be.
        progress: of making them, a split after the other.
        maker: whether this process makes them; others open what it made.
        cache_dir: of remote shards; see `open_mixing_set`.
        remote: how they are read; None for the defaults.

    Raises:
        PipelineError: if the dataset is not known, or there is nothing to train on.
        OSError: if it cannot be read.
    """
    dataset = dataset_named(name)
    if place is None and not dataset.bundled:
        raise PipelineError(f"{name} is not said to be anywhere; name its folder with --data")
    opened = partial(open_set, cache_dir=cache_dir, remote=remote)
    if isinstance(place, str):
        return _fitting(dataset, _open_address(place, opened))
    if place is not None and (place / "train" / MANIFEST_NAME).exists():
        return _fitting(dataset, _open(place, opened))
    if place is not None and (place / MANIFEST_NAME).exists():
        return _fitting(dataset, TrainingData(train=opened(place), test=None))
    if dataset.reader is None or (dataset.bundled and place is not None):
        raise _no_shards(dataset, place)
    if maker:
        _make(dataset, place, made, progress)
    elif not (made / "train" / MANIFEST_NAME).exists():
        raise PipelineError(
            f"{made} has no shards: process 0 made them on its own host; make them once by "
            f"pixmix-shard {name} and give every host --data, or an --out that all share"
        )
    return _open(made, opened)


def _no_shards(dataset: Dataset, place: Path | None) -> PipelineError:
    """Return what to say of a folder that has no shards."""
    inside = _set_inside(dataset, place)
    if inside is not None:
        remedy = f"and {inside} has; give --data {inside}"
    elif dataset.bundled:
        remedy = (
            "leave --data out, and they are made; or make them first: "
            f"pixmix-shard {dataset.name} OUT"
        )
    else:
        remedy = (
            "make shards of your images first: pixmix-shard imagefolder SRC OUT, and give "
            "--data OUT"
        )
    return PipelineError(f"{place} has no train/{MANIFEST_NAME}{',' if inside else ';'} {remedy}")


def _set_inside(dataset: Dataset, place: Path | None) -> Path | None:
    """Return shards that lie one level down: those of the data set's name, or the only ones."""
    if place is None or not place.is_dir():
        return None
    found = sorted(each.parent.parent for each in place.glob(f"*/train/{MANIFEST_NAME}"))
    named = [each for each in found if each.name == dataset.name]
    chosen = named or found
    return chosen[0] if len(chosen) == 1 else None


def _fitting(dataset: Dataset, data: TrainingData) -> TrainingData:
    """Return data that can be of a data set, and refuse others."""
    train = data.train.shards
    is_other = dataset_of_kind(train.kind) not in (None, dataset)
    if is_other and dataset.n_classes is not None:
        raise PipelineError(
            f"{train.location} is {train.kind} and not {dataset.name}; use pixmix-train "
            f"{train.kind}, or name other --data"
        )
    if len(train) and int(train.samples["label"].min()) < 0:
        raise PipelineError(
            f"{train.location} has images without a class, as a mixing set has; name shards of "
            "pixmix-shard imagefolder"
        )
    return data


Opened = Callable[[Path | str], RemoteShards]


def _open(place: Path, opened: Opened) -> TrainingData:
    tests = [place / name for name in _TEST_NAMES if (place / name / MANIFEST_NAME).exists()]
    return TrainingData(train=opened(place / "train"), test=opened(tests[0]) if tests else None)


def _open_address(address: str, opened: Opened) -> TrainingData:
    """Open ADDRESS/train and, where there is one, a test set beside it; or ADDRESS as a set."""
    if names_shards(address):
        return TrainingData(train=opened(address), test=None)
    try:
        train = opened(address_inside(address, "train"))
    except NotFoundError:
        try:
            return TrainingData(train=opened(address), test=None)
        except NotFoundError as error:
            raise PipelineError(
                f"{shown(address)} has neither train/{MANIFEST_NAME} nor {MANIFEST_NAME} to be "
                f"read; check the address and the credentials ({error})"
            ) from error
    for name in _TEST_NAMES:
        try:
            return TrainingData(train=train, test=opened(address_inside(address, name)))
        except NotFoundError:
            continue
    return TrainingData(train=train, test=None)


def _make(
    dataset: Dataset,
    place: Path | None,
    made: Path,
    progress: Progress,
) -> None:
    """Make shards, or find them made."""
    for split in SPLITS:
        request = ShardRequest(
            folder=made / split,
            source=DatasetSource(dataset=dataset.name, place=place, split=split),
            name=f"{dataset.name}-{split}",
            split=split,
            shard_size=dataset.shard_size,
            jobs=available_cores(),
        )
        try:
            make_shards(request, run=run_chunks, progress=progress)
        except PipelineError as error:
            if _set_inside(dataset, place) is not None and not made.exists():
                raise _no_shards(dataset, place) from error
            raise


def hold_out(train: RemoteShards, share: float) -> tuple[RemoteShards, RemoteShards | None]:
    """Part a set into shards to train on and shards to choose the best network by.

    share: of the shards that are held out, 0..0.5; 0 holds nothing out. pixmix-shard has mixed the
    samples over the shards, so the last ones are as good as any.

    Raises:
        PipelineError: if there are too few shards.
    """
    if share == 0:
        return train, None
    names = [shard.file for shard in train.shards.shards]
    n = max(1, round(share * len(names)))
    if n >= len(names):
        raise PipelineError(
            f"{train.shards.location} has {len(names)} shard, of which none can be held out for "
            "validation; make it again with --num-shards 20, or leave --val-fraction out"
        )
    return train.part(names[:-n]), train.part(names[-n:])


def outputs_for(shards: ShardSet, known: Sequence[str], outputs: int) -> Tensor | None:
    """Return the output that stands for each label of a set; None: output i for label i.

    Args:
        shards: of a test or a validation set, whose classes may be fewer, or in another order.
        known: names of the network's classes by output; or nothing.
        outputs: how many it has.

    Raises:
        PipelineError: if the set has a class that the network has not, or none.
    """
    given = shards.samples["label"]
    if len(given) and given.min() < 0:
        raise PipelineError(
            f"{shards.location} has images without a class; make shards of images with classes"
        )
    if known and shards.classes:
        places = outputs_of(shards.classes, known, shards.location)
        return None if shards.classes == tuple(known) else torch.from_numpy(places)
    if len(given) and given.max() >= outputs:
        raise PipelineError(
            f"{shards.location} has {int(given.max()) + 1} classes and the training set {outputs}; "
            "test on the classes that are trained"
        )
    return None
