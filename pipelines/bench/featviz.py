"""Feature visualization: milliseconds a step, and seconds a picture of the default network."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from featviz import (
    COLOURS,
    Canvas,
    Network,
    Precision,
    Stage,
    best_precision,
    channel,
    draw_recipe,
    open_network,
    plan_stages,
    prepare,
    visualize,
)
from featviz.sampling import GROUP, canvas, objective
from pipelines.bench.comparison import (
    OURS,
    Comparison,
    Findings,
    Ticks,
    count_runs,
    run_comparisons,
)
from pipelines.bench.plain_featviz import PlainVisualization
from pipelines.bench.results import Goal, Rival, Row
from pipelines.bench.threads import one_thread
from pipelines.bench.timing import Clock, Contender, Spread
from pipelines.system.progress import Progress, no_progress

PACKAGES = ("numpy", "torch", "torchvision")
PLAIN = "the plain way"

_TIMING_NETWORK, _TIMING_LAYER, _TIMING_SIDE = "resnet50", "layer3", 224
_STEPS = 128
"""Of a default picture."""


@dataclass(frozen=True, kw_only=True)
class FeatvizBenchSettings:
    """How much is run.

    rounds: that count, of each comparison. batch: pictures at once. plain_steps: that the plain
    twin takes a round. steps: ours, of a step's timing. sides: pixels of the default pictures.
    """

    rounds: int = 5
    batch: int = 8
    plain_steps: int = 3
    steps: int = 4
    sides: tuple[int, ...] = (256, 128)

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in ("rounds", "batch", "plain_steps", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


def bench_featviz(
    settings: FeatvizBenchSettings,
    *,
    progress: Progress = no_progress,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Run all benchmarks of feature visualization on one thread of the CPU, a row for each.

    Args:
        settings: how much is run.
        progress: called with how many runs of a contender are done and how many there are.
        clock: what the comparisons are timed with.
    """
    with one_thread():
        deep = open_network(_TIMING_NETWORK, allow_random=True)
        default = open_network()
        whole = (_TIMING_SIDE, _TIMING_SIDE)
        comparisons = [
            _step_comparison(
                deep, settings, [Stage(size=whole, window=whole, steps=settings.steps)], "whole"
            ),
            _step_comparison(deep, settings, plan_stages(whole, _STEPS // 4), "as scheduled"),
            *(_picture_comparison(default, settings, side) for side in settings.sides),
        ]
        ticks = Ticks(total=count_runs(comparisons, settings.rounds), progress=progress)
        return run_comparisons(comparisons, settings.rounds, clock, ticks)


def _step_comparison(
    network: Network, settings: FeatvizBenchSettings, stages: list[Stage], name: str
) -> Comparison:
    """Compare steps of a picture of 224 pixels, of ours `batch` pictures at once."""
    precision = best_precision(network, torch.device("cpu"))
    prepared = prepare(network, [_TIMING_LAYER], device=torch.device("cpu"), precision=precision)
    n = settings.batch
    aim = channel(_TIMING_LAYER, list(range(n)))
    plain_colours = Canvas(
        size=stages[-1].size,
        decay=torch.ones(n),
        colours=COLOURS.repeat(n, 1, 1),
        tint=torch.zeros((n, 3)),
    )

    keys = [(0, index) for index in range(n)]
    last = stages[-1]

    def ours(_number: int) -> float:
        visualize(prepared, aim, plain_colours, stages, keys)
        return float(n * (sum(stage.steps for stage in stages) - 1))

    def start(_number: int) -> None:
        visualize(prepared, aim, plain_colours, [replace(last, steps=1)], keys)

    def finish(rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        milliseconds, plain = 1000 / rate.median, 1000 / rivals[0].rate.median
        return Findings(
            goals=(
                Goal(
                    figure="ratio", unit="x", value=rivals[0].ratio.median, rule="at least", bar=6,
                    aim=8.5,
                ),
            ),
            details={"milliseconds": milliseconds},
            remarks=(
                f"{milliseconds:.1f} ms a step and picture in {precision}, plain {plain:.0f} ms",
            ),
        )  # fmt: skip

    return Comparison(
        name=f"visualization, {_TIMING_NETWORK} {_TIMING_LAYER}, {_TIMING_SIDE} px, {name}",
        unit="steps/s",
        scale=1.0,
        contenders=(
            Contender(name=OURS, run=ours, start=start),
            Contender(name=PLAIN, run=_plain(network, _TIMING_LAYER, _TIMING_SIDE, settings)),
        ),
        finish=finish,
    )


def _picture_comparison(network: Network, settings: FeatvizBenchSettings, side: int) -> Comparison:
    """Compare default pictures, round by round of another layer, with steps of the plain way."""
    precision: Precision = best_precision(network, torch.device("cpu"))
    layers = {each.name: each.channels for each in network.default_layers()}
    prepared = prepare(network, list(layers), device=torch.device("cpu"), precision=precision)
    stages = plan_stages((side, side), _STEPS)

    def ours(number: int) -> float:
        first = number * GROUP
        together = [draw_recipe(0, index, layers) for index in range(first, first + GROUP)]
        visualize(
            prepared,
            objective(together, layers[together[0].layer]),
            canvas(together, (side, side), torch.device("cpu")),
            stages,
            [each.key for each in together],
            scales=[each.scale for each in together],
        )
        return float(len(together))

    plain_steps = _plain(network, list(layers)[len(layers) // 2], side, settings)

    def plain(number: int) -> float:
        return plain_steps(number) / _STEPS

    def finish(rate: Spread, rivals: tuple[Rival, ...]) -> Findings:
        seconds, others = 1 / rate.median, 1 / rivals[0].rate.median
        bar, aim = {256: (3.0, 1.5), 128: (1.2, 1.2)}.get(side, (3.0, 3.0))
        goal = Goal(figure="a picture", unit="s", value=seconds, rule="at most", bar=bar, aim=aim)
        return Findings(
            goals=(goal,),
            details={"seconds": seconds},
            remarks=(f"{seconds:.2f} s a picture in {precision}, plain {others:.1f} s",),
        )

    return Comparison(
        name=f"visualization, {network.name}, {side} px, {_STEPS} steps",
        unit="pictures/s",
        scale=1.0,
        contenders=(Contender(name=OURS, run=ours), Contender(name=PLAIN, run=plain)),
        finish=finish,
    )


def _plain(
    network: Network, layer: str, side: int, settings: FeatvizBenchSettings
) -> Callable[[int], float]:
    """Return a run of some steps of the plain twin, on a network of its own."""
    twin = PlainVisualization(
        copy.deepcopy(network.module), layer, 5, side, network.mean, network.std
    )

    def run(_number: int) -> float:
        for _ in range(settings.plain_steps):
            twin.step()
        return float(settings.plain_steps)

    return run
