"""An image as the spectrum of three decorrelated colours, and the warps through which it is seen.

The spectrum is what is optimized instead of pixels: Olah et al., "Feature Visualization", Distill
2017 (preconditioning); Fel et al., "Unlocking Feature Visualization for Deeper Networks with
MAgnitude Constrained Optimization", NeurIPS 2023. An image is a trigonometric polynomial on a
torus: it has no border, and may be sampled at any size. Coefficients are kept for the final size; a
coarse stage works on its low frequencies alone, so that a finer one continues the same image.
Frequencies are counted in cycles over the shorter side, and a coefficient means the same wave at
any size.

Transformation robustness: each image is seen through a small affine warp a step. Without it the
optimization finds noise that excites a network at one exact position only (Olah et al. 2017). lucid
pads, jitters, scales, rotates and jitters again; here that is one warp with one interpolation, of
an image that goes on periodically, so no border and no black wedge is ever seen.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Kind = Literal["spectrum", "phase"]
KINDS: tuple[Kind, ...] = ("spectrum", "phase")

Size = tuple[int, int]
"""(height, width) in pixels."""

_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
COLOURS = _COLOURS / _COLOURS.norm(dim=0).max()
"""Columns: from decorrelated colours, the first of them brightness, to logits of red, green and
blue: the square root of the colour covariance of photographs (lucid, optvis/param/color.py)."""

START = 0.01
"""Standard deviation of the first coefficients, as lucid's."""

