"""`pixmix-show`: look at sets of pictures, at mixings, fractals and trainings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipelines.cli.options import (
    SHEET_PICTURES,
    SMALLEST_SIDE,
    LocalPath,
    command_options,
    csv_path,
    example,
    finite,
    html_option,
    one_line_errors,
    picture_path,
    progress_bar,
    say,
    seed_option,
    tell_passed_over,
)
from pipelines.cli.suggestions import SuggestingGroup

_INTERRUPTED = "interrupted; what was written is whole, and stays"

_SET = LocalPath(exists=True)


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("pixmix-show set mixing-set/fractals --sheet sheet.png"),
)
@click.version_option(package_name="pixmix", message="%(version)s")
def main() -> None:
    """Look at sets of pictures, at what PixMix does, at fractals and at trainings."""


@main.command(
    name="set",
    epilog=example(
        "pixmix-show set mixing-set/fractals --sheet sheet.png",
        "pixmix-show set mixing-set/fractals --against mixing-set/featviz --html report.html",
    ),
)
@click.argument("pictures", metavar="DIR|SHARDS|FILE", type=_SET)
@click.option("--against", type=_SET, metavar="DIR|SHARDS|FILE", help="A second set, beside it.")
@click.option(
    "--n",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Measure the first N pictures, in the order of their names.",
)
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture_path,
    metavar="SHEET.png",
    help=f"Draw {SHEET_PICTURES} of them, spread evenly.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture_path,
    metavar="HISTOGRAMS.png",
    help="Draw how each statistic is spread over the pictures.",
)
@html_option
@command_options
def show_set(
    *,
    pictures: Path,
    against: Path | None,
    n: int,
    sheet: Path | None,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure the pictures of a mixing set, or of any folder, shards, tar, zip or .npy.

    Prints medians and percentiles beside those of fractals chosen by people and of photographs,
    what a good mixing set should reach, and which pictures are dead or nearly the same.
    """
    if against is not None and against.resolve() == pictures.resolve():
        raise click.BadParameter(
            f"{against} is the same set as {pictures}; name another", param_hint="'--against'"
        )
    places = [pictures] if against is None else [pictures, against]
    _check_outputs({"--sheet": sheet, "--plot": plot, "--html": html}, places)
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import set_report
        from pipelines.report.page import page, write_page
        from pipelines.report.plotting import check_plotting
        from pipelines.report.set_pictures import set_pictures
        from pipelines.report.sheet import write_picture, write_sheet
        from pipelines.report.short_names import names_of

        if plot is not None or html is not None:
            # Before what takes long, and would be lost.
            check_plotting()
        for place in places:
            if place.is_dir():
                tell_passed_over(place)
        # All of them before the first is measured, which may take minutes.
        pictures_of = [set_pictures(place) for place in places]
        sets = []
        for name, place, found in zip(names_of(places), places, pictures_of, strict=True):
            with progress_bar("pictures") as progress:
                sets.append(set_report.read_set(name, place, found, n, progress=progress))
        if sheet is not None:
            write_sheet(set_report.sheet_of(sets[0]), sheet)
        if plot is not None:
            write_picture(set_report.histograms_of(sets), plot)
        if html is not None:
            titles = "; ".join(each.title for each in sets)
            write_page(page("Mixing sets", titles, set_report.sections_of(sets)), html)
        document = {
            **set_report.document_of(sets[0]),
            "against": None if against is None else set_report.document_of(sets[1]),
            "sheet": None if sheet is None else str(sheet),
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
    help="Mix the picture with what operations make of itself.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture_path,
    metavar="MIXED.png",
    required=True,
    help="Where to draw it.",
)
@click.option(
    "--rows", type=click.IntRange(1, 64), default=4, show_default=True, help="Draws, a row each."
)
@click.option(
    "--size",
    type=click.IntRange(SMALLEST_SIDE, 1024),
    default=224,
    show_default=True,
    help="Of the square that is mixed, pixels: operations depend on it.",
)
@click.option(
    "--k", type=click.IntRange(0, 8), default=4, show_default=True, help="The most rounds."
)
@click.option(
    "--beta",
    type=click.FloatRange(1e-3),
    callback=finite,
    default=3.0,
    show_default=True,
    help="How much is kept of a picture.",
)
@click.option(
    "--severity",
    type=click.FloatRange(0.1, 10),
    callback=finite,
    default=3.0,
    show_default=True,
    help="Of the operations.",
)
@click.option(
    "--all-ops", is_flag=True, help="Also operations that overlap ImageNet-C's corruptions."
)
@seed_option("Another seed draws other numbers.")
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
    """Show what PixMix makes of an image, round by round.

    Each row is another draw. Below each round stand the picture that was mixed in, the operation
    that made it, and how much of the two was taken (a and b); the framed one is the result.
    """
    if bool(mixing_sets) == no_mixing_set:
        raise click.UsageError("give --mixing-set, once or more, or --no-mixing-set")
    _check_outputs({"--out": out, "--html": html}, [image, *mixing_sets])
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import mixing_figure, mixing_steps
        from pipelines.report.page import page, write_page
        from pipelines.report.sheet import write_sheet
        from pipelines.shards.images import read_picture
        from pipelines.system.processes import compile_kernels
        from pixmix.fused import pending
        from pixmix.settings import PixMixSettings

        # Both before a kernel is compiled.
        whole = read_picture(image)
        mixing_set = mixing_steps.MixingPictures(mixing_sets, size) if mixing_sets else None
        compile_kernels(pending)
        picture = mixing_steps.square(whole, size)
        settings = PixMixSettings(**numbers)
        draws = [
            mixing_steps.mix(picture, mixing_set, settings, (seed, 0, row)) for row in range(rows)
        ]
        write_sheet(mixing_figure.figure(picture, draws), out)
        if html is not None:
            lead = f"{image.name} under PixMix, round by round; each draw is another."
            sections = mixing_figure.sections(picture, draws)
            write_page(page("What PixMix does", lead, sections), html)
        document = {
            **mixing_steps.document(draws),
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
    "--index", type=click.IntRange(0), help="Which picture of a set.  [default: the file's]"
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture_path,
    metavar="GENOME.png",
    required=True,
    help="Where to draw it.",
)
@click.option(
    "--size",
    type=click.IntRange(64, 4096),
    default=640,
    show_default=True,
    help="Of the picture, pixels of its longer side.",
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
        from fractals.warming import pending
        from pipelines.report import genome_figure
        from pipelines.report.genome_files import read_genome
        from pipelines.report.genome_page import sections
        from pipelines.report.page import page, write_page
        from pipelines.report.sheet import write_sheet
        from pipelines.system.processes import compile_kernels

        read = read_genome(place, index)
        genome = read.genome
        compile_kernels(pending)
        write_sheet(genome_figure.figure(genome, size, read.shape), out)
        title = f"{genome.family}, seed {genome.seed}, picture {genome.index}"
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
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture_path,
    metavar="CURVES.png",
    help="Draw loss and errors over the epochs.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=csv_path,
    metavar="RUNS.csv",
    help="Write a row for each run: its last epoch, its settings and its evaluation.",
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
    """Show trainings side by side: what they reached, and which settings differ between them.

    DIR is an --out of pixmix-train. An evaluation is shown, too, where DIR/evaluation.json has what
    `pixmix-eval --json` printed.
    """
    with one_line_errors(_INTERRUPTED):
        from pipelines.report import runs
        from pipelines.report.page import page, write_page
        from pipelines.report.plotting import check_plotting
        from pipelines.report.run_files import files_read, read_runs
        from pipelines.report.run_settings import write_csv
        from pipelines.report.sheet import write_picture

        read = [path for folder in folders for path in files_read(folder)]
        _check_outputs({"--plot": plot, "--csv": csv_file, "--html": html}, read)
        if plot is not None or html is not None:
            check_plotting()
        shown = read_runs(folders)
        if csv_file is not None:
            write_csv(shown, csv_file)
        if plot is not None:
            write_picture(runs.curves(shown), plot)
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
    """Refuse to write over what is read, over another output, or a picture into a set of pictures.

    Args:
        outputs: option -> file, or None where it is not given.
        inputs: files, and folders of pictures.
    """
    taken: dict[Path, str] = {each.resolve(): f"is read as {each}" for each in inputs}
    for option, written in outputs.items():
        if written is None:
            continue
        whole = written.resolve()
        for folder in inputs:
            if option != "--html" and folder.is_dir() and whole.is_relative_to(folder.resolve()):
                raise click.BadParameter(
                    f"{written} lies inside {folder}, where it would be taken for one of its "
                    "pictures; put it elsewhere",
                    param_hint=f"'{option}'",
                )
        if whole in taken:
            raise click.BadParameter(
                f"{written} {taken[whole]} and would be overwritten; put it elsewhere",
                param_hint=f"'{option}'",
            )
        taken[whole] = f"is also what {option} writes"


if __name__ == "__main__":
    main()
