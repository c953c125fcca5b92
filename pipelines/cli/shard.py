"""`pixmix-shard`: WebDataset tars for training and mixing sets, whole and verifiable."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pipelines.cli.options import (
    Command,
    LocalPath,
    Place,
    command_options,
    example,
    jobs_option,
    one_line_errors,
    progress_bar,
    report_ignored,
    say,
    seed_option,
)
from pipelines.cli.suggestions import SuggestingGroup
from pipelines.datasets import DATASETS, SMALL_SHARD, Dataset
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.shards.output import OutputStore
    from pipelines.shards.request import OnDecodeError, OnNonstandard
    from pipelines.shards.sharding import ShardResult
    from pipelines.shards.sources import Source

TRAIN_SHARD, TEST_SHARD = 1252, 782
"""Samples a shard: ImageNet becomes 1,024 and 64 shards, as timm has them."""

_INTERRUPTED = "interrupted; the same command resumes this set"
_FAULTS_SHOWN = 20


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "pixmix-shard imagefolder imagenet shards/imagenet --name imagenet1k",
        "pixmix-shard mixing mixing-set/fractals mixing-set/featviz shards/mixing",
    ),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Make WebDataset tars of images, verify them, and index tars made elsewhere.

    The same source and options give the same bytes, for any --jobs and after any interruption. A
    killed command is resumed by the same command.
    """


@dataclass(frozen=True, kw_only=True)
class _SetOptions:
    """What all commands that make shards have, and those for files that others made."""

    num_shards: int | None
    shard_size: int | None
    seed: int
    dali_index: bool
    jobs: int | None
    on_nonstandard: "OnNonstandard" = "keep"
    on_decode_error: "OnDecodeError" = "raise"
    exif_transpose: bool = False


def _set_options(command: Command) -> Command:
    """Add the options of all commands that make shards, which it gets as one `_SetOptions`."""
    names = {field.name for field in fields(_SetOptions)}

    @wraps(command)
    def collected(**given: Any) -> None:  # noqa: ANN401
        options = _SetOptions(**{name: given.pop(name) for name in names & {*given}})
        command(options=options, **given)

    options = [
        click.option(
            "--num-shards", type=click.IntRange(1, 10**6), help="Shards, instead of --shard-size."
        ),
        click.option(
            "--shard-size",
            type=click.IntRange(1, 10**8),
            help="Samples a shard, at most.  [default: 1252; 782 for validation and test, 1000 for "
            "small images and mixing sets]",
        ),
        seed_option("Seed of the shuffle before the samples are written."),
        click.option("--dali-index", is_flag=True, help="Also write NVIDIA DALI's .idx files."),
    ]
    # The last added comes first in the help.
    decorated: Any = jobs_option(command_options(collected))
    for option in reversed(options):
        decorated = option(decorated)
    return cast(Command, decorated)


def _foreign_options(command: Command) -> Command:
    """Add what becomes of files that others made."""
    command = click.option(
        "--exif-transpose",
        is_flag=True,
        help="Rotate images as their EXIF orientation says, and encode those again; by default "
        "they stay as they are stored, and readers see them so, as torchvision's ImageFolder does.",
    )(command)
    command = click.option(
        "--on-decode-error",
        type=click.Choice(["raise", "skip"]),
        default="raise",
        show_default=True,
        help="What to do with images that cannot be decoded.",
    )(command)
    return click.option(
        "--on-nonstandard",
        type=click.Choice(["keep", "convert", "skip", "raise"]),
        default="keep",
        show_default=True,
        help="What to do with images that are CMYK, have 16 bits a channel or are of another "
        "format than their name says.",
    )(command)


@main.command(
    epilog=example(
        "pixmix-shard imagefolder imagenet shards/imagenet --name imagenet1k",
        "pixmix-shard imagefolder imagenet shards/imagenet --split val",
    )
)
@click.argument("src", type=LocalPath())
@click.argument("out", type=Place(exists=False), metavar="OUT")
@click.option(
    "--split",
    help="Only this one of SRC's folders train, val, valid, validation, dev, eval and test.",
)
@click.option("--name", help="Name of the set, in the tars' names.  [default: that of SRC]")
@_foreign_options
@_set_options
def imagefolder(
    *,
    src: Path,
    out: Path | str,
    split: str | None,
    name: str | None,
    options: _SetOptions,
    as_json: bool,
) -> None:
    """Shard a folder with a folder a class, or its splits, each into a folder of OUT.

    The bytes of the files stay as they are; class names go into the manifest.
    """
    with one_line_errors(_INTERRUPTED):
        from pipelines.shards.sources import ImageFolderSource, find_splits
        from pipelines.shards.writer import join_splits

        if isinstance(out, Path) and out.resolve().is_relative_to(src.resolve()):
            raise PipelineError(
                f"{out} is inside {src} and would become one of its classes; choose another OUT"
            )
        splits = find_splits(src, split)
        chosen = _chosen(src, splits, split)
        sources = [
            ImageFolderSource(folder=src / each if each else src, split=each) for each in chosen
        ]
        # All of them before the first is written, which may take hours.
        for source in sources:
            if source.folder.is_dir():
                report_ignored(source.folder)
            source.check()
        results = []
        for each, source in zip(chosen, sources, strict=True):
            is_train = each in (None, "train")
            timm_name = "validation" if each in ("val", "valid") else each or "train"
            results.append(
                _make(
                    source,
                    _output(out, each),
                    name=_set_name(name, src, timm_name if each else None),
                    split=timm_name,
                    default_size=TRAIN_SHARD if is_train else TEST_SHARD,
                    options=options,
                )
            )
        if splits:
            join_splits(_output(out), splits)
        _say_made(results, as_json=as_json)


