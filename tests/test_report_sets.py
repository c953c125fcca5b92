"""Statistics beside their references and bars."""

from dataclasses import replace
from pathlib import Path

import pytest

from image_sets import of_files, perfect, write_folder
from pipelines.report import sets
from pipelines.report.set_statistics import (
    measure_set,
)
from pipelines.report.sets import Target, table, verdicts
from pipelines.shards.images import (
    image_files,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of noise, of 256x256."""
    return write_folder(tmp_path)


def test_every_statistic_has_its_row_and_every_bar_its_verdict(folder: Path) -> None:
    assert {row.name for row in sets.ROWS} == set(
        measure_set(of_files(image_files(folder))).per_image
    )
    found = verdicts(perfect())
    assert len(found) == 21
    assert len({(verdict.statistic, verdict.measure) for verdict in found}) == 21
    assert all(verdict.met is True for verdict in found)


def test_a_bar_holds_its_own_ends_and_nothing_beyond() -> None:
    bar = Target(at_least=0.38, at_most=0.60)
    assert [bar.is_met_by(value) for value in (0.379, 0.38, 0.5, 0.60, 0.601)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert Target(at_least=0.7).is_met_by(99)


@pytest.mark.parametrize(
    ("statistic", "figure"),
    [(verdict.statistic, verdict.measure) for verdict in verdicts(perfect())],
)
def test_a_figure_below_its_bar_fails_that_bar_alone(statistic: str, figure: str) -> None:
    good = perfect()
    if statistic == "dead_images":
        worse = replace(good, dead=("black.png",))
    elif statistic == "near_duplicates":
        worse = replace(good, near_duplicates=(("a.png", "b.png"),))
    elif figure == "score":
        scores = {"colour_vendi": good.colour_vendi, "hog_vendi": good.hog_vendi, statistic: 1.0}
        worse = replace(good, **scores)
    else:
        lowered = replace(good.per_image[statistic], **{figure: -1.0})
        worse = replace(good, per_image={**good.per_image, statistic: lowered})
    failed = [verdict for verdict in verdicts(worse) if verdict.met is not True]
    assert [(verdict.statistic, verdict.measure, verdict.met) for verdict in failed] == [
        (statistic, figure, False)
    ]
    assert "20 of 21 bars met" in table(worse)
    assert table(worse).count("NOT MET") == 1


def test_fewer_than_64_images_are_not_judged_by_their_diversity() -> None:
    few = replace(perfect(), n=63, n_of_diversity=63, colour_vendi=2.0)
    unjudged = [verdict.statistic for verdict in verdicts(few) if verdict.met is None]
    assert unjudged == ["colour_vendi", "hog_vendi"]
    assert "19 of 19 bars met" in table(few)
    assert table(few).count("needs 64 images") == 2


def test_the_table_is_aligned_and_fits_a_wide_terminal() -> None:
    lines = table(perfect()).splitlines()
    assert len(lines) == 1 + len(sets.ROWS) + 2 + 2 + 2
    column = lines[0].index("median bar")
    assert all(line[column - 2 : column].strip() == "" for line in lines[1:17])
    assert max(map(len, lines)) <= 120
