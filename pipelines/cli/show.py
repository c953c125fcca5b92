"""`pixmix-show`: sets of images, PixMix, fractals and trainings, as tables, figures and HTML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipelines.cli.options import (
    SHEET_IMAGES,
    SMALLEST_SIDE,
    LocalPath,
    command_options,
    example,
    file_option,
    finite,
    html_option,
    one_line_errors,
    progress_bar,
    report_ignored,
    say,
    seed_option,
)
from pipelines.cli.suggestions import SuggestingGroup

_INTERRUPTED = "interrupted; files that were written are whole"

_SET = LocalPath(exists=True)


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("pixmix-show set mixing-set/fractals --contact-sheet sheet.png"),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Show sets of images, the rounds of PixMix, fractals and trainings."""


@main.command(
    name="set",
    epilog=example(
        "pixmix-show set mixing-set/fractals --contact-sheet sheet.png",
        "pixmix-show set mixing-set/fractals --against mixing-set/featviz --html report.html",
    ),
)
@click.argument("images", metavar="DIR|SHARDS|FILE", type=_SET)
@click.option(
    "--against",
    type=_SET,
    metavar="DIR|SHARDS|FILE",
    help="A second set, to compare with the first.",
)
@click.option(
    "--n",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Measure the first N images, in the order of their names.",
)
@file_option(
    "--contact-sheet",
    metavar="SHEET.png",
    text=f"Draw a contact sheet of {SHEET_IMAGES} of them, spread evenly.",
)
@file_option("--plot", metavar="HISTOGRAMS.png", text="Draw a histogram of each statistic.")
@html_option
@command_options
def show_set(
    *,
    images: Path,
    against: Path | None,
    n: int,
    sheet: Path | None,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure the images of a mixing set, or of any folder, shards, tar, zip or .npy.

    Prints medians and percentiles beside those of fractals chosen by people and of photographs,
    what a good mixing set should reach, and which images are dead or near-duplicates.
    """
    if against is not None and against.resolve() == images.resolve():
        raise click.BadParameter(
            f"{against} is the same set as {images}; name another", param_hint="'--against'"
        )
    places = [images] if against is None else [images, against]
    _check_outputs({"--contact-sheet": sheet, "--plot": plot, "--html": html}, places)
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import set_report
        from pipelines.report.figures import check_plotting, write_image
        from pipelines.report.page import names_of, page, write_page
        from pipelines.report.set_statistics import set_images

        if plot is not None or html is not None:
            # A missing library is reported before the long work.
            check_plotting()
        for place in places:
            if place.is_dir():
                report_ignored(place)
        # All are opened before the first is measured, which may take minutes.
        images_of = [set_images(place) for place in places]
        sets = []
        for name, place, found in zip(names_of(places), places, images_of, strict=True):
            with progress_bar("images") as progress:
                sets.append(set_report.read_set(name, place, found, n, progress=progress))
        if sheet is not None:
            write_image(set_report.sheet_of(sets[0]), sheet)
        if plot is not None:
            write_image(set_report.histograms_of(sets), plot)
        if html is not None:
            titles = "; ".join(each.title for each in sets)
            write_page(page("Mixing sets", titles, set_report.sections_of(sets)), html)
        document = {
            **set_report.document_of(sets[0]),
            "against": None if against is None else set_report.document_of(sets[1]),
            "contact_sheet": None if sheet is None else str(sheet),
            "plot": None if plot is None else str(plot),
            "html": None if html is None else str(html),
        }
        say(set_report.text_of(sets), document, as_json=as_json)


@main.command(
    name="mixed",
    epilog=example(
        "pixmix-show mixed photograph.jpg --mixing-set mixing-set/fractals --out mixed.png",
        "pixmix-show mixed photograph.jpg --no-mixing-set --out mixed.png --rows 6 --seed 3",
    ),
)
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--mixing-set",
    "mixing_sets",
    type=LocalPath(exists=True),
    multiple=True,
    help="Set of pixmix-gen, folder of images, shards, tar, zip or .npy; may be repeated.",
)
@click.option(
    "--no-mixing-set",
    is_flag=True,
    help="Mix the image only with augmented copies of itself.",
)
@file_option("--out", metavar="MIXED.png", text="File of the figure.", required=True)
@click.option(
    "--rows",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Number of draws, a row each.",
)
@click.option(
    "--size",
    type=click.IntRange(SMALLEST_SIDE, 1024),
    default=224,
    show_default=True,
    help="Side of the mixed square in pixels; operations depend on it.",
)
@click.option(
    "--k",
    type=click.IntRange(0, 8),
    default=4,
    show_default=True,
    help="Maximum number of mixing rounds.",
)
@click.option(
    "--beta",
    type=click.FloatRange(1e-3),
    callback=finite,
    default=3.0,
    show_default=True,
    help="Concentration of the mixing weights; larger keeps more of the image.",
)
@click.option(
    "--severity",
    type=click.FloatRange(0.1, 10),
    callback=finite,
    default=3.0,
    show_default=True,
    help="Severity of the operations.",
)
@click.option(
    "--all-ops", is_flag=True, help="Also draw operations that overlap ImageNet-C's corruptions."
)
@seed_option("Seed of the draws.")
@html_option
@command_options
def show_mixed(
    *,
    image: Path,
    mixing_sets: tuple[Path, ...],
    no_mixing_set: bool,
    out: Path,
    rows: int,
    size: int,
    seed: int,
    html: Path | None,
    as_json: bool,
    **numbers: Any,  # noqa: ANN401
) -> None:
    """Show an image under PixMix, round by round.

    Each row is another draw. Below each round stand the image that was mixed in, the operation that
    made it, and the weights of the two (a and b); the framed image is the result.
    """
    if bool(mixing_sets) == no_mixing_set:
        raise click.UsageError("use --mixing-set, once or more, or --no-mixing-set")
    _check_outputs({"--out": out, "--html": html}, [image, *mixing_sets])
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import mixing
        from pipelines.report.figures import write_image
        from pipelines.report.page import page, write_page
        from pipelines.shards.images import read_image
        from pipelines.system.processes import compile_kernels
        from pixmix.fused import pending
        from pixmix.settings import PixMixSettings

        # Both are read before kernels are compiled.
        whole = read_image(image)
        mixing_set = mixing.MixingImages(mixing_sets, size) if mixing_sets else None
        compile_kernels(pending)
        pixels = mixing.square(whole, size)
        settings = PixMixSettings(**numbers)
        draws = [mixing.mix(pixels, mixing_set, settings, (seed, 0, row)) for row in range(rows)]
        write_image(mixing.figure(pixels, draws), out)
        if html is not None:
            lead = f"{image.name} under PixMix, round by round, in several draws."
            sections = mixing.sections(pixels, draws)
            write_page(page("What PixMix does", lead, sections), html)
        document = {
            **mixing.document(draws),
            "out": str(out),
            "html": None if html is None else str(html),
        }
        say(f"{rows} draws of {image} in {out}", document, as_json=as_json)


@main.command(
    name="genome",
    epilog=example(
        "pixmix-show genome mixing-set/fractals --index 42 --out genome.png",
        "pixmix-show genome genome.json --out genome.png --size 1024",
    ),
)
@click.argument("place", metavar="SET|FILE", type=_SET)
@click.option(
    "--index", type=click.IntRange(0), help="Index of the image in a set.  [default: the file's]"
)
@file_option("--out", metavar="GENOME.png", text="File of the figure.", required=True)
@click.option(
    "--size",
    type=click.IntRange(64, 4096),
    default=640,
    show_default=True,
    help="Longer side of the image in pixels.",
)
@html_option
@command_options
def show_genome(
    *, place: Path, index: int | None, out: Path, size: int, html: Path | None, as_json: bool
) -> None:
    """Show how a fractal is made: its layers, their maps as parallelograms, their numbers.

    Grey is the window; each map takes it to a parallelogram of its own (before variations bend
    it), and the dot is where its first corner goes.
    """
    _check_outputs({"--out": out, "--html": html}, [place])
    with one_line_errors(_INTERRUPTED):
        from fractals.sampling import pending
        from pipelines.report.figures import write_image
        from pipelines.report.genome_report import figure, read_genome, sections
        from pipelines.report.page import page, write_page
        from pipelines.system.processes import compile_kernels

        read = read_genome(place, index)
        genome = read.genome
        compile_kernels(pending)
        write_image(figure(genome, size, read.shape), out)
        title = f"{genome.family}, seed {genome.seed}, image {genome.index}"
        if html is not None:
            lead = (
                "Grey is the window; each map takes it to a parallelogram of its own, before "
                "variations bend it, and the dot is where its first corner goes."
            )
            shown = sections(genome, size, read.shape)
            write_page(page(f"How a fractal is made: {title}", lead, shown), html)
        document = {
            "genome": genome.to_json(),
            "out": str(out),
            "html": None if html is None else str(html),
        }
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
)
@file_option("--plot", metavar="CURVES.png", text="Draw loss and errors over the epochs.")
@file_option(
    "--csv",
    "csv_file",
    metavar="RUNS.csv",
    text="Write a row for each run: its last epoch, its settings and its evaluation.",
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
    """Show trainings side by side: their results, and the settings that differ between them.

    DIR is an --out of pixmix-train. An evaluation is shown, too, if DIR/evaluation.json holds the
    output of `pixmix-eval --json`. A star marks the best value of a row.
    """
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import runs
        from pipelines.report.figures import check_plotting, write_image
        from pipelines.report.page import page, write_page

        read = [path for folder in folders for path in runs.files_read(folder)]
        _check_outputs({"--plot": plot, "--csv": csv_file, "--html": html}, read)
        if plot is not None or html is not None:
            check_plotting()
        shown = runs.read_runs(folders)
        if csv_file is not None:
            runs.write_csv(shown, csv_file)
        if plot is not None:
            write_image(runs.curves(shown), plot)
        if html is not None:
            names = ", ".join(run.name for run in shown)
            write_page(page("Trainings", names, runs.sections(shown)), html)
        document = {
            **runs.document(shown),
            "plot": None if plot is None else str(plot),
            "csv": None if csv_file is None else str(csv_file),
            "html": None if html is None else str(html),
        }
        say(runs.table(shown), document, as_json=as_json)


def _check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path]) -> None:
    """Refuse to overwrite an input or another output, or to write an image into a set of images.

    Args:
        outputs: option -> file, or None if it is not set.
        inputs: files, and folders of images.
    """
    taken: dict[Path, str] = {each.resolve(): f"is read as {each}" for each in inputs}
    for option, written in outputs.items():
        if written is None:
            continue
        whole = written.resolve()
        for folder in inputs:
            if option != "--html" and folder.is_dir() and whole.is_relative_to(folder.resolve()):
                raise click.BadParameter(
                    f"{written} lies inside {folder}, where it would become one of its "
                    "images; choose another folder",
                    param_hint=f"'{option}'",
                )
        if whole in taken:
            raise click.BadParameter(
                f"{written} {taken[whole]} and would be overwritten; choose another path",
                param_hint=f"'{option}'",
            )
        taken[whole] = f"is also what {option} writes"


if __name__ == "__main__":
    main()
