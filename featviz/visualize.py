"""Optimize images for an objective of a network."""

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
    MIN_SCALE,
    Canvas,
    Kind,
    Robustness,
    Size,
    draw_warps,
    low_frequencies,
    random_generator,
    set_low_frequencies,
    warp,
)
from featviz.capture import Layer, RedirectedRelus, capture_activations, find_layers, find_nonfinite
from featviz.folding import fold_batch_norms, has_grouped_convolutions
from featviz.networks import Network
from featviz.objectives import Objective

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

FEATVIZ_VERSION = 1
"""Incremented when the image of a recipe changes."""

_RATE = {"spectrum": 0.05, "phase": 0.3}
"""Adam's step size: lucid's for spectra; phases are angles."""

_MAX_SCALE = 4

DEFAULT_ROBUSTNESS = Robustness()
"""Default random warps."""

_REDIRECTED_STEPS = 16
"""As in lucid: by then, an image has left the region of dead ReLUs, or never will."""

_MIN_STAGE = 64
_WINDOW = 128
"""Pixels: side of the first stage, and of the window of later ones."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the optimization at one image size.

    Attributes:
        size: (height, width) of the image.
        window: (height, width) in pixels of the part that the network sees at each step.
        steps: Steps of the optimizer.
    """

    size: Size
    window: Size
    steps: int


def plan_stages(size: Size, steps: int) -> list[Stage]:
    """Return a coarse-to-fine schedule: 64 pixels per side, then doubling up to the full size.

    Beyond 128 pixels, the network sees a random window of 128 per step, which costs a quarter at
    256 and covers every position within a few steps. The first and the last stage have 1.5 times as
    many steps as the others.

    Args:
        size: (height, width) of the final image.
        steps: Total number of steps, at least one per stage.

    Raises:
        ValueError: If there are fewer steps than stages.
    """
    shorter = min(size)
    sides = [_MIN_STAGE]
    while sides[-1] * 1.5 < shorter:
        sides.append(sides[-1] * 2)
    sides[-1] = shorter
    n = len(sides)
    if steps < n:
        raise ValueError(f"steps is {steps}; an image of {size} has {n} stages, use at least {n}")
    weights = [3 if position in {0, n - 1} else 2 for position in range(n)]
    ends: list[int] = []
    for each in range(n):
        end = round(steps * sum(weights[: each + 1]) / sum(weights))
        # At least one step for this stage and for each later one.
        ends.append(min(max(end, each + 1, ends[-1] + 1 if ends else 1), steps - (n - 1 - each)))
    stages = []
    for side, start, end in zip(sides, [0, *ends], ends, strict=False):
        scale = side / shorter
        stage = (round(size[0] * scale), round(size[1] * scale))
        window = (min(stage[0], _WINDOW), min(stage[1], _WINDOW)) if side > _WINDOW else stage
        stages.append(Stage(size=stage, window=window, steps=end - start))
    return stages


@dataclass(frozen=True, kw_only=True)
class OptimizedImages:
    """Optimized images and their objectives.

    Attributes:
        images: (B, height, width, 3) uint8.
        values: (B,) float32, the objective of each final image, seen whole and without a warp; NaN
            if the image itself became NaN, which is then black.
    """

    images: NDArray[np.uint8]
    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PreparedNetwork:
    """A copy of a network for optimization: batch norms folded, in its final precision and device.

    Attributes:
        module: The copy.
        layers: Layers that an objective may use, by name.
        mean: (1, 3, 1, 1), for images in 0..1.
        std: (1, 3, 1, 1), for images in 0..1.
        dtype: Of the copy.
        device: Of the copy.
        only_size: See ``LayerInventory.size``.
        smallest: See ``LayerInventory.smallest``.
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
        """Return the input size of the network for a window of an image."""
        if self.only_size is not None:
            return self.only_size
        scale = max(1.0, self.smallest / min(window))
        return round(window[0] * scale), round(window[1] * scale)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return images in 0..1 as the input of the network."""
        normalized = (images - self.mean) / self.std
        return normalized.to(self.dtype, memory_format=torch.channels_last)


