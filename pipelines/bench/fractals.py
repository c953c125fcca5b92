"""Benchmark the rendering of fractals, compared with plain kernels and flam3.

flam3 is the reference renderer of fractal flames. Its settings are passed in the environment, as
its README documents; a quality is samples per pixel.
"""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import numpy as np

from fractals import draw_genome, render
from fractals.chaos import Affine, Camera, ChaosLayer, Map, Tone, VariationTerm, accumulate
from pipelines.bench.reference_kernels import (
    box,
    count_points,
    extent,
    keep_orbit,
    play_affine,
    play_flame,
    system,
)
from pipelines.bench.timing import (
    OURS,
    CommandRun,
    Comparison,
    Contender,
    Row,
    Spread,
    Target,
    calibrate,
    run_command,
    run_comparisons,
    variation,
    with_verdicts,
)
from pipelines.errors import PipelineError
from pipelines.generate.generators import encode
from pipelines.system.progress import Progress, no_progress

PACKAGES = ("numpy", "numba", "pillow")
NO_FLAM3 = (
    "flam3 is not compared: flam3-render and flam3-genome are not on the PATH (Debian: flam3-utils)"
)

_PLAIN = "plain numba"
_SIDE = 256
_QUALITY = 50
"""Samples per pixel of whole images, for flam3, too."""
_WHOLE_SET = 14_000
_FAIR_IMAGES = 64
"""With fewer images per job, start and end of the run dominate."""
_KEPT_POINTS = 100_000
"""Points per image in fractal-pretraining, which stores all of them before it counts."""
_VARIATIONS = ("spherical", "swirl", "julian", "polar", "sinusoidal")
_AFFINES: tuple[Affine, ...] = (
    (0.62, -0.32, 0.45, 0.32, 0.62, 0.3),
    (0.5, 0.3, -0.6, -0.3, 0.5, 0.35),
    (-0.42, 0.2, 0.5, 0.2, 0.45, -0.55),
    (0.4, 0.0, -0.4, 0.0, -0.4, -0.5),
)
_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


# --- flam3 ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Flam3:
    """The paths of flam3's programs."""

    render: str
    genome: str


def find_flam3() -> Flam3 | None:
    """Return flam3's programs if both are on the PATH (Debian: flam3-utils)."""
    render, genome = shutil.which("flam3-render"), shutil.which("flam3-genome")
    return Flam3(render=render, genome=genome) if render and genome else None


def flame_xml(layer: ChaosLayer, height: int, width: int) -> str:
    """Return a layer of affine maps and variations as flam3's XML, with quality 1 and palette 0.

    Of the variations with parameters, only julian is supported.
    """
    camera = layer.camera
    flame = ElementTree.Element(
        "flame",
        size=f"{width} {height}",
        center=f"{camera.centre[0]} {camera.centre[1]}",
        scale=f"{min(height, width) / camera.width}",
        quality="1",
        supersample="1",
        estimator_radius="0",
        palette="0",
    )
    for each in layer.maps:
        a, b, c, d, e, f = each.affine
        attributes = {
            "weight": f"{each.weight}",
            "color": f"{each.colour}",
            "color_speed": f"{each.speed}",
            "coefs": f"{a} {d} {b} {e} {c} {f}",
        }
        for term in each.variations:
            attributes[term.name] = f"{term.weight}"
            if term.name == "julian":
                power, distance = term.parameters
                attributes |= {"julian_power": f"{power:g}", "julian_dist": f"{distance:g}"}
        ElementTree.SubElement(flame, "xform", attributes)
    return ElementTree.tostring(flame, encoding="unicode")


def resized(xml: str, side: int) -> str:
    """Return the XML of flam3-genome for a square image of another side, with quality 1."""
    flame = ElementTree.fromstring(xml)
    if flame.tag != "flame":
        flame = next(flame.iter("flame"))
    width, height = (int(number) for number in flame.attrib["size"].split())
    flame.set("scale", f"{float(flame.attrib['scale']) * side / min(width, height)}")
    flame.set("size", f"{side} {side}")
    flame.set("quality", "1")
    return ElementTree.tostring(flame, encoding="unicode")


def random_genome(flam3: Flam3, seed: str) -> str:
    """Return the XML of a random genome that flam3 has accepted; the seed is any text."""
    return _run_flam3([flam3.genome], {"isaac_seed": seed, "seed": "1"}, "")


def render_flames(flam3: Flam3, flames: list[str], quality: float, folder: Path) -> None:
    """Render flames on one core, to JPEG files of quality 95.

    Args:
        flam3: the programs.
        flames: XML of `flame_xml` or `resized`.
        quality: samples per pixel.
        folder: folder of the images.

    Raises:
        PipelineError: if flam3 fails.
    """
    settings = {
        "qs": f"{quality}",
        "nthreads": "1",
        "isaac_seed": "pixmix",
        "seed": "1",
        "format": "jpg",
        "jpeg": "95",
        "prefix": f"{folder}{os.sep}",
    }
    _run_flam3([flam3.render], settings, f"<flames>{''.join(flames)}</flames>")


