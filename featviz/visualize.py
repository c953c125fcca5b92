"""From a network, an objective and random keys to images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featviz.canvas import (
    COLOURS,
    LEAST_SCALE,
    Canvas,
    Kind,
    Robustness,
    Size,
    draw_warps,
    generator,
    low,
    put_low,
    warp,
)
from featviz.capture import Layer, RedirectedRelus, capturing, find_layers, find_nonfinite
from featviz.folding import folded, has_grouped_convolutions
from featviz.networks import Network
from featviz.objectives import Objective

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

FEATVIZ_VERSION = 1
"""Counts the changes of images."""

_RATE = {"spectrum": 0.05, "phase": 0.3}
"""Steps of Adam: lucid's for spectra; phases are angles."""

_LARGEST_SCALE = 4

USUAL = Robustness()
"""How images are looked at unless something else is said."""

_REDIRECTED_STEPS = 16
"""As in lucid: by then an image has left the place where all is dead, or never will."""

_COARSEST = 64
_WINDOW = 128
"""Pixels: side of the first stage, and of the window through which later ones look."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the optimization at one size.

    size: of the image, (height, width). window: pixels of it that the network sees a step.
    steps: of the optimizer.
    """

    size: Size
    window: Size
    steps: int


def plan_stages(size: Size, steps: int) -> list[Stage]:
    """Return a coarse-to-fine schedule: 64 pixels a side, then twice as many, up to the full size.

    Beyond 128 pixels the network sees a window of 128 a step, anywhere in the image, which costs
    a quarter at 256 and reaches every place in a few steps. The first and the last stage have half
    as many steps again as those between.

    Args:
        size: of the finished image, (height, width).
        steps: of all stages together, at least one a stage.

    Raises:
        ValueError: if there are fewer steps than stages.
    """
    shorter = min(size)
    sides = [_COARSEST]
    while sides[-1] * 1.5 < shorter:
        sides.append(sides[-1] * 2)
    sides[-1] = shorter
    n = len(sides)
    if steps < n:
        raise ValueError(f"steps is {steps}; an image of {size} has {n} stages, give at least {n}")
    weights = [3 if position in {0, n - 1} else 2 for position in range(n)]
    ends: list[int] = []
    for each in range(n):
        end = round(steps * sum(weights[: each + 1]) / sum(weights))
        # At least one step for this stage, and for each that follows.
        ends.append(min(max(end, each + 1, ends[-1] + 1 if ends else 1), steps - (n - 1 - each)))
    stages = []
    for side, begin, end in zip(sides, [0, *ends], ends, strict=False):
        scale = side / shorter
        stage = (round(size[0] * scale), round(size[1] * scale))
        window = (min(stage[0], _WINDOW), min(stage[1], _WINDOW)) if side > _WINDOW else stage
        stages.append(Stage(size=stage, window=window, steps=end - begin))
    return stages


@dataclass(frozen=True, kw_only=True)
class OptimizedImages:
    """What came out.

    images: (B, height, width, 3) uint8. values: (B,) float32, the objective of each finished
    image, seen whole and straight; NaN where the image itself came out as NaN, and is black.
    """

    images: NDArray[np.uint8]
    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PreparedNetwork:
    """A network made ready to be looked into: a copy, folded, in the precision it runs in.

    layers: that may be looked at. only_size, smallest: see `LayerInventory`.
    """

    module: nn.Module
    layers: Mapping[str, Layer]
    mean: Tensor
    std: Tensor
    dtype: torch.dtype
    device: torch.device
    only_size: Size | None
    smallest: int

    def input_size(self, window: Size) -> Size:
        """Return the size at which the network is shown a window of an image."""
        if self.only_size is not None:
            return self.only_size
        scale = max(1.0, self.smallest / min(window))
        return round(window[0] * scale), round(window[1] * scale)

    def enter(self, images: Tensor) -> Tensor:
        """Return images in 0..1 as the network wants them."""
        normalized = (images - self.mean) / self.std
        return normalized.to(self.dtype, memory_format=torch.channels_last)