def best_precision(network: Network, device: torch.device) -> Precision:
    """Return the faster precision for a network and a device.

    bfloat16 on CUDA. A CPU with bfloat16 instructions gains in full convolutions and loses in
    depthwise ones: with AVX-512-BF16 (Zen 4), ResNet-50 is 2 x faster and EfficientNet-Lite0 1.3 x
    slower; with AMX tiles (Xeon), ResNet-50 is 2.7 x faster and EfficientNet-Lite0 1.1 to 1.4 x
    slower.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    if device.type != "cpu":
        return "float32"
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    is_faster = has_bfloat16 and not has_grouped_convolutions(network.module)
    return "bfloat16" if is_faster else "float32"


def prepare_network(
    network: Network, layers: Sequence[str], *, device: torch.device, precision: Precision
) -> PreparedNetwork:
    """Prepare a network for objectives of some layers.

    Args:
        network: See ``open_network``.
        layers: Names of the layers.
        device: Where it runs.
        precision: One of ``PRECISIONS``.

    Raises:
        ValueError: If a layer is unknown.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    found = find_layers(network.inventory.layers, layers)
    side = network.inventory.size or (network.inventory.smallest,) * 2
    example = torch.rand((1, 3, *side), generator=torch.Generator().manual_seed(0))
    module = fold_batch_norms(network.module, example, keep=layers).to(device, dtype)
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
    robustness: Robustness = DEFAULT_ROBUSTNESS,
    scales: Sequence[float] | None = None,
    init: Tensor | None = None,
) -> OptimizedImages:
    """Optimize images to maximize an objective.

    An image depends on its key, its part of canvas and objective, the stages and the number of
    images, and not on the other images (except with ``diversity``); on a CPU this holds bit for
    bit. With another number of images, some networks use other kernels, whose rounding leads to a
    different image of the same kind.

    Args:
        prepared: See ``prepare_network``; it must contain the objective's layers.
        objective: The objective.
        canvas: Parametrization of B images, on the network's device.
        stages: Coarse to fine, the last one of the canvas's size; see ``plan_stages``.
        keys: B random keys.
        robustness: Ranges of the random warps.
        scales: B magnifications of the patterns, ``MIN_SCALE``..4; None for 1.
        init: (B, 3, height, width) float32 in 0..1, initial images of the canvas's size; None for
            noise.

    Returns:
        The images and their objectives.

    Raises:
        ValueError: If keys, canvas, scales and stages do not match, or the objective uses another
            layer.
    """
    if len(keys) != len(canvas.decay):
        raise ValueError(
            f"{len(keys)} keys for a canvas of {len(canvas.decay)} images; pass one per image"
        )
    if not stages or stages[-1].size != canvas.size:
        raise ValueError(
            f"the last stage must have size {canvas.size}; use plan_stages({canvas.size}, steps)"
        )
    if scales is not None and not all(MIN_SCALE <= each <= _MAX_SCALE for each in scales):
        raise ValueError(f"scales are {list(scales)}; use {MIN_SCALE} to {_MAX_SCALE}")
    scale_tensor = None if scales is None else torch.tensor(scales, device=prepared.device)
    layers = find_layers(prepared.layers, sorted(objective.layers))
    if init is None:
        coefficients = canvas.draw([random_generator(*key, 0) for key in keys])
    else:
        coefficients = canvas.coefficients(init)
    total = sum(stage.steps for stage in stages)
    drawn = np.stack([draw_warps(random_generator(*key, 1), total, robustness) for key in keys], 1)
    warps = iter(torch.from_numpy(drawn).to(prepared.device))
    redirected = _REDIRECTED_STEPS
    with capture_activations(prepared.module, layers) as activations_of:
        for stage in stages:
            part = low_frequencies(coefficients, canvas.size, stage.size).requires_grad_()
            optimizer = torch.optim.Adam([part], lr=_RATE[canvas.kind])
            ascent = _Ascent(
                prepared, activations_of, objective, canvas, stage, robustness, scale_tensor
            )
            for now in islice(warps, stage.steps):
                part.grad = ascent.gradient(part, now, redirected=redirected > 0)
                optimizer.step()
                redirected -= 1
            set_low_frequencies(coefficients, part.detach(), canvas.size, stage.size)
        with torch.no_grad():
            images = (canvas.images(coefficients, canvas.size) * 255).round()
            values = objective(
                activations_of(prepared.preprocess(_resized_for(images / 255, prepared)))
            )
            nonfinite = ~images.isfinite().flatten(1).all(1)
            values = values.masked_fill(nonfinite, math.nan)
            # The result of casting NaN to an integer depends on the CPU.
            images = images.nan_to_num(0, 0, 0)
    return OptimizedImages(
        images=images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        values=values.float().cpu().numpy(),
    )


