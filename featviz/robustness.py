"""Transformation robustness: each picture is looked at through a small affine warp a step.

Without it the optimization finds noise that excites a network at one exact position only (Olah et
al. 2017, "Transformation robustness"). lucid pads, jitters, scales, rotates and jitters again; here
that is one warp with one interpolation, of a picture that goes on periodically, so no border and no
black wedge is ever seen.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from featviz.spectrum import Size


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """How far a warp goes; all 0 looks straight.

    rotation: degrees to either side, 0..45.
    zoom: part by which the window is larger or smaller, 0..0.5.
    jitter: shift to either side, as a part of the picture's side, 0..0.5; 0.5 is anywhere.
    """

    rotation: float = 10.0
    zoom: float = 0.1
    jitter: float = 0.5

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name, most in (("rotation", 45.0), ("zoom", 0.5), ("jitter", 0.5)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}; give 0 to {most}")


def draw_warps(
    generator: np.random.Generator, steps: int, robustness: Robustness
) -> NDArray[np.float32]:
    """Draw a picture's warps for all its steps.

    Returns (steps, 4) float32: angle in radians, size of the window in its own size, shifts of its
    centre along y and x as parts of the picture's sides. Angles are triangular, so that small ones
    are more frequent.
    """
    unit = generator.random((steps, 5))
    angle = math.radians(robustness.rotation) * (unit[:, 0] - unit[:, 1])
    window = 1 + robustness.zoom * (2 * unit[:, 2] - 1)
    shift = robustness.jitter * (2 * unit[:, 3:] - 1)
    return np.concatenate([angle[:, None], window[:, None], shift], 1).astype(np.float32)


LEAST_SCALE = 0.75
"""Of what is seen: a window of `warp` covers at most its size by this."""


def warp(
    pictures: Tensor,
    warps: Tensor,
    window: Size,
    output: Size,
    robustness: Robustness,
    scales: Tensor | None = None,
) -> Tensor:
    """Look at the middles of pictures through turned and scaled windows, bilinearly.

    What lies beyond an edge is the opposite side: nothing is ever padded with a colour. Shifts are
    not made here but in the spectrum, where they are exact; see `Canvas.pictures`.

    Args:
        pictures: (B, C, height, width).
        warps: (B, 2), the first two numbers of `draw_warps`.
        window: pixels of the picture, (height, width), that a window of size 1 covers.
        output: (height, width) in pixels of what is returned.
        robustness: that of the warps, which says how much of a picture may be seen.
        scales: (B,), `LEAST_SCALE` or more; how many times a picture is enlarged before it is seen.

    Returns:
        (B, C, *output), differentiable.
    """
    # Not the scales' own: what is seen must not depend on the other pictures.
    least = 1.0 if scales is None else LEAST_SCALE
    seen = _periodic(pictures, _reach(window, robustness, least))
    height, width = seen.shape[-2:]
    angle, scale = warps.to(pictures.dtype).unbind(1)
    if scales is not None:
        scale = scale / scales
    cos, sin = scale * angle.cos(), scale * angle.sin()
    nothing = torch.zeros_like(cos)
    # affine_grid's coordinates run from -1 to 1 over what is seen, edges of pixels included.
    matrix = torch.stack(
        [
            torch.stack([cos * (window[1] / width), -sin * (window[0] / width), nothing], 1),
            torch.stack([sin * (window[1] / height), cos * (window[0] / height), nothing], 1),
        ],
        1,
    )
    grid = functional.affine_grid(matrix, [*pictures.shape[:2], *output], align_corners=False)
    return functional.grid_sample(seen, grid, mode="bilinear", align_corners=False)


def _reach(window: Size, robustness: Robustness, least_scale: float) -> Size:
    """Return the pixels that a window of any size and angle may need from the middle outwards."""
    most = math.radians(robustness.rotation)
    largest = (1 + robustness.zoom) / 2 / least_scale
    height, width = window
    # A window reaches furthest where its diagonal points that way.
    upright, flat = min(most, math.atan2(width, height)), min(most, math.atan2(height, width))
    down = largest * (height * math.cos(upright) + width * math.sin(upright))
    across = largest * (width * math.cos(flat) + height * math.sin(flat))
    return math.ceil(down) + 1, math.ceil(across) + 1


def _periodic(pictures: Tensor, reach: Size) -> Tensor:
    """Return the part of the endless picture that lies within reach of the middle."""
    for dim, each in ((-2, reach[0]), (-1, reach[1])):
        side = pictures.shape[dim]
        beyond = each - side // 2
        if beyond <= 0:
            pictures = pictures.narrow(dim, -beyond, side + 2 * beyond)
        while beyond > 0:
            more = min(beyond, side)
            sides = (more, more, 0, 0) if dim == -1 else (0, 0, more, more)
            pictures = functional.pad(pictures, sides, mode="circular")
            beyond -= more
            side += 2 * more
    return pictures
