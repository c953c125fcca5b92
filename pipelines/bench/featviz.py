"""Benchmark feature visualization on one CPU thread, compared with a plain implementation."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from featviz import (
    COLOURS,
    Canvas,
    Network,
    Stage,
    best_precision,
    channel,
    draw_recipe,
    open_network,
    optimize_images,
    plan_stages,
    prepare_network,
)
from featviz.sampling import GROUP, recipe_canvas, recipe_objective
from pipelines.bench.references import PlainVisualization
from pipelines.bench.timing import (
    OURS,
    Comparison,
    Contender,
    Row,
    Target,
    one_thread,
    run_comparisons,
)
from pipelines.system.progress import Progress, no_progress

PACKAGES = ("numpy", "torch", "torchvision")

_PLAIN = "plain torch + torchvision"
_NETWORK, _LAYER, _SIDE = "resnet50", "layer3", 224
_STEPS = 128
"""Optimization steps of a default image."""
_SECONDS = {256: (3.0, 1.5), 128: (1.2, 1.2)}
"""Target and aim in seconds per image, by side."""
_CPU = torch.device("cpu")


def bench_featviz(
    rounds: int,
    progress: Progress = no_progress,
    *,
    batch: int = 8,
    plain_steps: int = 3,
    steps: int = 4,
    sides: tuple[int, ...] = (256, 128),
) -> list[Row]:
    """Time optimization steps of a ResNet-50 and whole images of the default network.

    Args:
        rounds: number of counted rounds of each comparison.
        progress: called with the number of finished runs and of all runs.
        batch: batch size of ours.
        plain_steps: steps of the plain implementation per round.
        steps: steps of ours per round, where single steps are timed.
        sides: sides of the whole images in pixels.
    """
    with one_thread():
        deep, default = open_network(_NETWORK, random_weights=True), open_network()
        whole = (_SIDE, _SIDE)
        single = [Stage(size=whole, window=whole, steps=steps)]
        comparisons = [
            _step_comparison(deep, batch, plain_steps, single, "whole"),
            _step_comparison(
                deep, batch, plain_steps, plan_stages(whole, _STEPS // 4), "as scheduled"
            ),
            *(_image_comparison(default, plain_steps, side) for side in sides),
        ]
        return run_comparisons(comparisons, rounds, progress)


def _step_comparison(
    network: Network, n: int, plain_steps: int, stages: list[Stage], name: str
) -> Comparison:
    """Compare optimization steps on images of 224 pixels; ours run n images at once."""
    precision = best_precision(network, _CPU)
    prepared = prepare_network(network, [_LAYER], device=_CPU, precision=precision)
    aim = channel(_LAYER, list(range(n)))
    colours = Canvas(
        size=stages[-1].size,
        decay=torch.ones(n),
        colours=COLOURS.repeat(n, 1, 1),
        tint=torch.zeros((n, 3)),
    )
    keys = [(0, index) for index in range(n)]

    def ours(_round: int) -> float:
        optimize_images(prepared, aim, colours, stages, keys)
        return float(n * (sum(stage.steps for stage in stages) - 1))

    def start(_round: int) -> None:
        optimize_images(prepared, aim, colours, [replace(stages[-1], steps=1)], keys)

    return Comparison(
        name=f"visualization, {_NETWORK} {_LAYER}, {_SIDE} px, {name}",
        unit="steps/s",
        contenders=(
            Contender(name=OURS, run=ours, start=start),
            Contender(name=_PLAIN, run=_plain(network, _LAYER, _SIDE, plain_steps)),
        ),
        targets=(
            Target(figure="ratio", unit="x", rule="at least", bar=6, aim=8.5,
                   value=lambda row: row.alternatives[0].ratio.median),
        ),
    )  # fmt: skip


def _image_comparison(network: Network, plain_steps: int, side: int) -> Comparison:
    """Compare default images, of another layer in each round, with steps of the plain version."""
    layers = {each.name: each.channels for each in network.default_layers()}
    precision = best_precision(network, _CPU)
    prepared = prepare_network(network, list(layers), device=_CPU, precision=precision)
    stages = plan_stages((side, side), _STEPS)
    plain_run = _plain(network, list(layers)[len(layers) // 2], side, plain_steps)

    def ours(round_index: int) -> float:
        first = round_index * GROUP
        together = [draw_recipe(0, index, layers) for index in range(first, first + GROUP)]
        optimize_images(
            prepared,
            recipe_objective(together, layers[together[0].layer]),
            recipe_canvas(together, (side, side), _CPU),
            stages,
            [each.key for each in together],
            scales=[each.scale for each in together],
        )
        return float(len(together))

    bar, aim = _SECONDS.get(side, (3.0, 3.0))
    return Comparison(
        name=f"visualization, {network.name}, {side} px, {_STEPS} steps",
        unit="images/s",
        contenders=(
            Contender(name=OURS, run=ours),
            Contender(name=_PLAIN, run=lambda round_index: plain_run(round_index) / _STEPS),
        ),
        targets=(
            Target(figure="an image", unit="s", rule="at most", bar=bar, aim=aim,
                   value=lambda row: 1 / row.rate.median),
        ),
    )  # fmt: skip


def _plain(network: Network, layer: str, side: int, steps: int) -> Callable[[int], float]:
    """Return a run of some steps of the plain version, on a copy of the network."""
    module = copy.deepcopy(network.module)
    plain = PlainVisualization(module, layer, 5, side, network.mean, network.std)

    def run(_round: int) -> float:
        for _ in range(steps):
            plain.step()
        return float(steps)

    return run
