"""What the commands of `pixmix-gen` share: options, where a dataset goes, what is told of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    SHEET_IMAGES,
    Size,
    chosen_task,
    command_options,
    file_option,
    jobs_option,
    one_line_errors,
    progress_bar,
    say,
    seed_option,
    task_options,
)
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.generate.generator import Generator
    from pipelines.generate.ray import RayCluster
    from pipelines.shards.job import Job, JobResult
    from pipelines.shards.output import OutputStore
    from pipelines.system.processes import RunChunks

# As in encoding.ENCODERS, which would take half a second to import for the help; a test holds them
# equal.
FORMATS = ("jpg", "png", "webp")
SHARD_SIZE = 1000

_ALL_OF_A_CLUSTER = 10**9
"""Tasks at once: as many as it can run."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """The options that every kind of dataset has. shard_size: None for image files."""

    name: str
    out: str
    shard_size: int | None
    n: int
    size: tuple[int, int]
    seed: int
    format: str
    jobs: int | None
    address: str | None
    sheet: Path | None
    task_index: int | None
    num_tasks: int | None
    as_json: bool


@dataclass
class Site:
    """Where images are generated. cluster: of --ray; jobs: processes, or tasks of the cluster."""

    store: "OutputStore"
    cluster: "RayCluster | None"
    jobs: int

    def jobs_that_share(self) -> int:
        """Return how many processes share the memory of a machine, or of a GPU."""
        if self.cluster is None:
            return self.jobs
        from pipelines.system.processes import available_cores

        gpus = self.cluster.num_gpus
        return max(1, int(1 / gpus)) if gpus else available_cores()


Command = Callable[..., None]


def output_options(n: int, name: str | None) -> Callable[[Command], Command]:
    """Add the options that every kind of dataset has, which the command gets as an `Output`.

    Args:
        n: the default number of images.
        name: of the dataset, None for the value of the command's --kind.
    """
    shown = name or "KIND"

    def add(command: Command) -> Command:
        @wraps(command)
        def with_output(
            *,
            n: int,
            out: str | None,
            to_shards: bool,
            shard_size: int | None,
            size: tuple[int, int],
            seed: int,
            format: str,
            jobs: int | None,
            address: str | None,
            sheet: Path | None,
            task_index: int | None,
            num_tasks: int | None,
            as_json: bool,
            **others: Any,  # noqa: ANN401, those of the command
        ) -> None:
            own = name or others["kind"]
            check = _check_shards if to_shards else _check_files
            output = Output(
                name=own,
                out=check(own, out, shard_size, sheet, absolute=address is not None),
                shard_size=(shard_size or SHARD_SIZE) if to_shards else None,
                n=n,
                size=size,
                seed=seed,
                format=format,
                jobs=jobs,
                address=address,
                sheet=sheet,
                task_index=task_index,
                num_tasks=num_tasks,
                as_json=as_json,
            )
            if address is not None and not (task_index is None and num_tasks is None):
                raise click.UsageError(
                    "--ray shares the work among machines itself; leave out --task-index and "
                    "--num-tasks"
                )
            command(output, **others)

        decorated: Command = task_options(command_options(with_output))
        # The last is shown first.
        for option in reversed(_options(n, shown)):
            decorated = option(decorated)
        return decorated

    return add


def _options(n: int, name: str) -> list[Callable[[Command], Command]]:
    return [
        click.option(
            "--n",
            type=click.IntRange(1, 10**8),
            default=n,
            show_default=True,
            help="Number of images. A larger n later makes a dataset of files grow; a smaller one "
            "closes a dataset that is not complete, with the images that are whole.",
        ),
        click.option(
            "--out",
            metavar="DIR|URL",
            help="Folder of the dataset; with --to-shards also s3://... or gs://... The same "
            f"command resumes what is there.  [default: mixing-set/{name}, or shards/{name}]",
        ),
        click.option(
            "--to-shards",
            is_flag=True,
            help="Write WebDataset tars, as pixmix-shard mixing makes of images, and no image "
            "files. Several tasks are closed by pixmix-gen merge.",
        ),
        click.option(
            "--shard-size",
            type=click.IntRange(1, 10**8),
            help="Images a shard, at most, which a process makes in one go.  [default: "
            f"{SHARD_SIZE}]",
        ),
        click.option(
            "--size",
            type=Size(),
            default="256",
            show_default=True,
            metavar="PIXELS|WIDTHxHEIGHT",
            help="Size of each image in pixels; one number for a square.",
        ),
        seed_option("Another seed gives other images."),
        click.option(
            "--format",
            type=click.Choice(FORMATS),
            default=FORMATS[0],
            show_default=True,
            help="jpg has quality 95 and 4:4:4; png and webp are lossless.",
        ),
        jobs_option,
        click.option(
            "--ray",
            "address",
            is_flag=False,
            flag_value="",
            metavar="[ADDRESS]",
            help="Generate as tasks of a Ray cluster: at an address as ray start prints it, that "
            "of RAY_ADDRESS or of this machine, or one that is started here. --jobs is then the "
            "number of tasks at once.  [default: no cluster; all tasks that it can run]",
        ),
        file_option(
            "--contact-sheet",
            metavar="SHEET.png",
            text=f"Also write a contact sheet of {SHEET_IMAGES} images.",
        ),
    ]


def _check_files(
    name: str, out: str | None, shard_size: int | None, sheet: Path | None, *, absolute: bool
) -> str:
    """Return the folder of image files, absolute where other processes are to find it, too."""
    from pipelines.system.objects import is_remote, shown

    if shard_size is not None:
        raise click.UsageError("--shard-size applies to shards; use --to-shards too")
    out = out or f"mixing-set/{name}"
    if is_remote(out):
        raise click.UsageError(
            f"--out {shown(out)} is an address, to which images go in shards; use --to-shards "
            "too, or a folder"
        )
    if sheet is not None and sheet.resolve().is_relative_to(Path(out).resolve()):
        raise click.BadParameter(
            f"{sheet} lies inside the dataset, where it would be taken for one of its images; put "
            "it elsewhere",
            param_hint="'--contact-sheet'",
        )
    if sheet is not None:
        from pipelines.system.files import check_writable

        try:
            check_writable(sheet.parent, "--contact-sheet")
        except PipelineError as error:
            raise click.BadParameter(str(error), param_hint="'--contact-sheet'") from error
    return str(Path(out).absolute()) if absolute else out


def _check_shards(
    name: str, out: str | None, _: int | None, sheet: Path | None, *, absolute: bool
) -> str:
    """Return the folder or address of shards, absolute as above."""
    from pipelines.system.objects import is_remote, local_path

    if sheet is not None:
        raise click.UsageError(
            "--contact-sheet draws image files; leave it out with --to-shards, and draw the shards "
            f"afterwards: pixmix-show set DIR --contact-sheet {sheet}"
        )
    out = out or f"shards/{name}"
    return str(local_path(out).absolute()) if absolute and not is_remote(out) else out


def generate(
    output: Output, find_generator: "Callable[[Site], Generator]", *, gpus_per_task: float = 0.0
) -> None:
    """Generate a dataset and print how it stands.

    Args:
        output: the options.
        find_generator: returns what generates the images.
        gpus_per_task: of a GPU of a cluster, that a task takes.
    """
    with one_line_errors("interrupted; the same command resumes this dataset"):
        with _joined(output, gpus_per_task) as cluster:
            from pipelines.shards.job import ALONE, run_job
            from pipelines.shards.output import Folder, open_output
            from pipelines.system.processes import available_cores
            from pipelines.system.ranks import Task

            task = ALONE
            if cluster is None:
                task = Task(*chosen_task(output.task_index, output.num_tasks))
            jobs = available_cores() if cluster is None else _ALL_OF_A_CLUSTER
            store = open_output(output.out)
            site = Site(store=store, cluster=cluster, jobs=output.jobs or jobs)
            generator = find_generator(site)
            job = _job(output, store, generator)
            run: RunChunks = partial(_run_here, generator.kind())
            if cluster is not None:
                from pipelines.generate.generator import versions_of

                versions = partial(versions_of, generator, output.format)
                run = cluster.runner(versions, store.path if isinstance(store, Folder) else None)
            with progress_bar("images") as progress:
                result = run_job(job, task, jobs=site.jobs, run=run, progress=progress)
            if output.shard_size is None:
                text, document = _told_of_files(output, job, result)
            else:
                text, document = told_of_shards(job, result, closing=task.count == 1)
        say(text, document, as_json=output.as_json)


def _joined(output: Output, gpus: float) -> "AbstractContextManager[RayCluster | None]":
    """Join the cluster of --ray, if that is given."""
    if output.address is None:
        return nullcontext()
    from pipelines.generate.ray import joined_cluster

    return joined_cluster(output.address or None, gpus_per_task=gpus, jobs=output.jobs)


def _job(output: Output, store: "OutputStore", generator: "Generator") -> "Job":
    from pipelines.generate.products import image_job, shard_job

    chunk = generator.chunk_size()
    if output.shard_size is None:
        return image_job(Path(output.out), generator, n=output.n, format=output.format, chunk=chunk)
    return shard_job(
        store,
        generator,
        n=output.n,
        name=output.name,
        format=output.format,
        shard_size=output.shard_size,
        chunk=chunk,
    )


def _run_here(kind: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - see RunChunks
    """Call `run_chunks`, with kernels that have been compiled: only where there is work to do."""
    from fractals import BASELINE_KINDS
    from fractals.sampling import pending, pending_for_baselines
    from pipelines.system.processes import compile_kernels, run_chunks

    if kind == "fractals":
        compile_kernels(pending)
    elif kind in BASELINE_KINDS:
        compile_kernels(pending_for_baselines)
    run_chunks(*arguments, **options)


def _write_sheet(sheet: Path, images: Path, format: str) -> None:
    """Write a contact sheet of images spread over those that are whole."""
    from pipelines.generate.generator import decode
    from pipelines.report.figures import contact_sheet, write_image
    from pipelines.shards.images import read_image_file
    from pipelines.system.ranks import spread

    paths = sorted(images.glob(f"[0-9]*.{format}"))
    chosen = [paths[place] for place in spread(SHEET_IMAGES, len(paths))]
    write_image(contact_sheet([decode(read_image_file(path)) for path in chosen]), sheet)


def _told_of_files(output: Output, job: "Job", result: "JobResult") -> tuple[str, dict[str, Any]]:
    """Write the sheet; return how a dataset of image files stands, as text and for machines."""
    from pipelines.generate.generator import IMAGES
    from pipelines.generate.products import read_manifest

    folder = Path(output.out)
    images, sheet = folder / IMAGES, output.sheet
    if sheet is not None and not any(images.glob(f"[0-9]*.{output.format}")):
        sheet = None  # This task had nothing to generate.
    if sheet is not None:
        _write_sheet(sheet, images, output.format)
    new = sum(map(len, result.made))
    rate = read_manifest(folder)["acceptance_rate"] if result.complete else None
    text = f"{result.whole} of {result.n} images in {images} ({new} of them new)"
    if rate is None:
        text += "; the other tasks make it complete"
    else:
        text = f"{result.n} images in {images} ({new} of them new); {rate:.0%} of the drafts were "
        text += "kept"
    return text if sheet is None else f"{text}\na contact sheet of them in {sheet}", {
        "folder": output.out,
        "images_folder": str(images),
        "images": job.request.n,
        "whole": result.whole,
        "generated": new,
        "complete": result.complete,
        "acceptance_rate": rate,
        "contact_sheet": None if sheet is None else str(sheet),
    }


def told_of_shards(job: "Job", result: "JobResult", *, closing: bool) -> tuple[str, dict[str, Any]]:
    """Return how a sharded dataset stands and what to do, as text and for machines.

    closing: it was to be closed; else other tasks may be generating what is missing.
    """
    name, n = job.store.name, job.request.settings["n"]
    ranges = [[items.start, items.stop - 1] for items in result.missing]
    missing = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    text = f"{name}: {result.whole:,} of {result.n:,} shards"
    if result.complete:
        shards = "1 shard" if result.n == 1 else f"{result.n:,} shards"
        text = f"{name}: complete; {n:,} images in {shards}"
    elif not missing:
        text += f"; pixmix-gen merge {name} closes the dataset"
    elif not closing:
        text += (
            f"; other tasks make {missing}; when they have ended, pixmix-gen merge {name} closes "
            "the dataset, or tells what is missing"
        )
    else:
        text += (
            f"; missing are {missing}: run again the command that began the dataset, as any tasks "
            f"or as one, which makes these alone, then pixmix-gen merge {name}"
        )
    return text, {
        "location": name,
        "images": n,
        "generated": sum(map(job.product.weight, result.made)),
        "shards": result.n,
        "missing": ranges,
        "complete": result.complete,
    }
