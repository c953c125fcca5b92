"""What the commands of `pixmix-gen` share: options, checks of the output, and the result."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.help_pages import Decorated, option
from pipelines.cli.options import (
    OUTPUT,
    PARALLEL,
    SHEET_IMAGES,
    Size,
    chosen_task,
    command_options,
    file_option,
    in_order,
    jobs_option,
    one_line_errors,
    progress_bar,
    say,
    seed_option,
    task_options,
)
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.generate.generators import Generator
    from pipelines.generate.ray import RayCluster
    from pipelines.shards.job import Job, JobResult
    from pipelines.shards.output import OutputStore
    from pipelines.system.processes import RunChunks

# A copy of the names in generate.generators.ENCODERS, whose import would take half a second; a test
# compares them.
FORMATS = ("jpg", "png", "webp")
SHARD_SIZE = 1000

_IMAGES = "Images"

_ALL_OF_A_CLUSTER = 10**9
"""Number of concurrent tasks if --jobs does not limit them: the cluster runs as many as fit."""


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
    contact_sheet: Path | None
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
        """Return how many processes share the memory of a machine or of a GPU."""
        if self.cluster is None:
            return self.jobs
        from pipelines.system.processes import available_cores

        gpus = self.cluster.num_gpus
        return max(1, int(1 / gpus)) if gpus else available_cores()


Runner = Callable[..., None]


def output_options(n: int, name: str | None) -> Callable[[Runner], Runner]:
    """Return the decorator that adds the options of all datasets and passes them as an `Output`.

    Args:
        n: the default number of images.
        name: name of the dataset; None for the value of the command's --kind.
    """

    def decorate(command: Runner) -> Runner:
        @wraps(command)
        def with_output(
            *,
            out: str | None,
            to_shards: bool,
            shard_size: int | None,
            address: str | None,
            contact_sheet: Path | None,
            **others: Any,  # noqa: ANN401
        ) -> None:
            own = name or others["kind"]
            check = _check_shards if to_shards else _check_files
            shared = {each.name for each in fields(Output)} & {*others}
            output = Output(
                name=own,
                out=check(own, out, shard_size, contact_sheet, absolute=address is not None),
                shard_size=(shard_size or SHARD_SIZE) if to_shards else None,
                address=address,
                contact_sheet=contact_sheet,
                **{each: others.pop(each) for each in shared},
            )
            if address is not None and not (output.task_index is None and output.num_tasks is None):
                raise click.UsageError(
                    "--ray distributes the work itself; omit --task-index and --num-tasks"
                )
            command(output, **others)

        return in_order(*_options(n, name or "KIND"))(task_options(command_options(with_output)))

    return decorate


def _options(n: int, name: str) -> list[Callable[[Decorated], Decorated]]:
    return [
        option(
            "--n",
            group=_IMAGES,
            type=click.IntRange(1, 10**8),
            default=n,
            help="Number of images. Run again with a larger number to extend a dataset of image "
            "files, or with a smaller one to end an incomplete dataset early.",
        ),
        option(
            "--size",
            group=_IMAGES,
            type=Size(),
            default="256",
            metavar="PIXELS|WxH",
            help="Image size in pixels: one number for a square, or WIDTHxHEIGHT.",
        ),
        seed_option("Random seed of the dataset.", group=_IMAGES),
        option(
            "--format",
            group=_IMAGES,
            type=click.Choice(FORMATS),
            default=FORMATS[0],
            help="Image format: jpg has quality 95 and 4:4:4 chroma; png and webp are lossless.",
        ),
        option(
            "--out",
            group=OUTPUT,
            metavar="DIR|URL",
            show_default=f"mixing-set/{name}, or shards/{name}",
            help="Output folder; with --to-shards also a URL such as s3://bucket/name. Run the "
            "same command again to resume.",
        ),
        file_option(
            "--contact-sheet",
            metavar="SHEET.png",
            text=f"Also write a contact sheet of {SHEET_IMAGES} images.",
        ),
        option(
            "--to-shards",
            group=OUTPUT,
            is_flag=True,
            help="Write WebDataset shards instead of image files. If several tasks do, run "
            "pixmix-gen merge at the end.",
        ),
        option(
            "--shard-size",
            group=OUTPUT,
            common=False,
            type=click.IntRange(1, 10**8),
            show_default=str(SHARD_SIZE),
            help="Maximum number of images per shard.",
        ),
        jobs_option,
        option(
            "--ray",
            "address",
            group=PARALLEL,
            common=False,
            is_flag=False,
            flag_value="",
            metavar="[ADDRESS]",
            show_default="no cluster",
            help="Generate on a Ray cluster at this address. Without an address: the cluster of "
            "RAY_ADDRESS or of this machine, or a new local one. --jobs limits the number of "
            "concurrent tasks.",
        ),
    ]


def _check_files(
    name: str, out: str | None, shard_size: int | None, sheet: Path | None, *, absolute: bool
) -> str:
    """Return the folder of image files, absolute if other machines must find it."""
    from pipelines.system.objects import is_remote, shown

    if shard_size is not None:
        raise click.UsageError("--shard-size needs --to-shards; pass it too, or omit --shard-size")
    out = out or f"mixing-set/{name}"
    if is_remote(out):
        raise click.UsageError(
            f"--out {shown(out)} is a URL, to which only shards can be written; pass --to-shards, "
            "or use a folder"
        )
    out = _without_scheme(out)
    if sheet is not None and sheet.resolve().is_relative_to(Path(out).resolve()):
        raise click.BadParameter(
            f"{sheet} is inside the dataset and would become one of its images; use another folder",
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
    """Return the folder or URL of shards, a folder absolute if other machines must find it."""
    from pipelines.system.objects import is_remote

    if sheet is not None:
        raise click.UsageError(
            "--contact-sheet does not support --to-shards; omit it, and run pixmix-show set DIR "
            f"--contact-sheet {sheet} afterwards"
        )
    out = out or f"shards/{name}"
    return str(Path(_without_scheme(out)).absolute()) if absolute and not is_remote(out) else out


def _without_scheme(out: str) -> str:
    """Return the path of a file:// URL; return other paths unchanged."""
    from pipelines.system.objects import local_path

    try:
        return str(local_path(out)) if out.startswith("file:") else out
    except PipelineError as error:
        raise click.BadParameter(str(error), param_hint="'--out'") from error


