"""The genomes and pixels of a seed do not change by accident."""

import json
from typing import Any

import pytest

from fractals import FAMILIES, GENOME_VERSION, draw_genome, render
from fractals import genome as genomes
from golden_images import FILE, SEED_AND_INDEX, fingerprints

ADVICE = (
    "if images are meant to change, raise GENOME_VERSION, add a line under Output changes in the "
    "changelog, and run: python -m tests.golden_images"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(FILE.read_text())
    return recorded


@pytest.fixture(scope="module")
def current() -> dict[str, Any]:
    return fingerprints()


def test_the_golden_file_covers_every_family(golden: dict[str, Any]) -> None:
    names = {f"{family} {seed} {index}" for family in FAMILIES for seed, index in SEED_AND_INDEX}
    assert set(golden["images"]) == names
    assert len(names) == 12


def test_the_golden_file_has_the_current_version(golden: dict[str, Any]) -> None:
    assert golden["genome_version"] == GENOME_VERSION, ADVICE


@pytest.mark.parametrize("part", ["genome", "pixels"])
def test_genomes_and_pixels_equal_the_golden_ones(
    golden: dict[str, Any], current: dict[str, Any], part: str
) -> None:
    changed = [
        name
        for name, recorded in golden["images"].items()
        if current["images"][name][part] != recorded[part]
    ]
    assert not changed, f"{part} of {', '.join(changed)} differ; {ADVICE}"


def test_the_golden_file_has_the_compared_settings(
    golden: dict[str, Any], current: dict[str, Any]
) -> None:
    assert {key: golden[key] for key in ("size", "samples_per_pixel")} == {
        key: current[key] for key in ("size", "samples_per_pixel")
    }


def test_the_genome_version_does_not_affect_images(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [draw_genome(0, index) for index in range(3)]
    rendered = [render(genome, 32, 4).tobytes() for genome in drawn]
    monkeypatch.setattr(genomes, "GENOME_VERSION", GENOME_VERSION + 1)
    assert [draw_genome(0, index) for index in range(3)] == drawn
    assert [render(genome, 32, 4).tobytes() for genome in drawn] == rendered
