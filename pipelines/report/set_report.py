"""All there is to see of one set, or of two side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.report import set_table
from pipelines.report.histograms import histograms
from pipelines.report.page import Picture, Section, Table, Text
from pipelines.report.set_pictures import SetPicture
from pipelines.report.set_statistics import SetStatistics, measure_set
from pipelines.report.sheet import contact_sheet
from pipelines.system.progress import Progress
from pipelines.system.ranges import spread
from pipelines.text_table import aligned

SHEET_PICTURES = 64
_GROUPS_SHOWN, _ALIKE_SHOWN = 12, 6


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """A set that was measured.

    name: tells it from another; where: its place; total: pictures that it has, of which the
    statistics are of the first; shown: those for a sheet, spread evenly over the measured ones.
    alike: of the first groups of near-duplicates the first pictures.
    """

    name: str
    where: Path
    total: int
    statistics: SetStatistics
    shown: tuple[SetPicture, ...]
    alike: tuple[tuple[SetPicture, ...], ...]

    @property
    def title(self) -> str:
        """Which pictures the statistics are of."""
        return f"{self.where}: {self.statistics.n} of {self.total} pictures"


def read_set(
    name: str, where: Path, pictures: Sequence[SetPicture], n: int, *, progress: Progress
) -> MeasuredSet:
    """Measure the first n pictures of a set.

    Args:
        name: what to call it.
        where: its place.
        pictures: all of it, as `set_pictures` returns them.
        n: 1 or more; a smaller set is measured whole.
        progress: called with pictures done and to do.

    Raises:
        PipelineError: if there are none, or none can be read.
        OSError: if the set cannot be read.
    """
    statistics = measure_set(pictures[:n], progress=progress)
    lost = set(statistics.unreadable)
    by_name = {each.name: each for each in pictures[:n]}
    measured = [each for name, each in by_name.items() if name not in lost]
    return MeasuredSet(
        name=name,
        where=where,
        total=len(pictures),
        statistics=statistics,
        shown=tuple(measured[place] for place in spread(SHEET_PICTURES, len(measured))),
        alike=tuple(
            tuple(by_name[name] for name in group[:_ALIKE_SHOWN])
            for group in statistics.doubled[:_GROUPS_SHOWN]
        ),
    )


def sheet_of(measured: MeasuredSet) -> Image.Image:
    """Return a sheet of 64 pictures of a set, or of all where there are fewer.

    Raises:
        PipelineError: if one cannot be read.
    """
    return contact_sheet([picture.read() for picture in measured.shown])


def histograms_of(sets: Sequence[MeasuredSet]) -> bytes:
    """Return the histograms of sets, a PNG; see `histograms`."""
    return histograms({each.name: each.statistics for each in sets})


def text_of(sets: Sequence[MeasuredSet]) -> str:
    """Return one set with its bars, or several side by side, as lines of aligned text."""
    titles = [each.title for each in sets]
    if len(sets) == 1:
        return f"{titles[0]}\n\n{set_table.table(sets[0].statistics)}"
    rows = set_table.comparison({each.name: each.statistics for each in sets})
    notes = [f"{each.name}: {set_table.summary(each.statistics)}" for each in sets]
    return "\n".join([*titles, "", *aligned(rows), "", *notes])


def document_of(measured: MeasuredSet) -> dict[str, Any]:
    """Return what is known of a set as plain JSON values."""
    return {
        "folder": str(measured.where),
        "pictures": measured.total,
        **set_table.document(measured.statistics),
    }


def sections_of(sets: Sequence[MeasuredSet]) -> list[Section]:
    """Return sets as sections of a page: sheets, statistics, histograms.

    Raises:
        PipelineError: if the extra `viz` is not installed, or a picture cannot be read.
    """
    sheets = [
        Picture(
            data=_jpeg(sheet_of(each)),
            description=f"A sheet of {len(each.shown)} pictures of {each.name}",
            caption=f"{each.title}; {len(each.shown)} of them, spread evenly.",
        )
        for each in sets
    ]
    if len(sets) == 1:
        header, *rows = set_table.judged(sets[0].statistics)
        caption = "Median, 10th and 90th percentile over the pictures, and what they should reach"
    else:
        header, *rows = set_table.comparison({each.name: each.statistics for each in sets})
        caption = "Median [10th, 90th percentile]"
    table = Table(header=header, rows=tuple(rows), caption=caption)
    doubled = [_near_duplicates(each) for each in sets if each.alike]
    notes = [Text(text=f"{each.name}: {set_table.summary(each.statistics)}") for each in sets]
    return [
        Section(title="Pictures", parts=tuple(sheets)),
        Section(title="Statistics", parts=(table, *notes)),
        *doubled,
        Section(
            title="How they are spread",
            parts=(
                Picture(
                    data=histograms_of(sets),
                    description="Histograms of each statistic, with references",
                    caption="Below each: median, and where known 10th to 90th percentile, of "
                    "flames that people chose and of photographs.",
                ),
            ),
        ),
    ]


def _near_duplicates(measured: MeasuredSet) -> Section:
    """Show the pictures that are nearly the same, a sheet a group."""
    groups = measured.statistics.doubled
    count = measured.statistics.n_superfluous
    told = f"{count} of {measured.statistics.n} pictures could be left out, for another is "
    told += f"nearly the same; they are in {len(groups)} group{'' if len(groups) == 1 else 's'}"
    if len(groups) > len(measured.alike):
        told += f", of which the first {len(measured.alike)} are shown"
    sheets = [
        Picture(
            data=_jpeg(contact_sheet([each.read() for each in shown], columns=len(shown))),
            description=f"{len(shown)} pictures that are nearly the same",
            caption=set_table.alike(group),
        )
        for group, shown in zip(groups, measured.alike, strict=False)
    ]
    return Section(
        title=f"Near-duplicates of {measured.name}", parts=(Text(text=f"{told}."), *sheets)
    )


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
