"""`pixmix-show`: look at sets of pictures, as numbers and as sheets."""

from pathlib import Path

import click

from pipelines.cli.options import (
    command_options,
    example,
    html_option,
    one_line_errors,
    picture_path,
    progress_bar,
    say,
)

# As in report.set_report, which would take seconds to import for the help; a test holds them equal.
SHEET_PICTURES = 64

_SET = click.Path(exists=True, path_type=Path)


@click.group(epilog=example("pixmix-show set mixing-set/fractals --sheet sheet.png"))
def main() -> None:
    """Show what a set of pictures is worth."""


@main.command(
    name="set",
    epilog=example(
        "pixmix-show set mixing-set/fractals --sheet sheet.png",
        "pixmix-show set mixing-set/fractals --against mixing-set/featviz --html report.html",
    ),
)
@click.argument("pictures", metavar="DIR|SHARDS|TAR", type=_SET)
@click.option("--against", type=_SET, metavar="DIR|SHARDS|TAR", help="A second set, beside it.")
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
    """Measure the pictures of a mixing set, or of any folder, shards or tar.

    Prints medians and percentiles beside those of fractals chosen by people and of photographs,
    what a good mixing set should reach, and which pictures are dead or nearly the same.
    """
    if against is not None and against.resolve() == pictures.resolve():
        raise click.BadParameter(
            f"{against} is the same set as {pictures}; name another", param_hint="'--against'"
        )
    places = [pictures] if against is None else [pictures, against]
    for place in places:
        _check_outside(sheet, "--sheet", place)
        _check_outside(plot, "--plot", place)
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.report import set_report
        from pipelines.report.measures import check_plotting, names_of
        from pipelines.report.page import page, write_page
        from pipelines.report.sheet import write_picture, write_sheet

        if plot is not None or html is not None:
            # Before what takes long, and would be lost.
            check_plotting()
        sets = []
        for name, place in zip(names_of(places), places, strict=True):
            with progress_bar("pictures") as progress:
                sets.append(set_report.read_set(name, place, n, progress=progress))
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
    name="run",
    epilog=example(
        "pixmix-show run runs/digits",
        "pixmix-show run runs/digits runs/plain --html report.html --plot curves.png",
    ),
)
@click.argument(
    "folders",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=picture_path,
    metavar="CURVES.png",
    help="Draw loss and errors over the epochs.",
)
@html_option
@command_options
def show_run(
    *, folders: tuple[Path, ...], plot: Path | None, html: Path | None, as_json: bool
) -> None:
    """Show trainings side by side: what they reached, and how.

    DIR is an --out of pixmix-train. An evaluation is shown, too, where DIR/evaluation.json has what
    `pixmix-eval --json` printed.
    """
    with one_line_errors("interrupted"):
        from pipelines.report import runs
        from pipelines.report.page import page, write_page
        from pipelines.report.sheet import write_picture

        shown = runs.read_runs(folders)
        if plot is not None:
            write_picture(runs.curves(shown), plot)
        if html is not None:
            names = ", ".join(run.name for run in shown)
            write_page(page("Trainings", names, runs.sections(shown)), html)
        document = {
            **runs.document(shown),
            "plot": None if plot is None else str(plot),
            "html": None if html is None else str(html),
        }
        say(runs.table(shown), document, as_json=as_json)


def _check_outside(written: Path | None, option: str, pictures: Path) -> None:
    """Refuse to write a picture where it would be taken for one of a set."""
    if (
        written is not None
        and pictures.is_dir()
        and written.resolve().is_relative_to(pictures.resolve())
    ):
        raise click.BadParameter(
            f"{written} lies inside {pictures}, where it would be taken for one of its pictures; "
            "put it elsewhere",
            param_hint=f"'{option}'",
        )


if __name__ == "__main__":
    main()
