"""The table of a set: statistics, references and targets."""

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
    """Return a folder with five 256x256 images of noise."""
    return write_folder(tmp_path)


def test_every_statistic_has_a_row_and_every_target_a_verdict(folder: Path) -> None:
    assert {row.name for row in sets.ROWS} == set(
        measure_set(of_files(image_files(folder))).per_image
    )
    found = verdicts(perfect())
    assert len(found) == 21
    assert len({(verdict.statistic, verdict.measure) for verdict in found}) == 21
    assert all(verdict.met is True for verdict in found)


def test_a_target_includes_its_bounds_and_nothing_beyond() -> None:
    target = Target(at_least=0.38, at_most=0.60)
    assert [target.is_met_by(value) for value in (0.379, 0.38, 0.5, 0.60, 0.601)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert Target(at_least=0.7).is_met_by(99)


@pytest.mark.parametrize(
    ("statistic", "measure"),
    [(verdict.statistic, verdict.measure) for verdict in verdicts(perfect())],
)
def test_a_value_below_its_target_fails_only_that_target(statistic: str, measure: str) -> None:
    good = perfect()
    if statistic == "dead_images":
        worse = replace(good, dead=("black.png",))
    elif statistic == "near_duplicates":
        worse = replace(good, near_duplicates=(("a.png", "b.png"),))
    elif measure == "score":
        scores = {"colour_vendi": good.colour_vendi, "hog_vendi": good.hog_vendi, statistic: 1.0}
        worse = replace(good, **scores)
    else:
        lowered = replace(good.per_image[statistic], **{measure: -1.0})
        worse = replace(good, per_image={**good.per_image, statistic: lowered})
    failed = [verdict for verdict in verdicts(worse) if verdict.met is not True]
    assert [(verdict.statistic, verdict.measure, verdict.met) for verdict in failed] == [
        (statistic, measure, False)
    ]
    assert "20 of 21 targets met" in table(worse)
    assert table(worse).count("NOT MET") == 1


def test_diversity_of_fewer_than_64_images_has_no_verdict() -> None:
    few = replace(perfect(), n=63, n_for_diversity=63, colour_vendi=2.0)
    unjudged = [verdict.statistic for verdict in verdicts(few) if verdict.met is None]
    assert unjudged == ["colour_vendi", "hog_vendi"]
    assert "19 of 19 targets met" in table(few)
    assert table(few).count("needs 64 images") == 2


def test_the_table_is_aligned_and_fits_a_wide_terminal() -> None:
    lines = table(perfect()).splitlines()
    assert len(lines) == 1 + len(sets.ROWS) + 2 + 2 + 2
    column = lines[0].index("median target")
    assert all(line[column - 2 : column].strip() == "" for line in lines[1:17])
    assert max(map(len, lines)) <= 120