_BAND = 128
"""Cycles up to which spectra of different decay have the same power."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """How coefficients become images: B images of one size, each with a look of its own.

    size: of the finished images, (height, width) in pixels, 8 or more a side.
    decay: (B,) float32, 0..3: amplitudes fall as frequency to the power -decay; 1 is natural.
    colours: (B, 3, 3) float32, columns as in `COLOURS`.
    tint: (B, 3) float32, logits of red, green and blue that are added everywhere.
    kind: "spectrum": all coefficients are free; "phase": their magnitudes are given.
    magnitude: (3, height, width // 2 + 1) float32 for "phase"; see `mean_magnitude`. None: of a
        natural image, falling by `decay`.
    """

    size: Size
    decay: Tensor
    colours: Tensor
    tint: Tensor
    kind: Kind = "spectrum"
    magnitude: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        n = len(self.decay)
        if min(self.size) < 8:
            raise ValueError(f"size is {self.size}; give at least 8 pixels a side")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; give one of {', '.join(KINDS)}")
        for name, shape in (("decay", (n,)), ("colours", (n, 3, 3)), ("tint", (n, 3))):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} has shape {found}; for {n} images give {shape}")
        if not bool(((self.decay >= 0) & (self.decay <= 3)).all()):
            raise ValueError(f"decay is {self.decay.tolist()}; give 0 to 3")
        if self.magnitude is not None:
            expected = (3, self.size[0], self.size[1] // 2 + 1)
            found = tuple(self.magnitude.shape)
            if self.kind != "phase":
                raise ValueError('a magnitude is given for kind "spectrum"; give kind "phase" too')
            if found != expected:
                raise ValueError(
                    f"magnitude has shape {found}; for images of {self.size} give {expected}"
                )

    def draw(self, generators: Sequence[np.random.Generator]) -> Tensor:
        """Draw the coefficients to begin with, each image's from its own generator.

        Returns (B, 3, height, width // 2 + 1, 2) float32 real and imaginary parts, or for "phase"
        (B, 3, height, width // 2 + 1) float32 in -pi..pi.
        """
        height, width = self.size
        shape = (3, height, width // 2 + 1)
        if self.kind == "phase":
            drawn = [(2 * each.random(shape, np.float32) - 1) * np.pi for each in generators]
        else:
            drawn = [START * each.standard_normal((*shape, 2), np.float32) for each in generators]
        return torch.from_numpy(np.stack(drawn).astype(np.float32)).to(self.decay.device)

    def images(self, coefficients: Tensor, stage: Size, shifts: Tensor | None = None) -> Tensor:
        """Return images at the size of a stage.

        coefficients: those of that stage; see `low`.
        shifts: (B, 2) float32, what part of the height and width the images are moved up and
            left by; what leaves at one edge comes in at the other.
        Returns (B, 3, *stage) float32 in 0..1, differentiable.
        """
        planes = self._planes(coefficients, stage, shifts)
        mixed = torch.einsum("bij,bjhw->bihw", self.colours, planes)
        return torch.sigmoid(mixed + self.tint[:, :, None, None])

    def _planes(self, coefficients: Tensor, stage: Size, shifts: Tensor | None) -> Tensor:
        scale = spectrum_scale(self.size, stage, self.decay)[:, None]
        if self.kind == "phase":
            magnitude = scale * _PHASE_MAGNITUDE
            if self.magnitude is not None:
                magnitude = low(self.magnitude[None], self.size, stage) * (scale[:1] > 0)
            # The mean colour is the tint's affair.
            magnitude = magnitude * _not_constant(stage, scale.device)
            magnitude = magnitude.expand_as(coefficients)
            waves = torch.polar(magnitude, _mirrored(coefficients, stage))
        else:
            waves = torch.view_as_complex(coefficients * scale[..., None])
        if shifts is not None:
            # A shift turns each wave by the part of its length that it moves.
            rows, columns = (2 * torch.pi * each for each in _waves(stage, shifts.device))
            turned = shifts[:, :1, None] * rows[:, None] + shifts[:, 1:, None] * columns
            waves = waves * torch.polar(torch.ones_like(turned), turned)[:, None]
        planes: Tensor = torch.fft.irfft2(waves, s=stage, norm="forward")
        return planes

    def coefficients(self, images: Tensor) -> Tensor:
        """Return the coefficients of given images, the inverse of `images` at full size.

        images: (B, 3, *size) float32 strictly inside 0..1. Frequencies at which an even side
        has only half a wave are lost.
        Returns as `draw`; of a "phase" the angles alone.
        """
        logits = torch.logit(images, eps=1e-6) - self.tint[:, :, None, None]
        planes = torch.einsum("bij,bjhw->bihw", torch.linalg.inv(self.colours), logits)
        waves = torch.fft.rfft2(planes, norm="forward")
        if self.kind == "phase":
            angles: Tensor = waves.angle()
            return angles
        scale = spectrum_scale(self.size, self.size, self.decay)[:, None]
        divisor = torch.where(scale > 0, scale, torch.inf)
        return torch.view_as_real(waves / divisor)


_PHASE_MAGNITUDE = 1.0
"""How strong the waves of fixed magnitude are, before the decay: contrast as of photographs."""


def spectrum_scale(size: Size, stage: Size, decay: Tensor) -> Tensor:
    """Return what coefficients are multiplied with: amplitude by frequency.

    1/4 frequency ** -decay, frequency in cycles over the shorter side and at least 1; other decays
    are scaled to the power of decay 1. Zero where an even side of the stage has half a wave.

    size: of the finished image; stage: of this one; decay: (B,) float32.
    Returns (B, stage height, stage width // 2 + 1) float32.
    """
    frequency, known = (each.to(decay.device) for each in _frequencies(size, stage))
    band = torch.arange(1, _BAND + 1, device=decay.device, dtype=torch.float32)
    power = (band[None] ** (1 - 2 * decay[:, None])).sum(1)
    level = (1 / band).sum().div(power).sqrt() / 4
    return level[:, None, None] * frequency[None] ** -decay[:, None, None] * known


@lru_cache(maxsize=16)
def _frequencies(size: Size, stage: Size) -> tuple[Tensor, Tensor]:
    """Return the frequencies of a stage, at least 1, and where the stage has whole waves."""
    shorter = min(size)
    rows, columns = _waves(stage, torch.device("cpu"))
    frequency = torch.hypot(rows[:, None] * shorter / size[0], columns[None] * shorter / size[1])
    known = (2 * rows.abs() < stage[0])[:, None] & (2 * columns < stage[1])[None]
    return frequency.clamp(min=1), known.float()


def low(coefficients: Tensor, size: Size, stage: Size) -> Tensor:
    """Return the coefficients of the low frequencies that a stage can show.

    coefficients: (B, 3, height, width // 2 + 1, ...) of `size`.
    Returns (B, 3, stage height, stage width // 2 + 1, ...), a copy.

    Raises:
        ValueError: if the stage is larger than the image.
    """
    rows, columns = _places(size, stage, coefficients.device)
    return coefficients[:, :, rows, columns]


def put_low(coefficients: Tensor, part: Tensor, size: Size, stage: Size) -> None:
    """Write the coefficients of a stage back among all, in place; the inverse of `low`."""
    rows, columns = _places(size, stage, coefficients.device)
    coefficients[:, :, rows, columns] = part


def _places(size: Size, stage: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    if stage[0] > size[0] or stage[1] > size[1]:
        raise ValueError(f"a stage of {stage} for images of {size}; give a smaller one")
    rows, columns = _waves(stage, device)
    return rows.long()[:, None] % size[0], columns.long()[None]


def _waves(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the waves over the height, as the rows of a spectrum, and over the width, float32."""
    rows = torch.fft.fftfreq(size[0], 1 / size[0], device=device).round()
    return rows, torch.arange(size[1] // 2 + 1, dtype=torch.float32, device=device)


def _not_constant(stage: Size, device: torch.device) -> Tensor:
    """Return 1 for each wave, and 0 for the constant."""
    rows, columns = _waves(stage, device)
    return ((rows != 0)[:, None] | (columns != 0)[None]).float()


def _mirrored(phases: Tensor, stage: Size) -> Tensor:
    """Return phases of a real image: waves along the height alone have their mirror among them.

    Left free, a wave and its mirror would weaken each other, and the magnitude would not be that
    which is given.
    """
    rows, _ = _waves(stage, phases.device)
    first = phases[..., 0]
    mirror = -first[..., (-rows).long() % stage[0]]
    column = torch.where(rows > 0, first, torch.where(rows < 0, mirror, 0.0))
    return torch.cat([column[..., None], phases[..., 1:]], -1)


def mean_magnitude(images: Tensor) -> Tensor:
    """Return the mean magnitudes of images' spectra, for a `Canvas` of kind "phase".

    The template of MACO, computed from images of one's own.

    images: (N, 3, height, width) float32 in 0..1 or uint8.
    Returns (3, height, width // 2 + 1) float32.
    """
    if images.dtype == torch.uint8:
        images = images.float() / 255
    logits = torch.logit(images, eps=1 / 256)
    planes = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(COLOURS.to(logits.device)), logits)
    waves: Tensor = torch.fft.rfft2(planes - planes.mean((2, 3), keepdim=True), norm="forward")
    return waves.abs().mean(0)


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """How far a warp goes; all 0 looks straight.

    rotation: degrees to either side, 0..45.
    zoom: part by which the window is larger or smaller, 0..0.5.
    jitter: shift to either side, as a part of the image's side, 0..0.5; 0.5 is anywhere.
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
    """Draw an image's warps for all its steps.

    Returns (steps, 4) float32: angle in radians, size of the window in its own size, shifts of its
    centre along y and x as parts of the image's sides. Angles are triangular, so that small ones
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
    images: Tensor,
    warps: Tensor,
    window: Size,
    output: Size,
    robustness: Robustness,
    scales: Tensor | None = None,
) -> Tensor:
    """Look at the middles of images through turned and scaled windows, bilinearly.

    What lies beyond an edge is the opposite side: nothing is ever padded with a colour. Shifts are
    not made here but in the spectrum, where they are exact; see `Canvas.images`.

    Args:
        images: (B, C, height, width).
        warps: (B, 2), the first two numbers of `draw_warps`.
        window: pixels of the image, (height, width), that a window of size 1 covers.
        output: (height, width) in pixels of what is returned.
        robustness: that of the warps, which says how much of an image may be seen.
        scales: (B,), `LEAST_SCALE` or more; how many times an image is enlarged before it is seen.

    Returns:
        (B, C, *output), differentiable.
    """
    # Not the scales' own: what is seen must not depend on the other images.
    least = 1.0 if scales is None else LEAST_SCALE
    seen = _periodic(images, _reach(window, robustness, least))
    height, width = seen.shape[-2:]
    angle, scale = warps.to(images.dtype).unbind(1)
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
    grid = functional.affine_grid(matrix, [*images.shape[:2], *output], align_corners=False)
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


def _periodic(images: Tensor, reach: Size) -> Tensor:
    """Return the part of the endless image that lies within reach of the middle."""
    for dim, each in ((-2, reach[0]), (-1, reach[1])):
        side = images.shape[dim]
        beyond = each - side // 2
        if beyond <= 0:
            images = images.narrow(dim, -beyond, side + 2 * beyond)
        while beyond > 0:
            more = min(beyond, side)
            sides = (more, more, 0, 0) if dim == -1 else (0, 0, more, more)
            images = functional.pad(images, sides, mode="circular")
            beyond -= more
            side += 2 * more
    return images


def generator(*key: int) -> np.random.Generator:
    """Return the generator of a key; different keys give independent streams.

    key: integers of any size and sign; (1, 2) and (12,) differ.
    Returns a Philox 4x64-10 generator (Salmon et al. 2011), the same on any machine.
    """
    text = ",".join(str(int(part)) for part in key).encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"pixmix-featviz").digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