def _chosen(src: Path, splits: list[str], wanted: str | None) -> list[str | None]:
    """Return the splits that are sharded, of those in a folder; one None if it has classes."""
    from pipelines.shards.images import class_folders

    if wanted is not None:
        if wanted not in splits:
            there = ", ".join(splits) or "none"
            raise PipelineError(f"{src} has no split {wanted!r} (there: {there}); name one of them")
        return [wanted]
    # As ILSVRC's: flat, for its labels are not public.
    if len(splits) > 1 and "test" in splits and not class_folders(src / "test"):
        click.echo(f"{src / 'test'} is skipped: it has no folder a class, so no labels", err=True)
        return [split for split in splits if split != "test"]
    return [*splits] or [None]


def _command(dataset: Dataset) -> None:
    """Add the command of a dataset that has a reader."""
    out = f"shards/{dataset.name}"

    def command(
        *, out: Path | str, src: Path | None = None, options: _SetOptions, as_json: bool
    ) -> None:
        with one_line_errors(_INTERRUPTED):
            _shard_dataset(dataset, src, out, options, as_json=as_json)

    command.__doc__ = (
        f"Shard {dataset.title} into OUT/train and OUT/test, as PNG.\n\n{dataset.about}"
    )
    decorated: Callable[..., Any] = click.argument("out", type=Place(exists=False), metavar="OUT")(
        _set_options(command)
    )
    if not dataset.bundled:
        decorated = click.argument("src", type=LocalPath())(decorated)
    words = (dataset.name, out) if dataset.bundled else (dataset.name, "downloads", out)
    main.command(dataset.name, epilog=example(f"pixmix-shard {' '.join(words)}"))(decorated)


def _shard_dataset(
    dataset: Dataset, src: Path | None, out: Path | str, options: _SetOptions, *, as_json: bool
) -> None:
    from pipelines.shards.archives import SPLITS
    from pipelines.shards.sources import DatasetSource
    from pipelines.shards.writer import join_splits

    results = [
        _make(
            DatasetSource(dataset=dataset.name, path=src, split=split),
            _output(out, split),
            name=f"{dataset.name}-{split}",
            split=split,
            default_size=SMALL_SHARD,
            options=options,
        )
        for split in SPLITS
    ]
    join_splits(_output(out), SPLITS)
    _say_made(results, as_json=as_json)


for _dataset in DATASETS.values():
    if _dataset.reader is not None:
        _command(_dataset)


@main.command(
    epilog=example(
        "pixmix-shard mixing mixing-set/fractals shards/mixing",
        "pixmix-shard mixing fractals_and_fvis.tar shards/paper",
    )
)
@click.argument("src", type=LocalPath(), nargs=-1, required=True)
@click.argument("out", type=Place(exists=False), metavar="OUT")
@click.option("--name", default="mixing", show_default=True, help="Name of the set.")
@_foreign_options
@_set_options
def mixing(
    *, src: tuple[Path, ...], out: Path | str, name: str, options: _SetOptions, as_json: bool
) -> None:
    """Shard mixing images: sets of pixmix-gen, folders, or archives of images.

    An archive is a tar, such as the paper's, a zip, or a .npy of (N, height, width, 3) uint8, such
    as the 300K random images. Nothing is unpacked.
    """
    with one_line_errors(_INTERRUPTED):
        from pipelines.shards.sources import MixingSource

        for place in src:
            if place.is_dir():
                report_ignored(place)
        source = MixingSource(paths=src)
        result = _make(
            source,
            _output(out),
            name=name,
            split="train",
            default_size=SMALL_SHARD,
            options=options,
        )
        _say_made([result], as_json=as_json)


