"""`pixmix-show`: statistics of image sets, PixMix draws, fractals and training runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from pipelines.cli.help_pages import command_group, example, option
from pipelines.cli.options import (
    SHEET_IMAGES,
    SMALLEST_SIDE,
    LocalPath,
    command_options,
    file_option,
    html_option,
    in_order,
    mixing_set_options,
    one_line_errors,
    pixmix_options,
    progress_bar,
    report_ignored,
    say,
    seed_option,
)
from pipelines.training.recipes import figures

_INTERRUPTED = "interrupted; files that were written are complete"

_SET = LocalPath(exists=True)

_PIXMIX = {name: figures("cifar")[name] for name in ("k", "beta", "severity")}
"""Defaults of the figure's options."""


@command_group("pixmix-show set mixing-set/fractals --contact-sheet sheet.png")
def main() -> None:
    """Show statistics of image sets, PixMix draws, fractals and training runs."""


@main.command(
    name="set",
    epilog=example(
        "pixmix-show set mixing-set/fractals --contact-sheet sheet.png",
        "pixmix-show set mixing-set/fractals --against mixing-set/featviz --html report.html",
    ),
)
@click.argument(
    "images",
    metavar="PATH",
    type=_SET,
    help="Output of pixmix-gen, image folder, shards, tar, zip or .npy.",
)
@option(
    "--against",
    type=_SET,
    metavar="PATH",
    help="A second set, to compare with the first.",
)
@option(
    "--n",
    type=click.IntRange(1),
    default=512,
    help="Number of images to measure, the first ones in the order of their names.",
)
@file_option(
    "--contact-sheet",
    metavar="SHEET.png",
    text=f"Draw a contact sheet of {SHEET_IMAGES} of these images, spread evenly.",
)
@file_option(
    "--plot",
    metavar="HISTOGRAMS.png",
    text="Draw a histogram of each statistic. Needs pip install 'pixmix[viz]'.",
)
@html_option
@command_options
def show_set(
    *,
    images: Path,
    against: Path | None,
    n: int,
    contact_sheet: Path | None,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure the images of a mixing set, or of any other image set.

    Prints the median and percentiles of each statistic beside those of hand-picked fractals and of
    photographs, the range that a good mixing set should reach, and which images are empty or
    near-duplicates.
    """
    if against is not None and against.resolve() == images.resolve():
        raise click.BadParameter(
            f"{against} is the same set as {images}; use another set", param_hint="'--against'"
        )
    paths = [images] if against is None else [images, against]
    outputs = {"--contact-sheet": contact_sheet, "--plot": plot, "--html": html}
    _check_outputs(outputs, paths)
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import sets as set_reports
        from pipelines.report.page import check_plotting, page, short_names, write_image, write_page
        from pipelines.report.set_statistics import set_images

        if plot is not None or html is not None:
            # A missing library is reported before the long work.
            check_plotting()
        for path in paths:
            if path.is_dir():
                report_ignored(path)
        # All sets are opened before the first is measured, which may take minutes.
        opened = [set_images(path) for path in paths]
        sets = []
        for name, path, found in zip(short_names(paths), paths, opened, strict=True):
            with progress_bar("images") as progress:
                sets.append(set_reports.read_set(name, path, found, n, progress=progress))
        if contact_sheet is not None:
            write_image(set_reports.sheet_of(sets[0]), contact_sheet)
        if plot is not None:
            write_image(set_reports.histograms_of(sets), plot)
        if html is not None:
            titles = "; ".join(each.title for each in sets)
            write_page(page("Mixing sets", titles, set_reports.sections_of(sets)), html)
        document = {
            **set_reports.document_of(sets[0]),
            "against": None if against is None else set_reports.document_of(sets[1]),
            **_written(outputs),
        }
        say(set_reports.text_of(sets), document, as_json=as_json)


@main.command(
    name="mixed",
    epilog=example(
        "pixmix-show mixed photograph.jpg --mixing-set mixing-set/fractals --out mixed.png",
        "pixmix-show mixed photograph.jpg --no-mixing-set --out mixed.png --draws 6 --seed 3",
    ),
)
@click.argument(
    "image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Image file."
)
@in_order(
    *mixing_set_options(
        LocalPath(exists=True), "output of pixmix-gen, image folder, shards, tar, zip or .npy"
    ),
    *pixmix_options(_PIXMIX, most_rounds=8, common=True),
)
@option(
    "--draws",
    "n_draws",
    group="Figure",
    type=click.IntRange(1, 64),
    default=4,
    help="Number of random draws, which are shown from the mildest to the strongest.",
)
@option(
    "--size",
    group="Figure",
    type=click.IntRange(SMALLEST_SIDE, 1024),
    default=224,
    help="Side in pixels of the square that is mixed. The strength of some operations depends on "
    "it.",
)
@seed_option("Random seed of the draws.", group="Figure")
@file_option("--out", metavar="MIXED.png", text="Output file of the figure.", required=True)
@html_option
@command_options
def show_mixed(
    *,
    image: Path,
    mixing_sets: tuple[Path, ...],
    no_mixing_set: bool,
    all_ops: bool,
    n_draws: int,
    size: int,
    seed: int,
    out: Path,
    html: Path | None,
    as_json: bool,
    **numbers: float | None,
) -> None:
    """Show the rounds of PixMix on an image.

    Each block is a random draw. The text below a round names the mixing image, the operation, and
    the weights a and b of the two inputs. The framed image is the result.
    """
    if bool(mixing_sets) == no_mixing_set:
        raise click.UsageError("pass either --mixing-set, once or more, or --no-mixing-set")
    outputs = {"--out": out, "--html": html}
    _check_outputs(outputs, [image, *mixing_sets])
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import mixing
        from pipelines.report.page import page, write_image, write_page
        from pipelines.shards.images import read_image
        from pipelines.system.processes import compile_kernels
        from pixmix.fused import pending
        from pixmix.settings import PixMixSettings

        # Both are read before kernels are compiled.
        whole = read_image(image)
        mixing_set = mixing.MixingImages(mixing_sets, size) if mixing_sets else None
        compile_kernels(pending)
        pixels = mixing.square(whole, size)
        passed = {name: value for name, value in numbers.items() if value is not None}
        settings = PixMixSettings(**{**_PIXMIX, **passed}, all_ops=all_ops)
        draws = [
            mixing.mix(pixels, mixing_set, settings, (seed, 0, index)) for index in range(n_draws)
        ]
        write_image(mixing.figure(pixels, draws), out)
        if html is not None:
            lead = f"{image.name} after each round of PixMix, in several random draws."
            sections = mixing.sections(pixels, draws)
            write_page(page("What PixMix does", lead, sections), html)
        document = {**mixing.document(draws), **_written(outputs)}
        say(f"{n_draws} draws of {image} in {out}", document, as_json=as_json)


@main.command(
    name="genome",
    epilog=example(
        "pixmix-show genome mixing-set/fractals --index 42 --out genome.png",
        "pixmix-show genome genome.json --out genome.png --size 1024",
    ),
)
@click.argument(
    "path",
    type=_SET,
    help="A dataset of pixmix-gen fractals, or a genome as a JSON file.",
)
@option(
    "--index",
    type=click.IntRange(0),
    help="Index of the image, if PATH is a dataset.",
)
@file_option("--out", metavar="GENOME.png", text="Output file of the figure.", required=True)
@option(
    "--size",
    type=click.IntRange(64, 4096),
    default=640,
    help="Longer side of the fractal image in pixels.",
)
@html_option
@command_options
def show_genome(
    *, path: Path, index: int | None, out: Path, size: int, html: Path | None, as_json: bool
) -> None:
    """Show how a fractal is made.

    Draws each layer, with its maps as parallelograms. The grey square is the window. Each map takes
    it to a parallelogram (before variations bend it); the dot marks the image of the window's first
    corner.
    """
    outputs = {"--out": out, "--html": html}
    _check_outputs(outputs, [path])
    with one_line_errors(_INTERRUPTED):
        from fractals.sampling import pending
        from pipelines.report.genome import figure, read_genome, sections
        from pipelines.report.page import page, write_image, write_page
        from pipelines.system.processes import compile_kernels

        read = read_genome(path, index)
        genome = read.genome
        compile_kernels(pending)
        write_image(figure(genome, size, read.shape), out)
        title = f"{genome.family}, seed {genome.seed}, image {genome.index}"
        if html is not None:
            lead = (
                "The grey square is the window. Each map takes it to a parallelogram, before "
                "variations bend it; the dot marks the image of the window's first corner."
            )
            shown = sections(genome, size, read.shape)
            write_page(page(f"How a fractal is made: {title}", lead, shown), html)
        document = {"genome": genome.to_json(), **_written(outputs)}
        say(f"{title} in {out}", document, as_json=as_json)


@main.command(
    name="run",
    epilog=example(
        "pixmix-show run runs/digits",
        "pixmix-show run runs/digits runs/plain --html report.html --plot curves.png",
        "pixmix-show run runs/digits runs/plain --csv runs.csv",
    ),
)
@click.argument(
    "folders",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=LocalPath(exists=True, file_okay=False),
    help="Output folders of pixmix-train.",
)
@file_option(
    "--plot",
    metavar="CURVES.png",
    text="Draw the loss and the errors of each epoch. Needs pip install 'pixmix[viz]'.",
)
@file_option(
    "--csv",
    "csv_file",
    metavar="RUNS.csv",
    text="Write one row per run: its last epoch, settings and evaluation.",
)
@html_option
@command_options
def show_run(
    *,
    folders: tuple[Path, ...],
    plot: Path | None,
    csv_file: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare the results of training runs.

    Shows only the settings in which the runs differ. If DIR/evaluation.json holds the output of
    pixmix-eval --json, it is shown, too. A star marks the best value of each row.
    """
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import runs
        from pipelines.report.page import check_plotting, page, write_image, write_page

        read = [path for folder in folders for path in runs.files_read(folder)]
        outputs = {"--plot": plot, "--csv": csv_file, "--html": html}
        _check_outputs(outputs, read)
        if plot is not None or html is not None:
            check_plotting()
        shown = runs.read_runs(folders)
        if csv_file is not None:
            runs.write_csv(shown, csv_file)
        if plot is not None:
            write_image(runs.curves(shown), plot)
        if html is not None:
            names = ", ".join(run.name for run in shown)
            write_page(page("Training runs", names, runs.sections(shown)), html)
        document = {**runs.document(shown), **_written(outputs)}
        say(runs.table(shown), document, as_json=as_json)


def _written(outputs: Mapping[str, Path | None]) -> dict[str, str | None]:
    """Return the files that were written, by the names of their options, for a JSON document."""
    return {
        name.removeprefix("--").replace("-", "_"): None if path is None else str(path)
        for name, path in outputs.items()
    }


def _check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path]) -> None:
    """Refuse to overwrite an input or another output, or to write an image into an input folder.

    Args:
        outputs: option -> file, or None if it is not set.
        inputs: files, and folders of images.

    Raises:
        click.BadParameter: naming the option and the file.
    """
    taken: dict[Path, str] = {each.resolve(): f"is read as {each}" for each in inputs}
    for name, written in outputs.items():
        if written is None:
            continue
        whole = written.resolve()
        for folder in inputs:
            inside = folder.is_dir() and whole.is_relative_to(folder.resolve())
            if inside and name != "--html":
                raise click.BadParameter(
                    f"{written} is inside {folder} and would become one of its images; use another "
                    "folder",
                    param_hint=f"'{name}'",
                )
        if whole in taken:
            raise click.BadParameter(
                f"{written} {taken[whole]} and would be overwritten; use another path",
                param_hint=f"'{name}'",
            )
        taken[whole] = f"is also the output of {name}"


if __name__ == "__main__":
    main()
