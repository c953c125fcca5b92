"""What a seed gives does not change by accident."""

import json
from typing import Any

import pytest

from fractals import FAMILIES, GENOME_VERSION, draw_genome, render
from fractals import genome as genomes
from golden_images import FILE, SEED_AND_INDEX, fingerprints

ADVICE = (
    "if images were meant to change, raise GENOME_VERSION, say so in the changelog under Output "
    "changes and run: python -m tests.golden_images"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    written: dict[str, Any] = json.loads(FILE.read_text())
    return written


@pytest.fixture(scope="module")
def current() -> dict[str, Any]:
    return fingerprints()


def test_the_golden_file_holds_every_family(golden: dict[str, Any]) -> None:
    names = {f"{family} {seed} {index}" for family in FAMILIES for seed, index in SEED_AND_INDEX}
    assert set(golden["images"]) == names
    assert len(names) == 12


def test_the_golden_file_is_of_this_version(golden: dict[str, Any]) -> None:
    assert golden["genome_version"] == GENOME_VERSION, ADVICE


@pytest.mark.parametrize("part", ["genome", "pixels"])
def test_genomes_and_pixels_are_those_on_record(
    golden: dict[str, Any], current: dict[str, Any], part: str
) -> None:
    changed = [
        name
        for name, written in golden["images"].items()
        if current["images"][name][part] != written[part]
    ]
    assert not changed, f"{part} of {', '.join(changed)} differ; {ADVICE}"


def test_settings_of_the_record_are_those_compared(
    golden: dict[str, Any], current: dict[str, Any]
) -> None:
    assert {key: golden[key] for key in ("size", "samples_per_pixel")} == {
        key: current[key] for key in ("size", "samples_per_pixel")
    }


def test_another_version_of_genomes_draws_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [draw_genome(0, index) for index in range(3)]
    shown = [render(genome, 32, 4).tobytes() for genome in drawn]
    monkeypatch.setattr(genomes, "GENOME_VERSION", GENOME_VERSION + 1)
    assert [draw_genome(0, index) for index in range(3)] == drawn
    assert [render(genome, 32, 4).tobytes() for genome in drawn] == shown
