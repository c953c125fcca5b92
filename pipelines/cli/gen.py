"""`pixmix-gen`: make sets of pictures to mix with, and verify them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    Size,
    check_task,
    command_options,
    example,
    finite,
    jobs_option,
    one_line_errors,
    picture_path,
    progress_bar,
    say,
    seed_option,
    task_options,
)
from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from fractals import Family
    from pipelines.generate.sets import SetRequest, SetResult

# As in fractals.FAMILIES and encoding.ENCODERS, which would take half a second to import for the
# help; a test holds them equal.
FAMILIES = ("mixed", "flame", "ifs", "escape")
FORMATS = ("jpg", "png", "webp")

PREVIEW_PICTURES = 64


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Make sets of pictures to mix with, and verify them."""


@main.command(
    epilog=example(
        "pixmix-gen fractals --n 14000 --preview sheet.png",
        "pixmix-gen fractals --n 14000 --task-index 3 --num-tasks 8",
    )
)
@click.option(
    "--n",
    type=click.IntRange(1, 10**8),
    default=14_000,
    show_default=True,
    help="Pictures. A larger n later makes the same set grow.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mixing-set/fractals"),
    show_default=True,
    help="Folder of the set; the same command continues what is there.",
)
@click.option("--family", type=click.Choice(FAMILIES), default=FAMILIES[0], show_default=True)
@click.option(
    "--size", type=Size(), default="256", show_default=True, metavar="PIXELS|WIDTHxHEIGHT"
)
@click.option(
    "--samples-per-pixel",
    type=click.FloatRange(0, 1e6, min_open=True),
    callback=finite,
    default=50.0,
    show_default=True,
    help="Points for each pixel: more are smoother and slower.",
)
@seed_option
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="jpg has quality 95 and 4:4:4; png and webp are lossless.",
)
@jobs_option
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=picture_path,
    metavar="SHEET.png",
    help=f"Also write a sheet of {PREVIEW_PICTURES} pictures.",
)
@task_options
@command_options
def fractals(
    *,
    n: int,
    out: Path,
    family: "Family",
    size: tuple[int, int],
    samples_per_pixel: float,
    seed: int,
    format: str,
    jobs: int | None,
    preview: Path | None,
    task_index: int,
    num_tasks: int,
    as_json: bool,
) -> None:
    """Make a set of fractals.

    Picture i depends on seed, family, size and samples alone: any number of jobs or tasks and any
    interruption give the same set, bit for bit. The pictures are free for any use (CC0-1.0).
    """
    check_task(task_index, num_tasks)
    _check_preview(preview, out)
    with one_line_errors("interrupted; the same command continues this set"):
        from pipelines.generate.fractals import FractalPainter, chunk_size
        from pipelines.generate.sets import SetRequest, generate_set
        from pipelines.shards.workers import available_cores

        height, width = size
        painter = FractalPainter(
            seed=seed,
            family=family,
            height=height,
            width=width,
            samples_per_pixel=samples_per_pixel,
        )
        request = SetRequest(
            folder=out,
            painter=painter,
            n=n,
            format=format,
            chunk=chunk_size(height, width, samples_per_pixel),
            jobs=jobs or available_cores(),
            task_index=task_index,
            num_tasks=num_tasks,
        )
        with progress_bar("pictures") as progress:
            result = generate_set(request, progress=progress)
        if preview is not None:
            _write_preview(preview, request)
        say(
            _summary(request, result, preview), _document(request, result, preview), as_json=as_json
        )


@main.command(epilog=example("pixmix-gen verify mixing-set/fractals --sample 100"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Pictures to paint again, spread over the set.",
)
@command_options
def verify(*, folder: Path, sample: int, as_json: bool) -> None:
    """Check every file of a set, and paint a sample of it again.

    Exit code 0 says that the set is complete and each file is as it was written, 1 that not.
    """
    with one_line_errors("interrupted"):
        from pipelines.generate.fractals import FractalPainter
        from pipelines.generate.sets import read_manifest
        from pipelines.generate.verify import verify_set

        manifest = read_manifest(folder)
        if manifest["kind"] != "fractals":
            raise PipelineError(f"{folder} holds {manifest['kind']}; give a set of fractals")
        painter = FractalPainter.from_settings(manifest["settings"])
        with progress_bar("pictures") as progress:
            verdict = verify_set(folder, manifest, painter, sample=sample, progress=progress)
        if not verdict.complete:
            text = f"{folder}: partial; the command that began it makes it complete"
        elif verdict.faults:
            faults = "1 fault" if len(verdict.faults) == 1 else f"{len(verdict.faults)} faults"
            text = f"{folder}: {faults}; {verdict.faults[0]}"
        else:
            text = (
                f"{folder}: good; {verdict.pictures} pictures as written, "
                f"{verdict.sampled} painted again alike"
            )
        document = {
            "folder": str(folder),
            "good": verdict.good,
            "complete": verdict.complete,
            "pictures": verdict.pictures,
            "sampled": verdict.sampled,
            "faults": verdict.faults,
        }
        say(text, document, as_json=as_json)
    if not verdict.good:
        raise click.exceptions.Exit(1)


def _check_preview(preview: Path | None, out: Path) -> None:
    if preview is not None and preview.resolve().is_relative_to(out.resolve()):
        raise click.BadParameter(
            f"{preview} lies inside the set, where it would be taken for one of its pictures; "
            "put it elsewhere",
            param_hint="'--preview'",
        )


def _write_preview(preview: Path, request: "SetRequest") -> None:
    """Write a contact sheet of pictures spread over those that are whole."""
    from pipelines.generate.encoding import decode
    from pipelines.generate.plan import spread
    from pipelines.report.sheet import contact_sheet, write_sheet

    names = sorted(path for path in request.images.glob(f"[0-9]*.{request.format}"))
    chosen = [names[position] for position in spread(PREVIEW_PICTURES, len(names))]
    write_sheet(contact_sheet([decode(path.read_bytes()) for path in chosen]), preview)


def _summary(request: "SetRequest", result: "SetResult", preview: Path | None) -> str:
    if result.complete:
        text = (
            f"{result.n} pictures in {request.images} ({result.painted} of them new); "
            f"{result.manifest['acceptance_rate']:.0%} of the drafts were kept"
        )
    else:
        text = (
            f"{result.whole} of {result.n} pictures in {request.images} "
            f"({result.painted} of them new); the other tasks make it complete"
        )
    return text if preview is None else f"{text}\na sheet of them in {preview}"


def _document(request: "SetRequest", result: "SetResult", preview: Path | None) -> dict[str, Any]:
    return {
        "folder": str(request.folder),
        "images": str(request.images),
        "pictures": result.n,
        "whole": result.whole,
        "painted": result.painted,
        "complete": result.complete,
        "acceptance_rate": result.manifest.get("acceptance_rate"),
        "preview": None if preview is None else str(preview),
    }


if __name__ == "__main__":
    main()
