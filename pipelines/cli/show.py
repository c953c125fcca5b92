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

SHEET_PICTURES = 64


@click.group(epilog=example("pixmix-show set mixing-set/fractals --sheet sheet.png"))
def main() -> None:
    """Show what a set of pictures is worth."""


@main.command(name="set", epilog=example("pixmix-show set mixing-set/fractals --sheet sheet.png"))
@click.argument(
    "folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
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
    help=f"Draw {SHEET_PICTURES} of them, spread evenly, here (.png, .jpg or .webp).",
)
@command_options
def show_set(*, folder: Path, n: int, sheet: Path | None, as_json: bool) -> None:
    """Measure the pictures of a mixing set, or of any folder.

    Prints medians and percentiles beside those of fractals chosen by people and of photographs,
    and what a good mixing set should reach.
    """
    _check_sheet(sheet, folder)
    with one_line_errors("interrupted; nothing was written"):
        from pipelines.generate.plan import spread
        from pipelines.report import set_table
        from pipelines.report.set_statistics import measure_set
        from pipelines.report.sheet import contact_sheet, write_sheet
        from pipelines.shards.picture_files import picture_files, read_picture

        files = picture_files(folder)
        measured = files[:n]
        with progress_bar("pictures") as progress:
            statistics = measure_set(measured, progress=progress)
        if sheet is not None:
            chosen = [measured[place] for place in spread(SHEET_PICTURES, len(measured))]
            write_sheet(contact_sheet([read_picture(path) for path in chosen]), sheet)
        title = f"{folder}: {len(measured)} of {len(files)} pictures"
        document = {
            "folder": str(folder),
            "pictures": len(files),
            **set_table.document(statistics),
            "sheet": None if sheet is None else str(sheet),
        }
        say(f"{title}\n\n{set_table.table(statistics)}", document, as_json=as_json)


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


def _check_sheet(sheet: Path | None, folder: Path) -> None:
    if sheet is not None and sheet.resolve().is_relative_to(folder.resolve()):
        raise click.BadParameter(
            f"{sheet} lies inside {folder}, where it would be taken for one of its pictures; "
            "put it elsewhere",
            param_hint="'--sheet'",
        )


if __name__ == "__main__":
    main()
