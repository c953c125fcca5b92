"""`pixmix-shard`: write, verify and index WebDataset shards of training and mixing images."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pipelines.cli.help_pages import Decorated, command_group, example, option
from pipelines.cli.options import (
    DATA,
    ERRORS,
    OUTPUT,
    LocalPath,
    PathOrUrl,
    command_options,
    in_order,
    jobs_option,
    one_line_errors,
    progress_bar,
    report_ignored,
    say,
    seed_option,
)
from pipelines.datasets import DATASETS, SMALL_SHARD, Dataset
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.shards.output import OutputStore
    from pipelines.shards.request import OnDecodeError, OnNonstandard
    from pipelines.shards.sharding import ShardResult
    from pipelines.shards.sources import Source

TRAIN_SHARD, TEST_SHARD = 1252, 782
"""Samples per shard: ImageNet becomes 1,024 and 64 shards, as in timm's copy on Hugging Face."""

_INTERRUPTED = "interrupted; run the same command again to resume"
_FAULTS_SHOWN = 20


@command_group(
    "pixmix-shard imagefolder imagenet shards/imagenet --name imagenet1k",
    "pixmix-shard mixing mixing-set/fractals mixing-set/featviz shards/mixing",
)
def main() -> None:
    """Write WebDataset shards of images, verify them, and index existing shards.

    The same source and options produce the same bytes, for any --jobs and after any interruption.
    Run the same command again to resume.
    """


@dataclass(frozen=True, kw_only=True)
class _SetOptions:
    """The options of all commands that write shards; the last three apply to image files."""

    num_shards: int | None
    shard_size: int | None
    seed: int
    dali_index: bool
    jobs: int | None
    on_nonstandard: "OnNonstandard" = "keep"
    on_decode_error: "OnDecodeError" = "raise"
    exif_transpose: bool = False


_OUT_HELP = "Output folder, or a URL that starts with s3://, gs:// or az://."


def _set_options(shard_size: str) -> Callable[[Decorated], Decorated]:
    """Return the decorator that adds the options of all commands that write shards.

    The command gets them as one `_SetOptions`.

    Args:
        shard_size: the default of --shard-size, for the help.
    """
    names = {field.name for field in fields(_SetOptions)}

    def decorate(command: Decorated) -> Decorated:
        @wraps(command)
        def with_options(**passed: Any) -> None:  # noqa: ANN401
            options = _SetOptions(**{name: passed.pop(name) for name in names & {*passed}})
            command(options=options, **passed)

        return cast(Decorated, add_all(jobs_option(command_options(with_options))))

    add_all = in_order(
        option(
            "--num-shards",
            group=OUTPUT,
            type=click.IntRange(1, 10**6),
            show_default="by --shard-size",
            help="Number of shards.",
        ),
        option(
            "--shard-size",
            group=OUTPUT,
            type=click.IntRange(1, 10**8),
            show_default=shard_size,
            help="Maximum number of samples per shard.",
        ),
        seed_option("Random seed of the order of the samples.", group=OUTPUT),
        option(
            "--dali-index",
            group=OUTPUT,
            is_flag=True,
            help="Also write index files for NVIDIA DALI.",
        ),
    )
    return decorate


_image_file_options = in_order(
    option(
        "--on-nonstandard",
        group=ERRORS,
        type=click.Choice(["keep", "convert", "skip", "raise"]),
        default="keep",
        help="What to do with nonstandard files: CMYK, 16 bits per channel, or a format that does "
        "not match the file name. convert writes 8-bit RGB.",
    ),
    option(
        "--on-decode-error",
        group=ERRORS,
        type=click.Choice(["raise", "skip"]),
        default="raise",
        help="What to do with images that cannot be decoded.",
    ),
    option(
        "--exif-transpose",
        group=DATA,
        is_flag=True,
        help="Rotate images by their EXIF orientation and encode them again. By default they are "
        "stored and read unrotated, as by torchvision's ImageFolder.",
    ),
)