@main.command(
    epilog=example(
        "pixmix-shard verify shards/mixing --decode all", "pixmix-shard verify s3://bucket/mixing"
    )
)
@click.argument("folder", type=Place(exists=False))
@click.option(
    "--decode",
    default="100",
    show_default=True,
    metavar="N|all",
    help="Number of images to decode, spread over the set.",
)
@jobs_option
@command_options
def verify(*, folder: Path | str, decode: str, jobs: int | None, as_json: bool) -> None:
    """Hash all shards again, walk through the tars, compare the index, decode images.

    FOLDER may be a URL: each shard is downloaded, checked and removed. Exits with 1 if anything is
    not as the manifest says.
    """
    if decode != "all" and not re.fullmatch(r"\d{1,12}", decode):
        raise click.BadParameter(
            f"{decode!r} is not a number; pass a number of images, or all",
            param_hint="'--decode'",
        )
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.shards.verify import verify_shards
        from pipelines.system.objects import shown
        from pipelines.system.processes import available_cores

        with progress_bar("samples") as progress:
            verdict = verify_shards(
                folder,
                decode=None if decode == "all" else int(decode),
                jobs=jobs or available_cores(),
                progress=progress,
            )
        name = shown(folder) if isinstance(folder, str) else folder
        for fault in verdict.faults[:_FAULTS_SHOWN]:
            click.echo(fault, err=True)
        more = len(verdict.faults) - _FAULTS_SHOWN
        if more > 0:
            click.echo(f"... and {more} more", err=True)
        for reason, count in verdict.ignored.items():
            click.echo(f"{count} members: {reason}", err=True)
        text = (
            f"{name}: {_count(len(verdict.faults), 'fault')}; copy these shards again, or remove "
            "them and run the command that made the set again"
            if verdict.faults
            else f"{name}: whole; {verdict.n_samples:,} samples in "
            f"{_count(verdict.n_shards, 'shard')}, "
            f"{verdict.n_bytes / 1e6:,.1f} MB, {verdict.decoded:,} decoded"
        )
        say(text, asdict(verdict), as_json=as_json)
        if verdict.faults:
            raise click.exceptions.Exit(1)


@main.command(
    epilog=example(
        "pixmix-shard index shards/other/*.tar",
        "pixmix-shard index 'shards/other/train-{000..146}.tar'",
    )
)
@click.argument("tars", type=LocalPath(), nargs=-1, required=True)
@click.option("--name", help="Of the set.  [default: that of the folder]")
@command_options
def index(*, tars: tuple[Path, ...], name: str | None, as_json: bool) -> None:
    """Index tars that were made elsewhere: scan them and write index and manifest beside them.

    Labels are read from .cls, "label" or "cls" in .json, or .txt. The tars stay as they are.
    """
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.shards.format import expand_braces
        from pipelines.shards.verify import index_tars

        named = [tar.parent / file for tar in tars for file in expand_braces(tar.name)]
        with progress_bar("tars") as progress:
            found = index_tars(named, name=name, progress=progress)
        lines = [
            f"{found.folder}: {found.n_samples:,} samples in {_count(found.n_shards, 'shard')}, "
            f"{found.labels:,} with a label"
        ]
        lines += [
            f"{count:,} members: {reason} (as {found.examples[reason]})"
            for reason, count in found.ignored.items()
        ]
        say("\n".join(lines), _plain(found), as_json=as_json)


def _output(out: Path | str, split: str | None = None) -> "OutputStore":
    """Return the output store of OUT, or of the folder of a split in it."""
    from pipelines.shards.output import open_output
    from pipelines.system.objects import address_inside

    return open_output(address_inside(str(out), split) if split else str(out), option="OUT")


def _set_name(name: str | None, src: Path, split: str | None) -> str:
    """Return the name of a set, which only has the letters that all readers take."""
    base = name or re.sub(r"[^a-z0-9_]+", "-", src.resolve().name.lower()).strip("-") or "images"
    return f"{base}-{split}" if split else base


def _make(
    source: "Source",
    store: "OutputStore",
    *,
    name: str,
    split: str,
    default_size: int,
    options: _SetOptions,
) -> "ShardResult":
    """Make one set. default_size: samples a shard where the options do not say."""
    from pipelines.shards.request import ShardRequest
    from pipelines.shards.sharding import make_shards
    from pipelines.system.processes import available_cores, run_chunks

    if options.num_shards is not None and options.shard_size is not None:
        raise click.UsageError("--num-shards and --shard-size exclude each other; pass one")
    size = None if options.num_shards is not None else options.shard_size or default_size
    chosen = asdict(options) | {"shard_size": size, "jobs": options.jobs or available_cores()}
    try:
        request = ShardRequest(store=store, source=source, name=name, split=split, **chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    # An image that others made is scanned and written: two steps.
    with progress_bar("steps") as progress:
        return make_shards(request, run=run_chunks, progress=progress)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _say_made(results: "list[ShardResult]", *, as_json: bool) -> None:
    lines = []
    for result in results:
        line = (
            f"{result.location}: {result.n_samples:,} samples in "
            f"{_count(result.n_shards, 'shard')}, {result.n_bytes / 1e6:,.1f} MB; "
            f"{_count(result.written, 'shard')} written now"
        )
        if result.skipped:
            line += f"; {_count(result.skipped, 'image')} skipped"
        lines.append(line)
        lines += [
            f"  {count:,} {kind}: {reason}"
            for kind, reasons in result.scan.items()
            for reason, count in reasons.items()
        ]
    say("\n".join(lines), {"sets": [_plain(result) for result in results]}, as_json=as_json)


def _plain(result: Any) -> dict[str, Any]:  # noqa: ANN401  a dataclass
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(result).items()
    }


if __name__ == "__main__":
    main()