def generate(
    output: Output, find_generator: "Callable[[Site], Generator]", *, gpus_per_task: float = 0.0
) -> None:
    """Generate a dataset and print the result.

    Args:
        output: the options.
        find_generator: returns the generator of the images.
        gpus_per_task: share of a GPU of the Ray cluster that each task uses.
    """
    with one_line_errors("interrupted; run the same command again to resume"):
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
                from pipelines.generate.generators import versions_of

                versions = partial(versions_of, generator, output.format)
                run = cluster.runner(versions, store.path if isinstance(store, Folder) else None)
            with progress_bar("images") as progress:
                result = run_job(job, task, jobs=site.jobs, run=run, progress=progress)
            if output.shard_size is None:
                text, document = _describe_files(output, job, result)
            else:
                text, document = describe_shards(job, result, complete_now=task.count == 1)
        say(text, document, as_json=output.as_json)


def _joined(output: Output, gpus: float) -> "AbstractContextManager[RayCluster | None]":
    """Join the cluster of --ray, if it was passed."""
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
    """Compile the kernels and call `run_chunks`; not called if there is nothing to do."""
    from fractals import BASELINE_KINDS
    from fractals.sampling import pending, pending_for_baselines
    from pipelines.system.processes import compile_kernels, run_chunks

    if kind == "fractals":
        compile_kernels(pending)
    elif kind in BASELINE_KINDS:
        compile_kernels(pending_for_baselines)
    run_chunks(*arguments, **options)


def _write_sheet(sheet: Path, images: Path, format: str) -> None:
    """Write a contact sheet of images that are spread evenly over the finished ones."""
    from pipelines.generate.generators import decode
    from pipelines.report.page import contact_sheet, write_image
    from pipelines.shards.images import read_image_file
    from pipelines.system.ranks import spread

    paths = sorted(images.glob(f"[0-9]*.{format}"))
    chosen = [paths[index] for index in spread(SHEET_IMAGES, len(paths))]
    write_image(contact_sheet([decode(read_image_file(path)) for path in chosen]), sheet)


def _describe_files(output: Output, job: "Job", result: "JobResult") -> tuple[str, dict[str, Any]]:
    """Write the contact sheet, and return the state of a dataset of files as text and document."""
    from pipelines.generate.generators import IMAGES
    from pipelines.generate.products import read_manifest

    folder = Path(output.out)
    images, sheet = folder / IMAGES, output.contact_sheet
    if sheet is not None and not any(images.glob(f"[0-9]*.{output.format}")):
        sheet = None  # This task had nothing to generate.
    if sheet is not None:
        _write_sheet(sheet, images, output.format)
    new = sum(map(len, result.made))
    rate = read_manifest(folder)["acceptance_rate"] if result.complete else None
    if rate is None:
        text = f"{result.n_finished} of {result.n} images in {images} ({new} new); other tasks "
        text += "generate the rest"
    else:
        text = f"{result.n} images in {images} ({new} new); {rate:.0%} of the candidates were "
        text += "accepted"
    return text if sheet is None else f"{text}\ncontact sheet in {sheet}", {
        "folder": output.out,
        "images_folder": str(images),
        "images": job.request.n,
        "finished": result.n_finished,
        "generated": new,
        "complete": result.complete,
        "acceptance_rate": rate,
        "contact_sheet": None if sheet is None else str(sheet),
    }


def describe_shards(
    job: "Job", result: "JobResult", *, complete_now: bool
) -> tuple[str, dict[str, Any]]:
    """Return the state of a sharded dataset and what to do next, as text and document.

    Args:
        job: the job of the dataset.
        result: what is done.
        complete_now: whether the dataset should be complete; if not, other tasks may be generating
            the missing shards.
    """
    name, n = job.store.name, job.request.settings["n"]
    ranges = [[items.start, items.stop - 1] for items in result.missing]
    missing = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    text = f"{name}: {result.n_finished:,} of {result.n:,} shards"
    if result.complete:
        shards = "1 shard" if result.n == 1 else f"{result.n:,} shards"
        text = f"{name}: complete; {n:,} images in {shards}"
    elif not missing:
        text += f"; run pixmix-gen merge {name} to complete the dataset"
    elif not complete_now:
        text += (
            f"; other tasks generate shards {missing}; when they have finished, run pixmix-gen "
            f"merge {name}"
        )
    else:
        text += (
            f"; shards {missing} are missing; repeat the command that started the dataset, as one "
            f"task or several, then pixmix-gen merge {name}"
        )
    return text, {
        "location": name,
        "images": n,
        "generated": sum(map(job.product.weight, result.made)),
        "shards": result.n,
        "missing": ranges,
        "complete": result.complete,
    }