def best_precision(network: Network, device: torch.device) -> Precision:
    """Return the faster one: bfloat16 on CUDA, and on CPUs that have it for full convolutions.

    A CPU gains by it in full convolutions and loses in depthwise ones, with AVX-512-BF16 alone
    (ResNet-50 2 x faster, EfficientNet-Lite0 1.3 x slower on a Zen 4) as with tiles (AMX: ResNet-50
    2.7 x faster, EfficientNet-Lite0 1.1 to 1.4 x slower on a Xeon).
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    if device.type != "cpu":
        return "float32"
    has_it = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    fast = has_it and not has_grouped_convolutions(network.module)
    return "bfloat16" if fast else "float32"


def prepare_network(
    network: Network, layers: Sequence[str], *, device: torch.device, precision: Precision
) -> PreparedNetwork:
    """Make a network ready for the images of some layers.

    Raises:
        ValueError: if it has no such layer.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    found = find_layers(network.inventory.layers, layers)
    side = network.inventory.size or (network.inventory.smallest,) * 2
    example = torch.rand((1, 3, *side), generator=torch.Generator().manual_seed(0))
    module = folded(network.module, example, keep=layers).to(device, dtype)
    module = module.to(memory_format=torch.channels_last)
    shape = (1, 3, 1, 1)
    return PreparedNetwork(
        module=module,
        layers={each.name: each for each in found},
        mean=torch.tensor(network.mean, device=device).view(shape),
        std=torch.tensor(network.std, device=device).view(shape),
        dtype=dtype,
        device=device,
        only_size=network.inventory.size,
        smallest=network.inventory.smallest,
    )


def optimize_images(
    prepared: PreparedNetwork,
    objective: Objective,
    canvas: Canvas,
    stages: Sequence[Stage],
    keys: Sequence[tuple[int, ...]],
    *,
    robustness: Robustness = USUAL,
    scales: Sequence[float] | None = None,
    init: Tensor | None = None,
) -> OptimizedImages:
    """Optimize images until they excite what an objective asks for.

    An image depends on its key, its part of canvas and objective, the stages and the number of
    images, and not on the others (but for `diversity`): on a CPU not one bit. With another number
    some networks are computed by other kernels, whose rounding leads to an image of the same kind.

    Args:
        prepared: see `prepare_network`; it must hold the objective's layers.
        objective: what is to rise.
        canvas: B images, on the network's device.
        stages: coarse to fine, the last of the canvas's size; see `plan_stages`.
        keys: B keys of random numbers.
        robustness: how the network looks at the images.
        scales: B numbers, `LEAST_SCALE`..4; how many times larger than usual the forms are; None
            for 1.
        init: (B, 3, *canvas.size) float32 in 0..1, images to begin with; None for noise.

    Returns:
        The images and what they reached.

    Raises:
        ValueError: if keys, canvas, scales and stages do not fit, or the objective has another
            layer.
    """
    if len(keys) != len(canvas.decay):
        raise ValueError(f"{len(keys)} keys for a canvas of {len(canvas.decay)} images")
    if not stages or stages[-1].size != canvas.size:
        raise ValueError(f"the last stage is not of {canvas.size}; see plan_stages")
    if scales is not None and not all(LEAST_SCALE <= each <= _LARGEST_SCALE for each in scales):
        raise ValueError(f"scales are {list(scales)}; give {LEAST_SCALE} to {_LARGEST_SCALE}")
    enlarged = None if scales is None else torch.tensor(scales, device=prepared.device)
    layers = find_layers(prepared.layers, sorted(objective.layers))
    if init is None:
        coefficients = canvas.draw([generator(*key, 0) for key in keys])
    else:
        coefficients = canvas.coefficients(init)
    total = sum(stage.steps for stage in stages)
    drawn = np.stack([draw_warps(generator(*key, 1), total, robustness) for key in keys], 1)
    warps = iter(torch.from_numpy(drawn).to(prepared.device))
    redirected = _REDIRECTED_STEPS
    with capturing(prepared.module, layers) as look:
        for stage in stages:
            part = low(coefficients, canvas.size, stage.size).requires_grad_()
            optimizer = torch.optim.Adam([part], lr=_RATE[canvas.kind])
            ascent = _Ascent(prepared, look, objective, canvas, stage, robustness, enlarged)
            for now in islice(warps, stage.steps):
                part.grad = ascent.gradient(part, now, redirected=redirected > 0)
                optimizer.step()
                redirected -= 1
            put_low(coefficients, part.detach(), canvas.size, stage.size)
        with torch.no_grad():
            images = (canvas.images(coefficients, canvas.size) * 255).round()
            values = objective(look(prepared.enter(_as_wanted(images / 255, prepared))))
            broken = ~images.isfinite().flatten(1).all(1)
            values = values.masked_fill(broken, math.nan)
            # What a cast of NaN gives is the processor's choice.
            images = images.nan_to_num(0, 0, 0)
    return OptimizedImages(
        images=images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        values=values.float().cpu().numpy(),
    )