@dataclass(frozen=True)
class _Ascent:
    """One optimization stage: computes gradients of the objective."""

    prepared: PreparedNetwork
    activations_of: Callable[[Tensor], dict[str, Tensor]]
    objective: Objective
    canvas: Canvas
    stage: Stage
    robustness: Robustness
    scales: Tensor | None

    def gradient(self, part: Tensor, warps: Tensor, *, redirected: bool) -> Tensor:
        """Return the gradient of the negative objective.

        redirected: Use redirected ReLUs for images whose gradient is zero.
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
        values = self.objective(self.activations_of(self.prepared.preprocess(view)))
        # The sum, not the mean: an image's step must not depend on the number of images.
        (gradient,) = torch.autograd.grad(-values.sum(), part)
        return gradient


def explain_nonfinite(prepared: PreparedNetwork, images: NDArray[np.uint8]) -> str:
    """Return why the objectives of images are NaN or infinite, as a clause that names the layer.

    Args:
        prepared: The network.
        images: (B, height, width, 3), see ``OptimizedImages``.
    """
    inputs = torch.from_numpy(images).to(prepared.device).permute(0, 3, 1, 2).float() / 255
    # A NaN image was never seen by the network, so a grey one is tried as well.
    for each in (inputs, torch.full_like(inputs[:1], 0.5)):
        layer = find_nonfinite(prepared.module, prepared.preprocess(_resized_for(each, prepared)))
        if layer is not None:
            return f"the activations of layer {layer} are NaN or infinite"
    return "the gradient through the network is NaN or infinite"


def _resized_for(images: Tensor, prepared: PreparedNetwork) -> Tensor:
    """Return images, resized if the network requires another size."""
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
    robustness: Robustness = DEFAULT_ROBUSTNESS,
) -> NDArray[np.uint8]:
    """Return images that maximize an objective, with default settings for the rest.

    Args:
        network: See ``open_network``.
        objective: An objective of its layers.
        n: Number of images.
        seed: Random seed; the initial noise of image i does not depend on n.
        size: Side or (height, width) in pixels.
        steps: Steps of the optimizer, see ``plan_stages``.
        kind: Parametrization; see ``Canvas``.
        decay: Exponent of the spectrum; see ``Canvas``.
        magnitude: Magnitudes for kind "phase"; see ``mean_magnitude``.
        init: (n, height, width, 3) uint8, initial images, which determine the size; None for noise.
        device: A torch device.
        precision: Precision of the network; None for the faster one.
        robustness: Ranges of the random warps.

    Returns:
        (n, height, width, 3) uint8.

    Raises:
        ValueError: If a layer is unknown, an argument is out of range, or the network's output is
            NaN or infinite.
    """
    if n < 1:
        raise ValueError(f"n is {n}; use at least 1")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; use one of {', '.join(PRECISIONS)}")
    torch_device = torch.device(device)
    height, width = (size, size) if isinstance(size, int) else size
    if init is not None:
        if init.ndim != 4 or len(init) != n or init.shape[3] != 3 or init.dtype != np.uint8:
            raise ValueError(
                f"init is {init.dtype} of shape {init.shape}; "
                f"expected ({n}, height, width, 3) uint8"
            )
        height, width = init.shape[1:3]
    prepared = prepare_network(
        network,
        sorted(objective.layers),
        device=torch_device,
        precision=precision or best_precision(network, torch_device),
    )
    canvas = Canvas(
        size=(height, width),
        decay=torch.full((n,), decay, device=torch_device),
        colours=COLOURS.to(torch_device).repeat(n, 1, 1),
        tint=torch.zeros((n, 3), device=torch_device),
        kind=kind,
        magnitude=None if magnitude is None else magnitude.to(torch_device),
    )
    init_images = None
    if init is not None:
        init_images = torch.from_numpy(init).to(torch_device).permute(0, 3, 1, 2).float() / 255
    keys = [(seed, index) for index in range(n)]
    stages = plan_stages((height, width), steps)
    result = optimize_images(
        prepared, objective, canvas, stages, keys, robustness=robustness, init=init_images
    )
    if not np.isfinite(result.values).all():
        raise ValueError(
            f"{network.name}: {explain_nonfinite(prepared, result.images)}; use other weights, or "
            "earlier layers"
        )
    return result.images
