"""`pixmix-demo`: the whole chain on data that need no download, to one report."""

from pathlib import Path

import click

from pipelines.cli.options import command_options, example, one_line_errors, say
from pipelines.cli.suggestions import SuggestingCommand


@click.command(
    cls=SuggestingCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example("pixmix-demo", "pixmix-demo --out somewhere/else"),
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Output folder; the same command resumes a stopped run.",
)
@command_options
def main(*, out: Path, as_json: bool) -> None:
    """Make a mixing set, train with and without it, and report the difference.

    Needs no download and no GPU, some minutes on two cores, and pip install 'pixmix[demo]'. Each
    stage shows its command. The same command resumes a stopped run.
    """
    with one_line_errors("interrupted; run the same command again to resume"):
        from pipelines import demo

        demo.check_extras()
        seconds = demo.run_stages(out, demo.stages(out), run=demo.run_command, show=_show)
        report = demo.write_report(out, seconds)
        text = f"the report is in {report.resolve()}"
        say(text, demo.document(out, report, seconds), as_json=as_json)


def _show(line: str, *, known: bool, printed: str | None) -> None:
    if printed is None:
        click.echo(f"$ {line}{'    # done before' if known else ''}", err=True)
    elif printed:
        click.echo(printed, err=True)


if __name__ == "__main__":
    main()