@dataclass(frozen=True)
class _Ascent:
    """The way from coefficients to a gradient at one stage."""

    prepared: PreparedNetwork
    look: Callable[[Tensor], dict[str, Tensor]]
    objective: Objective
    canvas: Canvas
    stage: Stage
    robustness: Robustness
    scales: Tensor | None

    def gradient(self, part: Tensor, warps: Tensor, *, redirected: bool) -> Tensor:
        """Return the gradient of what is to sink.

        redirected: an image without any gradient gets one through its dead ReLUs.
        """
        plain = self._gradient(part, warps)
        if redirected:
            dead = ~plain.flatten(1).any(1)
            if bool(dead.any()):
                with RedirectedRelus():
                    plain[dead] = self._gradient(part, warps)[dead]
        return plain

    def _gradient(self, part: Tensor, warps: Tensor) -> Tensor:
        stage = self.stage
        images = self.canvas.images(part, stage.size, warps[:, 2:])
        output = self.prepared.input_size(stage.window)
        view = warp(images, warps[:, :2], stage.window, output, self.robustness, self.scales)
        values = self.objective(self.look(self.prepared.enter(view)))
        # The sum, so that an image's step does not depend on how many there are.
        (gradient,) = torch.autograd.grad(-values.sum(), part)
        return gradient


def explain_nonfinite(prepared: PreparedNetwork, images: NDArray[np.uint8]) -> str:
    """Return why the values of images are NaN or infinite, as a clause that names the layer.

    Args:
        prepared: the network that they are from.
        images: (B, height, width, 3), see `OptimizedImages`.
    """
    shown = torch.from_numpy(images).to(prepared.device).permute(0, 3, 1, 2).float() / 255
    # An image that is NaN stands for none that was shown; grey is as good as any.
    for each in (shown, torch.full_like(shown[:1], 0.5)):
        layer = find_nonfinite(prepared.module, prepared.enter(_as_wanted(each, prepared)))
        if layer is not None:
            return f"the activations of layer {layer} are NaN or infinite"
    return "the gradient through the network is NaN or infinite"


def _as_wanted(images: Tensor, prepared: PreparedNetwork) -> Tensor:
    """Return images at a size that the network takes."""
    size = prepared.input_size((images.shape[2], images.shape[3]))
    if size == tuple(images.shape[2:]):
        return images
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def visualize(
    network: Network,
    objective: Objective,
    *,
    n: int,
    seed: int = 0,
    size: int | Size = 256,
    steps: int = 128,
    kind: Kind = "spectrum",
    decay: float = 1.0,
    magnitude: Tensor | None = None,
    init: NDArray[np.uint8] | None = None,
    device: str = "cpu",
    precision: Precision | None = None,
    robustness: Robustness = USUAL,
) -> NDArray[np.uint8]:
    """Paint images that excite what an objective asks for, with everything else as usual.

    Args:
        network: see `open_network`.
        objective: of its layers.
        n: images.
        seed: of their random numbers; image i of a seed begins alike whatever n is.
        size: in pixels, a side or (height, width).
        steps: of the optimizer, see `plan_stages`.
        kind: of the parametrization; see `Canvas`.
        decay: of the amplitudes; see `Canvas`.
        magnitude: for kind "phase", of images of one's own; see `mean_magnitude`.
        init: (n, height, width, 3) uint8, images to begin with, which say the size; None for
            noise.
        device: as torch names it.
        precision: of the network; None for the faster one.
        robustness: how the network looks at the images.

    Returns:
        (n, height, width, 3) uint8.

    Raises:
        ValueError: if a layer is unknown, a number is out of its range, or what the network gives
            is NaN or infinite.
    """
    if n < 1:
        raise ValueError(f"n is {n}; give at least 1")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; give one of {', '.join(PRECISIONS)}")
    where = torch.device(device)
    height, width = (size, size) if isinstance(size, int) else size
    if init is not None:
        if init.ndim != 4 or len(init) != n or init.shape[3] != 3 or init.dtype != np.uint8:
            raise ValueError(
                f"init is {init.dtype} of shape {init.shape}; give ({n}, height, width, 3) uint8"
            )
        height, width = init.shape[1:3]
    both = (height, width)
    prepared = prepare_network(
        network,
        sorted(objective.layers),
        device=where,
        precision=precision or best_precision(network, where),
    )
    canvas = Canvas(
        size=both,
        decay=torch.full((n,), decay, device=where),
        colours=COLOURS.to(where).repeat(n, 1, 1),
        tint=torch.zeros((n, 3), device=where),
        kind=kind,
        magnitude=None if magnitude is None else magnitude.to(where),
    )
    first = None
    if init is not None:
        first = torch.from_numpy(init).to(where).permute(0, 3, 1, 2).float() / 255
    keys = [(seed, index) for index in range(n)]
    stages = plan_stages(both, steps)
    made = optimize_images(
        prepared, objective, canvas, stages, keys, robustness=robustness, init=first
    )
    if not np.isfinite(made.values).all():
        raise ValueError(
            f"{network.name}: {explain_nonfinite(prepared, made.images)}; use other weights, or "
            "layers before it"
        )
    return made.images