def _run_flam3(command: list[str], settings: dict[str, str], text: str) -> str:
    try:
        finished = subprocess.run(
            command,
            env={**os.environ, **settings},
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise PipelineError(
            f"{Path(command[0]).name} ended with exit code {error.returncode}; remove it from the "
            "PATH to leave flam3 out"
        ) from error
    return finished.stdout


# --- The benchmark -------------------------------------------------------------------------------


def bench_fractals(
    rounds: int,
    progress: Progress = no_progress,
    *,
    images: int,
    jobs: int,
    flam3: Flam3 | None,
    points: int = 20_000_000,
    images_per_round: int = 24,
) -> list[Row]:
    """Time chaos games, whole images and pixmix-gen.

    Args:
        rounds: number of counted rounds of each comparison.
        progress: called with the number of finished runs and of all runs.
        images: number of images that pixmix-gen generates, at least 2.
        jobs: number of processes of pixmix-gen.
        flam3: its programs; None to leave it out.
        points: points per round of our chaos games; plain kernels compute a fifth of them.
        images_per_round: number of images that we render per round; flam3 renders an eighth.

    Raises:
        PipelineError: if flam3 or pixmix-gen fails.
    """
    with TemporaryDirectory(prefix="pixmix-bench-") as name:
        folder = Path(name)
        comparisons = [
            _affine_comparison(points),
            *(_flame_comparison(points, n, flam3, folder) for n in (1, 2, 3)),
            _image_comparison(images_per_round, flam3, folder),
        ]
        rows = run_comparisons(comparisons, rounds, progress, more=1)
        rows.append(_measure_generation(images, jobs, folder))
    return rows


def layer_of(variations: int) -> ChaosLayer:
    """Return four maps with 0 to 5 variations each; without any, the last map sets the color."""
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
        speed = 0.5 if variations else 1.0
        maps.append(Map(affine=affine, variations=terms, weight=weight, colour=k / 3, speed=speed))
    return ChaosLayer(
        maps=tuple(maps), camera=Camera(centre=(0.0, 0.0), width=4.0), tone=Tone(exposure=1.0)
    )


# --- Points and iterations -----------------------------------------------------------------------


def _play_own(layer: ChaosLayer, points: int, round_index: int) -> float:
    return accumulate(layer, _SIDE, _SIDE, points / _SIDE**2, round_index).played


def _planes() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((_SIDE, _SIDE)), np.zeros((_SIDE, _SIDE))


def _affine_comparison(points: int) -> Comparison:
    layer = layer_of(0)
    maps, window = system(layer), box(layer, _SIDE, _SIDE)
    matrices = maps.affine.reshape(-1, 2, 3)
    fewer = max(points // 5, 1)

    def play_in_passes(round_index: int) -> float:
        counts = np.zeros((_SIDE, _SIDE))
        for done in range(0, fewer, _KEPT_POINTS):
            kept = keep_orbit(
                matrices, maps.cumulative, min(_KEPT_POINTS, fewer - done), round_index
            )
            count_points(kept, extent(kept), counts)
        return fewer

    def play_plain(round_index: int) -> float:
        play_affine(
            maps.affine, maps.cumulative, maps.colours, window, fewer, round_index, *_planes()
        )
        return fewer

    return Comparison(
        name="chaos game, affine, in colour",
        unit="M points/s",
        scale=1e6,
        contenders=(
            Contender(name=OURS, run=partial(_play_own, layer, points)),
            Contender(name="fractal-pretraining, reimplemented", run=play_in_passes),
            Contender(name=_PLAIN, run=play_plain),
        ),
        targets=(
            Target(figure="ratio", unit="x", rule="at least", bar=25, aim=30,
                   value=lambda row: row.alternatives[0].ratio.median),
        ),
    )  # fmt: skip


def _flame_comparison(
    points: int, variations: int, flam3: Flam3 | None, folder: Path
) -> Comparison:
    layer = layer_of(variations)
    maps, window = system(layer), box(layer, _SIDE, _SIDE)
    fewer = max(points // 5, 1)

    def play_plain(round_index: int) -> float:
        play_flame(maps, window, fewer, round_index, *_planes())
        return fewer

    contenders = [
        Contender(name=OURS, run=partial(_play_own, layer, points)),
        Contender(name=_PLAIN, run=play_plain),
    ]
    if flam3 is not None:
        flame, quality = flame_xml(layer, _SIDE, _SIDE), 0.65 * points / _SIDE**2

        def play_flam3(_round: int) -> float:
            render_flames(flam3, [flame], quality, folder)
            return quality * _SIDE**2

        def start_flam3(_round: int) -> None:
            render_flames(flam3, [flame], 0.1, folder)

        contenders.append(Contender(name="flam3-render", run=play_flam3, start=start_flam3))
    plural = "" if variations == 1 else "s"
    return Comparison(
        name=f"chaos game, {variations} variation{plural} a map",
        unit="M iterations/s",
        scale=1e6,
        contenders=tuple(contenders),
        targets=(
            Target(figure="rate", unit="M/s", rule="at least", bar=150, aim=220,
                   value=lambda row: row.rate.median),
        ),
    )  # fmt: skip


# --- Whole images --------------------------------------------------------------------------------


def _image_comparison(n: int, flam3: Flam3 | None, folder: Path) -> Comparison:
    """Compare drawing, rejecting, rendering and encoding images, with new genomes in each round."""
    seconds = {"draw": 0.0, "render": 0.0, "encode": 0.0}
    images = drafts = 0

    def ours(round_index: int) -> float:
        nonlocal images, drafts
        for index in range(max(round_index - 1, 0) * n, max(round_index, 1) * n):
            times = [time.perf_counter()]
            genome = draw_genome(0, index)
            times.append(time.perf_counter())
            image = render(genome, _SIDE, _QUALITY)
            times.append(time.perf_counter())
            encode(image, "jpg")
            times.append(time.perf_counter())
            if round_index > 0:  # The warm-up renders the images of round 1, and is not counted.
                for stage, begin, end in zip(seconds, times[:-1], times[1:], strict=True):
                    seconds[stage] += end - begin
                images += 1
                drafts += genome.attempt + 1
        return n

    def details() -> dict[str, float]:
        stages = {f"{stage}_milliseconds": 1000 * s / images for stage, s in seconds.items()}
        return {**stages, "acceptance_rate": images / drafts, "images": images}

    contenders = [Contender(name=OURS, run=ours)]
    if flam3 is not None:
        contenders.extend(_flam3_images(flam3, max(n // 8, 1), folder))
    return Comparison(
        name="fractals of all families, 256x256",
        unit="images/s",
        contenders=tuple(contenders),
        details=details,
        targets=(
            Target(figure="rate", unit="/s", rule="at least", bar=25, aim=40,
                   value=lambda row: row.rate.median),
        ),
    )  # fmt: skip


def _flam3_images(flam3: Flam3, n: int, folder: Path) -> list[Contender]:
    """Return flam3 with its search for genomes, and rendering alone."""
    found: list[str] = []

    def search_and_render(round_index: int) -> float:
        found[:] = [
            resized(random_genome(flam3, f"pixmix {round_index} {k}"), _SIDE) for k in range(n)
        ]
        return render_found(round_index)

    def render_found(_round: int) -> float:
        render_flames(flam3, found, _QUALITY, folder)
        return n

    return [
        Contender(name="flam3-genome + flam3-render", run=search_and_render),
        Contender(name="flam3-render alone", run=render_found),
    ]


# --- pixmix-gen ----------------------------------------------------------------------------------


def _measure_generation(images: int, jobs: int, folder: Path) -> Row:
    """Run pixmix-gen as a warm-up, for one image, and for all images."""
    calibrations, runs = [calibrate()], []
    for run, n in enumerate((1, 1, images)):
        out = folder / f"set-{run}"
        arguments = ["fractals", "--n", f"{n}", "--out", f"{out}", "--jobs", f"{jobs}"]
        runs.append(run_command(out / "images", "*.jpg", "pipelines.cli.gen", arguments))
        calibrations.append(calibrate())
    return generation_row(images, jobs, runs[1], runs[2], variation(calibrations))


def generation_row(
    images: int, jobs: int, one: CommandRun, full: CommandRun, calibration_variation: float
) -> Row:
    """Return the row of a run of pixmix-gen for one image and a run for all.

    With enough images, their difference predicts the time of a whole mixing set.
    """
    spent = full.seconds - one.seconds
    first = full.first_file_seconds if full.first_file_seconds is not None else full.seconds
    memory = full.peak_bytes * (jobs + 1) / 2**30
    details = {
        "jobs": jobs,
        "images": images,
        "seconds": full.seconds,
        "start_seconds": one.seconds,
        "first_image_seconds": first,
        "peak_bytes_of_largest_process": full.peak_bytes,
        "peak_gib_at_most": memory,
    }
    targets = [
        Target(figure="first image", unit="s", rule="at most", bar=3, value=lambda _row: first)
    ]
    # These targets were set for two cores.
    if jobs == 2:
        targets.append(
            Target(figure="memory", unit="GiB", rule="at most", bar=1, value=lambda _row: memory)
        )
    if images >= _FAIR_IMAGES * jobs and spent > 0:
        whole_set = one.seconds + (_WHOLE_SET - 1) * spent / (images - 1)
        details["whole_set_seconds"] = whole_set
        if jobs == 2:
            targets.append(
                Target(figure=f"{_WHOLE_SET:,}", unit="s", rule="at most", bar=480, aim=300,
                       value=lambda _row: whole_set)
            )  # fmt: skip
    row = Row(
        name=f"pixmix-gen fractals, {'1 job' if jobs == 1 else f'{jobs} jobs'}",
        unit="images/s",
        rate=Spread.of([images / full.seconds]),
        calibration_variation=calibration_variation,
        details=details,
    )
    return with_verdicts(row, targets)
