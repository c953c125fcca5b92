"""Fractals: points, iterations and pictures a second, beside plain twins and flam3."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fractals import draw_genome, render
from fractals.genome import Affine, Camera, ChaosLayer, Map, Tone, VariationTerm
from fractals.kernels import accumulate
from pipelines.bench.command import Run, run_command
from pipelines.bench.comparison import (
    OURS,
    Comparison,
    Findings,
    Ticks,
    count_runs,
    run_comparisons,
)
from pipelines.bench.flam3 import Flam3, flame_xml, random_genome, render_flames, resized
from pipelines.bench.results import Goal, Rival, Row
from pipelines.bench.timing import (
    Clock,
    Contender,
    Spread,
    calibrate,
    variation,
)
from pipelines.bench.twins import (
    box,
    count_points,
    extent,
    keep_orbit,
    play_affine,
    play_flame,
    system,
)
from pipelines.generate.encoding import encode
from pipelines.system.progress import Progress, no_progress

TWIN = "plain numba twin"
GENERATOR_TWIN = "fractal-pretraining's way"
SIDE = 256
QUALITY = 50
"""Samples a pixel of whole pictures, ours and flam3's."""
WHOLE_SET = 14_000
FAIR_PICTURES = 64
"""Of a run of pixmix-gen, for each job: what fewer take is mostly its start and its end."""
NO_FLAM3 = (
    "flam3-render and flam3-genome are not on the PATH (Debian: flam3-utils), "
    "so they are not compared"
)
PACKAGES = ("numpy", "numba", "pillow")