@main.command(
    epilog=example(
        "pixmix-shard imagefolder imagenet shards/imagenet --name imagenet1k",
        "pixmix-shard imagefolder imagenet s3://bucket/imagenet --split val",
    )
)
@click.argument("src", type=LocalPath(), help="Folder with one folder per class, or with splits.")
@click.argument("out", type=PathOrUrl(exists=False), metavar="OUT", help=_OUT_HELP)
@option(
    "--split",
    group=DATA,
    show_default="all",
    help="Write only this split, one of the folders train, val, valid, validation, dev, eval and "
    "test of SRC.",
)
@option(
    "--name",
    group=OUTPUT,
    show_default="that of SRC",
    help="Name of the dataset, with which the shards' names start.",
)
@_image_file_options
@_set_options(f"{TRAIN_SHARD}; {TEST_SHARD} for validation and test splits")
def imagefolder(
    *,
    src: Path,
    out: Path | str,
    split: str | None,
    name: str | None,
    options: _SetOptions,
    as_json: bool,
) -> None:
    """Shard a folder of images that has one folder per class.

    If SRC has splits of that form, such as train and val, each becomes a folder in OUT. The bytes
    of image files are stored unchanged. Class names are stored in the manifest.
    """
    with one_line_errors(_INTERRUPTED):
        from pipelines.shards.sources import ImageFolderSource, find_splits
        from pipelines.shards.writer import join_splits

        if isinstance(out, Path) and out.resolve().is_relative_to(src.resolve()):
            raise PipelineError(
                f"{out} is inside {src} and would become one of its classes; use another OUT"
            )
        splits = find_splits(src, split)
        chosen = _chosen(src, splits, split)
        sources = [
            ImageFolderSource(folder=src / each if each else src, split=each) for each in chosen
        ]
        # All sources are checked before the first is written, which may take hours.
        for source in sources:
            if source.folder.is_dir():
                report_ignored(source.folder)
            source.check()
        results = []
        for each, source in zip(chosen, sources, strict=True):
            is_train = each in (None, "train")
            timm_name = "validation" if each in ("val", "valid") else each or "train"
            results.append(
                _shard(
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
        _print_results(results, as_json=as_json)


def _chosen(src: Path, splits: list[str], wanted: str | None) -> list[str | None]:
    """Return the splits to shard, or one None for a folder of classes without splits."""
    from pipelines.shards.images import class_folders

    if wanted is not None:
        if wanted not in splits:
            remedy = f"use one of {', '.join(splits)}" if splits else "omit --split"
            raise PipelineError(f"{src} has no split {wanted!r}; {remedy}")
        return [wanted]
    # The test set of ILSVRC has no class folders, because its labels are not public.
    if len(splits) > 1 and "test" in splits and not class_folders(src / "test"):
        click.echo(f"{src / 'test'} is skipped: it has no class folders, so no labels", err=True)
        return [split for split in splits if split != "test"]
    return [*splits] or [None]


def _command(dataset: Dataset) -> None:
    """Add the command of a dataset."""
    out = f"shards/{dataset.name}"

    def command(
        *, out: Path | str, src: Path | None = None, options: _SetOptions, as_json: bool
    ) -> None:
        with one_line_errors(_INTERRUPTED):
            _shard_dataset(dataset, src, out, options, as_json=as_json)

    command.__doc__ = (
        f"Shard {dataset.title} into OUT/train and OUT/test, as PNG.\n\n{dataset.about}"
    )
    decorated: Callable[..., Any] = click.argument(
        "out", type=PathOrUrl(exists=False), metavar="OUT", help=_OUT_HELP
    )(_set_options(str(SMALL_SHARD))(command))
    if not dataset.bundled:
        source = "Archive of the dataset, or a folder that has it."
        decorated = click.argument("src", type=LocalPath(), help=source)(decorated)
    words = (dataset.name, out) if dataset.bundled else (dataset.name, "downloads", out)
    main.command(dataset.name, epilog=example(f"pixmix-shard {' '.join(words)}"))(decorated)


def _shard_dataset(
    dataset: Dataset, src: Path | None, out: Path | str, options: _SetOptions, *, as_json: bool
) -> None:
    from pipelines.shards.archives import SPLITS
    from pipelines.shards.sources import DatasetSource
    from pipelines.shards.writer import join_splits

    results = [
        _shard(
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
    _print_results(results, as_json=as_json)


for _dataset in DATASETS.values():
    if _dataset.reader is not None:
        _command(_dataset)


@main.command(
    epilog=example(
        "pixmix-shard mixing mixing-set/fractals shards/mixing",
        "pixmix-shard mixing fractals_and_fvis.tar shards/paper",
    )
)
@click.argument(
    "src",
    type=LocalPath(),
    nargs=-1,
    required=True,
    help="Outputs of pixmix-gen, image folders, or archives of images.",
)
@click.argument("out", type=PathOrUrl(exists=False), metavar="OUT", help=_OUT_HELP)
@option(
    "--name",
    group=OUTPUT,
    default="mixing",
    help="Name of the dataset, with which the shards' names start.",
)
@_image_file_options
@_set_options(str(SMALL_SHARD))
def mixing(
    *, src: tuple[Path, ...], out: Path | str, name: str, options: _SetOptions, as_json: bool
) -> None:
    """Shard a mixing set from any number of sources.

    An archive is a tar (such as that of the PixMix paper), a zip, or a .npy array of (N, height,
    width, 3) uint8 (such as the 300K random images). Archives are not unpacked.
    """
    with one_line_errors(_INTERRUPTED):
        from pipelines.shards.sources import MixingSource

        for path in src:
            if path.is_dir():
                report_ignored(path)
        source = MixingSource(paths=src)
        result = _shard(
            source,
            _output(out),
            name=name,
            split="train",
            default_size=SMALL_SHARD,
            options=options,
        )
        _print_results([result], as_json=as_json)


@main.command(
    epilog=example(
        "pixmix-shard verify shards/mixing --decode all", "pixmix-shard verify s3://bucket/mixing"
    )
)
@click.argument(
    "folder",
    type=PathOrUrl(exists=False),
    metavar="DIR|URL",
    help="Shards. Those of a URL are downloaded and checked one after the other.",
)
@option(
    "--decode",
    default="100",
    metavar="N|all",
    help="Number of images to decode, spread over the dataset.",
)
@jobs_option
@command_options
def verify(*, folder: Path | str, decode: str, jobs: int | None, as_json: bool) -> None:
    """Verify shards against their manifest.

    Checks the hash and the members of each tar and the index, and decodes some images. The exit
    code is 1 if anything differs from the manifest.
    """
    if decode != "all" and not re.fullmatch(r"\d{1,12}", decode):
        raise click.BadParameter(
            f"{decode!r} is not a number of images; use a number, or all",
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
            f"{name}: {_count(len(verdict.faults), 'fault')}; copy these shards again, or delete "
            "them and repeat the command that wrote them"
            if verdict.faults
            else f"{name}: good; {verdict.n_samples:,} samples in "
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
@click.argument(
    "tars",
    type=LocalPath(),
    nargs=-1,
    required=True,
    help="Tar files of one folder; a name may have braces: train-{000..146}.tar.",
)
@option("--name", show_default="that of the folder", help="Name of the dataset.")
@command_options
def index(*, tars: tuple[Path, ...], name: str | None, as_json: bool) -> None:
    """Index WebDataset shards that another tool has written.

    Scans the tars, and writes an index and a manifest beside them. Labels are read from .cls, from
    "label" or "cls" in .json, or from .txt. The tars are not changed.
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
    """Return the name of a dataset, with only those characters that all readers accept."""
    base = name or re.sub(r"[^a-z0-9_]+", "-", src.resolve().name.lower()).strip("-") or "images"
    return f"{base}-{split}" if split else base


def _shard(
    source: "Source",
    store: "OutputStore",
    *,
    name: str,
    split: str,
    default_size: int,
    options: _SetOptions,
) -> "ShardResult":
    """Write one dataset. default_size: samples per shard if no option sets it."""
    from pipelines.shards.request import ShardRequest
    from pipelines.shards.sharding import make_shards
    from pipelines.system.processes import available_cores, run_chunks

    if options.num_shards is not None and options.shard_size is not None:
        raise click.UsageError("--num-shards and --shard-size exclude each other; pass one of them")
    size = None if options.num_shards is not None else options.shard_size or default_size
    chosen = asdict(options) | {"shard_size": size, "jobs": options.jobs or available_cores()}
    try:
        request = ShardRequest(store=store, source=source, name=name, split=split, **chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    # An image file is scanned and then written: two steps.
    with progress_bar("steps") as progress:
        return make_shards(request, run=run_chunks, progress=progress)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _print_results(results: "list[ShardResult]", *, as_json: bool) -> None:
    lines = []
    for result in results:
        line = (
            f"{result.location}: {result.n_samples:,} samples in "
            f"{_count(result.n_shards, 'shard')}, {result.n_bytes / 1e6:,.1f} MB; "
            f"{_count(result.written, 'shard')} new"
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
