"""What a training is given: shards, here or at an address, or made of what torchvision has."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import PipelineError
from pipelines.loading.mixing_set import image_source
from pipelines.loading.remote_sets import Remote, open_set
from pipelines.models.opening import first_weights
from pipelines.models.outputs import outputs_of
from pipelines.shards.cifar import CifarSource
from pipelines.shards.connections import NotThereError, shown
from pipelines.shards.digits import DigitsSource
from pipelines.shards.index import MANIFEST_NAME, ShardSet
from pipelines.shards.remote import RemoteShards, address_inside, names_shards
from pipelines.shards.request import ShardRequest
from pipelines.shards.sources import Source
from pipelines.shards.write import make_shards
from pipelines.system.files import check_no_file
from pipelines.system.processes import available_cores, run_chunks
from pipelines.system.progress import Progress
from pipelines.training.checkpoints import find_checkpoints

Dataset = Literal["cifar10", "cifar100", "digits", "imagenet", "folder"]

Split = Literal["train", "test"]

_TEST_NAMES = ("test", "val", "valid", "validation", "dev", "eval")
_SMALL_SHARD = 1000
_OFFICIAL = ("cifar10", "cifar100", "digits")

_WHERE = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
}


@dataclass(frozen=True, kw_only=True)
class Data:
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
        first_weights(weights)
    for each in mixing_sets:
        if len(image_source(each, cache_dir=cache_dir, remote=remote)) == 0:
            raise PipelineError(f"{each} holds no images to mix with; name another --mixing-set")


def find_data(
    dataset: Dataset,
    place: Path | str | None,
    made: Path,
    progress: Progress,
    *,
    maker: bool = True,
    cache_dir: Path | None = None,
    remote: Remote | None = None,
) -> Data:
    """Open the data of a training.

    Args:
        dataset: which.
        place: shards as pixmix-shard makes them, with their splits in folders, in a folder or, as
            text, at an address; of CIFAR also the official archive or what torchvision made of it.
            None is for the digits alone.
        made: folder where shards are made, if they have to be.
        progress: of making them, a split after the other.
        maker: whether this process makes them; others open what it made.
        cache_dir: of remote shards; see `open_mixing_set`.
        remote: how they are read; None for the defaults.

    Raises:
        PipelineError: if there is nothing to train on.
        OSError: if it cannot be read.
    """
    if place is None and dataset != "digits":
        raise PipelineError(f"{dataset} is not said to be anywhere; name its folder with --data")
    opened = partial(open_set, cache_dir=cache_dir, remote=remote)
    if isinstance(place, str):
        return _fitting(dataset, _open_address(place, opened))
    if place is not None and (place / "train" / MANIFEST_NAME).exists():
        return _fitting(dataset, _open(place, opened))
    if place is not None and (place / MANIFEST_NAME).exists():
        return _fitting(dataset, Data(train=opened(place), test=None))
    source = _source_of(dataset, place)
    if source is None:
        raise _no_shards(dataset, place)
    if maker:
        _make(source, dataset, place, made, progress)
    elif not (made / "train" / MANIFEST_NAME).exists():
        raise PipelineError(
            f"{made} has no shards: process 0 made them on its own host; make them once by "
            f"pixmix-shard {dataset} and give every host --data, or an --out that all share"
        )
    return _open(made, opened)


def _no_shards(dataset: Dataset, place: Path | None) -> PipelineError:
    """Return what to say of a folder that has no shards."""
    inside = _set_inside(dataset, place)
    if inside is not None:
        remedy = f"and {inside} has; give --data {inside}"
    elif dataset == "digits":
        remedy = "leave --data out, and they are made; or make them first: pixmix-shard digits OUT"
    else:
        remedy = (
            "make shards of your pictures first: pixmix-shard imagefolder SRC OUT, and give "
            "--data OUT"
        )
    return PipelineError(f"{place} has no train/{MANIFEST_NAME}{',' if inside else ';'} {remedy}")


def _set_inside(dataset: Dataset, place: Path | None) -> Path | None:
    """Return shards that lie one level down: those of the data set's name, or the only ones."""
    if place is None or not place.is_dir():
        return None
    found = sorted(each.parent.parent for each in place.glob(f"*/train/{MANIFEST_NAME}"))
    named = [each for each in found if each.name == dataset]
    chosen = named or found
    return chosen[0] if len(chosen) == 1 else None


def _source_of(dataset: Dataset, place: Path | None) -> Callable[[Split], Source] | None:
    """Return what shards are to be made of, where they are to be made."""
    if dataset in ("cifar10", "cifar100") and place is not None:
        return partial(_cifar_source, place, dataset)
    if dataset == "digits" and place is None:
        return lambda split: DigitsSource(split=split)
    return None


def _cifar_source(
    place: Path, dataset: Literal["cifar10", "cifar100"], split: Split
) -> CifarSource:
    return CifarSource(place=place, dataset=dataset, split=split)


def _fitting(dataset: Dataset, data: Data) -> Data:
    """Return data that can be of a data set, and refuse others."""
    train = data.train.shards
    if train.kind in _OFFICIAL and train.kind != dataset and dataset != "folder":
        raise PipelineError(
            f"{train.location} is {train.kind} and not {dataset}; say pixmix-train {train.kind}, "
            "or name other --data"
        )
    if len(train) and int(train.samples["label"].min()) < 0:
        raise PipelineError(
            f"{train.location} has pictures without a class, as a mixing set has; name shards of "
            "pixmix-shard imagefolder"
        )
    return data


Opened = Callable[[Path | str], RemoteShards]


def _open(place: Path, opened: Opened) -> Data:
    tests = [place / name for name in _TEST_NAMES if (place / name / MANIFEST_NAME).exists()]
    return Data(train=opened(place / "train"), test=opened(tests[0]) if tests else None)


def _open_address(address: str, opened: Opened) -> Data:
    """Open ADDRESS/train and, where there is one, a test set beside it; or ADDRESS as a set."""
    if names_shards(address):
        return Data(train=opened(address), test=None)
    try:
        train = opened(address_inside(address, "train"))
    except NotThereError:
        try:
            return Data(train=opened(address), test=None)
        except NotThereError as error:
            raise PipelineError(
                f"{shown(address)} has neither train/{MANIFEST_NAME} nor {MANIFEST_NAME} to be "
                f"read; check the address and the credentials ({error})"
            ) from error
    for name in _TEST_NAMES:
        try:
            return Data(train=train, test=opened(address_inside(address, name)))
        except NotThereError:
            continue
    return Data(train=train, test=None)


def _make(
    source: Callable[[Split], Source],
    dataset: Dataset,
    place: Path | None,
    made: Path,
    progress: Progress,
) -> None:
    """Make shards, or find them made."""
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        request = ShardRequest(
            folder=made / split,
            source=source(split),
            name=f"{dataset}-{split}",
            split=split,
            shard_size=_SMALL_SHARD if dataset != "digits" else 144,
            jobs=available_cores(),
        )
        try:
            make_shards(request, run=run_chunks, progress=progress)
        except PipelineError as error:
            if _set_inside(dataset, place) is not None and not made.exists():
                raise _no_shards(dataset, place) from error
            if dataset in _WHERE and not made.exists():
                raise PipelineError(f"{error}; it is at {_WHERE[dataset]}") from error
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
            "validation; make it again with --num-shards 20, or leave --validation-share out"
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
            f"{shards.location} has pictures without a class; make shards of pictures with classes"
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