_KEPT_POINTS = 100_000
"""Points of a picture in fractal-pretraining, and so what is kept at a time in its way."""
_MILLION = 1e6
_GIB = 2**30
_VARIATIONS = ("spherical", "swirl", "julian", "polar", "sinusoidal")
_AFFINES: tuple[Affine, ...] = (
    (0.62, -0.32, 0.45, 0.32, 0.62, 0.3),
    (0.5, 0.3, -0.6, -0.3, 0.5, 0.35),
    (-0.42, 0.2, 0.5, 0.2, 0.45, -0.55),
    (0.4, 0.0, -0.4, 0.0, -0.4, -0.5),
)
_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True, kw_only=True)
class FractalBenchSettings:
    """How much is run.

    rounds: that count, of each comparison. points, twin_points: chaos-game points a round of ours
    and of the twins; flam3_quality: samples a pixel of flam3 for its iteration rate.
    pictures_a_round, flam3_pictures: whole pictures of ours and of flam3 a round.
    pictures, jobs: of the run of pixmix-gen; `FAIR_PICTURES` a job tell how long a set would take.
    """

    rounds: int = 7
    points: int = 20_000_000
    twin_points: int = 4_000_000
    flam3_quality: int = 200
    pictures_a_round: int = 24
    flam3_pictures: int = 3
    pictures: int = 200
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name, least in (*((each, 1) for each in self.__dataclass_fields__), ("pictures", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")


def affine_layer() -> ChaosLayer:
    """Return a system of four affine maps; a point has the colour of the map that led to it."""
    maps = tuple(
        Map(affine=affine, weight=weight, colour=k / 3, speed=1.0)
        for k, (affine, weight) in enumerate(zip(_AFFINES, _WEIGHTS, strict=True))
    )
    return ChaosLayer(
        maps=maps, camera=Camera(centre=(0.0, 0.0), width=4.0), tone=Tone(exposure=1.0)
    )


def flame_layer(variations: int) -> ChaosLayer:
    """Return a flame of four maps with 1 to 5 variations each, of a common five in turn."""
    maps = []
    for k, (affine, weight) in enumerate(zip(_AFFINES, _WEIGHTS, strict=True)):
        names = [_VARIATIONS[(k + j) % len(_VARIATIONS)] for j in range(variations)]
        terms = tuple(
            VariationTerm(
                name=name,
                weight=round(1 / variations, 5),
                parameters=(3.0, 1.0) if name == "julian" else (),
            )
            for name in names
        )
        maps.append(Map(affine=affine, variations=terms, weight=weight, colour=k / 3, speed=0.5))
    return ChaosLayer(
        maps=tuple(maps), camera=Camera(centre=(0.0, 0.0), width=4.0), tone=Tone(exposure=1.0)
    )


def bench_fractals(
    settings: FractalBenchSettings,
    flam3: Flam3 | None,
    *,
    progress: Progress = no_progress,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Run all benchmarks of fractals and return a row for each.

    Args:
        settings: how much is run.
        flam3: the rival's programs, None to do without.
        progress: called with how many runs of a contender are done and how many there are.
        clock: what the comparisons are timed with.

    Raises:
        PipelineError: if flam3 or pixmix-gen fails.
    """
    with TemporaryDirectory(prefix="pixmix-bench-") as name:
        folder = Path(name)
        comparisons: list[Comparison] = [
            _affine_comparison(settings),
            *(_flame_comparison(settings, n, flam3, folder) for n in (1, 2, 3)),
            _picture_comparison(settings, flam3, folder, clock),
        ]
        ticks = Ticks(total=count_runs(comparisons, settings.rounds) + _SET_RUNS, progress=progress)
        rows = run_comparisons(comparisons, settings.rounds, clock, ticks)
        rows.append(_run_set(settings, folder, clock, ticks))
    return rows


# --- points and iterations -----------------------------------------------------------------------


def _play_ours(layer: ChaosLayer, points: int, number: int) -> float:
    return accumulate(layer, SIDE, SIDE, points / SIDE**2, number).played


def _affine_comparison(settings: FractalBenchSettings) -> Comparison:
    layer = affine_layer()
    maps, window = system(layer), box(layer, SIDE, SIDE)
    points, matrices = settings.twin_points, maps.affine.reshape(-1, 2, 3)

    def play_in_passes(number: int) -> float:
        counts = np.zeros((SIDE, SIDE))
        for done in range(0, points, _KEPT_POINTS):
            n = min(_KEPT_POINTS, points - done)
            kept = keep_orbit(matrices, maps.cumulative, n, number)
            count_points(kept, extent(kept), counts)
        return points

    def play_twin(number: int) -> float:
        counts, colour_sums = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
        play_affine(
            maps.affine, maps.cumulative, maps.colours, window, points, number, counts, colour_sums
        )
        return points

    def finish(_rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        ratio = rivals[0].ratio.median
        goal = Goal(figure="ratio", unit="x", value=ratio, rule="at least", bar=25, aim=30)
        return Findings(goals=(goal,))

    return Comparison(
        name="chaos game, affine, in colour",
        unit="M points/s",
        scale=_MILLION,
        contenders=(
            Contender(name=OURS, run=partial(_play_ours, layer, settings.points)),
            Contender(name=GENERATOR_TWIN, run=play_in_passes),
            Contender(name=TWIN, run=play_twin),
        ),
        finish=finish,
    )


def _flame_comparison(
    settings: FractalBenchSettings, variations: int, flam3: Flam3 | None, folder: Path
) -> Comparison:
    layer = flame_layer(variations)
    maps, window = system(layer), box(layer, SIDE, SIDE)

    def play_twin(number: int) -> float:
        counts, colour_sums = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
        play_flame(maps, window, settings.twin_points, number, counts, colour_sums)
        return settings.twin_points

    contenders = [
        Contender(name=OURS, run=partial(_play_ours, layer, settings.points)),
        Contender(name=TWIN, run=play_twin),
    ]
    if flam3 is not None:
        flame = flame_xml(layer, SIDE, SIDE)

        def play_flam3(quality: float, programs: Flam3, _number: int) -> float:
            render_flames(programs, [flame], quality, folder)
            return quality * SIDE**2

        def start_flam3(programs: Flam3, number: int) -> None:
            play_flam3(0.1, programs, number)

        contenders.append(
            Contender(
                name="flam3-render",
                run=partial(play_flam3, settings.flam3_quality, flam3),
                start=partial(start_flam3, flam3),
            )
        )

    def finish(rate: Spread, _rivals: tuple[Rival, ...]) -> Findings:
        goal = Goal(figure="rate", unit="M/s", value=rate.median, rule="at least", bar=150, aim=220)
        return Findings(goals=(goal,))

    plural = "" if variations == 1 else "s"
    return Comparison(
        name=f"chaos game, {variations} variation{plural} a map",
        unit="M iterations/s",
        scale=_MILLION,
        contenders=tuple(contenders),
        finish=finish,
    )


# --- whole pictures ------------------------------------------------------------------------------


@dataclass
class _Stages:
    """Seconds of each stage of our pictures, and how many drafts they took."""

    draw: float = 0.0
    render: float = 0.0
    encode: float = 0.0
    pictures: int = 0
    drafts: int = 0

    def paint(self, index: int, clock: Clock) -> None:
        """Paint one picture of seed 0 of the mixed family, and encode it."""
        begin = clock()
        genome = draw_genome(0, index)
        drawn = clock()
        picture = render(genome, SIDE, QUALITY)
        rendered = clock()
        encode(picture, "jpg")
        self.encode += clock() - rendered
        self.render += rendered - drawn
        self.draw += drawn - begin
        self.pictures += 1
        self.drafts += genome.attempt + 1

    def findings(self, rate: float) -> Findings:
        milliseconds = {
            name: getattr(self, name) / self.pictures * 1000
            for name in ("draw", "render", "encode")
        }
        kept = self.pictures / self.drafts
        stages = ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items())
        return Findings(
            goals=(Goal(figure="rate", unit="/s", value=rate, rule="at least", bar=25, aim=40),),
            details={
                **{f"{name}_milliseconds": value for name, value in milliseconds.items()},
                "acceptance_rate": kept,
                "pictures": self.pictures,
            },
            remarks=(f"{stages} a picture; {kept:.0%} of the drafts kept, drawing counts all",),
        )


def _picture_comparison(
    settings: FractalBenchSettings, flam3: Flam3 | None, folder: Path, clock: Clock
) -> Comparison:
    """Compare pictures drawn, rejected, rendered and encoded, other ones in each round."""
    stages = _Stages()
    n = settings.pictures_a_round

    def paint(number: int) -> float:
        # The warm-up takes the first round's pictures and is not counted.
        counted = stages if number > 0 else _Stages()
        for index in range(max(number - 1, 0) * n, max(number, 1) * n):
            counted.paint(index, clock)
        return n

    contenders = [Contender(name=OURS, run=paint)]
    if flam3 is not None:
        contenders.extend(_flam3_painters(flam3, settings.flam3_pictures, folder))
    return Comparison(
        name="fractals of all families, 256x256",
        unit="pictures/s",
        scale=1.0,
        contenders=tuple(contenders),
        finish=lambda rate, _rivals: stages.findings(rate.median),
    )


def _flam3_painters(flam3: Flam3, n: int, folder: Path) -> list[Contender]:
    """Return flam3 with its search for genomes, and flam3 rendering what it found."""
    found: list[str] = []

    def search_and_render(number: int) -> float:
        found[:] = [
            resized(random_genome(flam3, f"pixmix {number} {place}"), SIDE) for place in range(n)
        ]
        return render_found(number)

    def render_found(_number: int) -> float:
        render_flames(flam3, found, QUALITY, folder)
        return n

    return [
        Contender(name="flam3-genome + flam3-render", run=search_and_render),
        Contender(name="flam3-render alone", run=render_found),
    ]


# --- pixmix-gen ----------------------------------------------------------------------------------

_SET_RUNS = 3


def _run_set(settings: FractalBenchSettings, folder: Path, clock: Clock, ticks: Ticks) -> Row:
    """Run pixmix-gen from start to end: once to warm up, for one picture, and for all."""
    calibrations = [calibrate(clock)]
    runs = []
    for place, n in enumerate((1, 1, settings.pictures)):
        out = folder / f"set-{place}"
        arguments = ["fractals", "--n", f"{n}", "--out", f"{out}", "--jobs", f"{settings.jobs}"]
        runs.append(run_command(out / "images", "*.jpg", "pipelines.cli.gen", arguments))
        calibrations.append(calibrate(clock))
        ticks.tick()
    return set_row(settings, runs[1], runs[2], variation(calibrations))


def set_row(
    settings: FractalBenchSettings, one: Run, full: Run, calibration_variation: float
) -> Row:
    """Return the row of a run of pixmix-gen for one picture and one for all.

    What follows the first picture goes at the rate of a long run; a short one foretells nothing.
    """
    spent = full.seconds - one.seconds
    whole_set = None
    if settings.pictures >= FAIR_PICTURES * settings.jobs and spent > 0:
        whole_set = one.seconds + (WHOLE_SET - 1) * spent / (settings.pictures - 1)
    first = full.first_file_seconds if full.first_file_seconds is not None else full.seconds
    memory = full.peak_bytes * (settings.jobs + 1) / _GIB
    goals = [Goal(figure="first picture", unit="s", value=first, rule="at most", bar=3, aim=3)]
    # The bars were set for two cores and say nothing about other numbers.
    if settings.jobs == 2:
        goals.insert(
            0, Goal(figure="memory", unit="GiB", value=memory, rule="at most", bar=1, aim=1)
        )
        if whole_set is not None:
            goals.insert(
                0,
                Goal(
                    figure=f"{WHOLE_SET:,}", unit="s", value=whole_set, rule="at most", bar=480,
                    aim=300,
                ),
            )  # fmt: skip
    foretold = "" if whole_set is None else f"{WHOLE_SET:,} would take {whole_set:.0f} s; "
    jobs = "1 job" if settings.jobs == 1 else f"{settings.jobs} jobs"
    return Row(
        name=f"pixmix-gen fractals, {jobs}",
        unit="pictures/s",
        rate=Spread.of([settings.pictures / full.seconds]),
        goals=tuple(goals),
        calibration_variation=calibration_variation,
        details={
            "jobs": settings.jobs,
            "pictures": settings.pictures,
            "seconds": full.seconds,
            "start_seconds": one.seconds,
            "first_picture_seconds": first,
            **({} if whole_set is None else {"whole_set_seconds": whole_set}),
            "peak_bytes_of_largest_process": full.peak_bytes,
            "peak_gib_at_most": memory,
        },
        remarks=(
            f"{settings.pictures} pictures in {full.seconds:.1f} s, the first after {first:.1f} s; "
            f"{foretold}at most {memory:.2f} GiB "
            f"({settings.jobs + 1} processes of up to {full.peak_bytes / 2**20:.0f} MiB)",
        ),
    )
