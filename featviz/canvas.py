"""Image parametrization by the spectrum of three decorrelated colours, and random affine views.

Fourier coefficients are optimized instead of pixels: Olah et al., "Feature Visualization", Distill
2017 (preconditioning); Fel et al., "Unlocking Feature Visualization for Deeper Networks with
MAgnitude Constrained Optimization", NeurIPS 2023. An image is a trigonometric polynomial on a
torus: it has no border and can be sampled at any size. Coefficients are stored for the final size;
a coarse stage optimizes only its low frequencies, so that a finer stage continues with the same
image. Frequencies are counted in cycles per shorter side, and a coefficient means the same wave at
any size.

Transformation robustness: at each step the network sees each image through a small affine warp.
Without it, the optimization finds noise that excites a network at one exact position only (Olah et
al. 2017). lucid pads, jitters, scales, rotates and jitters again; here, one warp with one
interpolation samples an image that is periodic, so that no border or padding is ever visible.
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
"""Maps decorrelated colours, the first of them brightness, to logits of red, green and blue.

The columns are the square root of the colour covariance of photographs (lucid,
optvis/param/color.py).
"""

INIT_STD = 0.01
"""Standard deviation of the initial coefficients, as in lucid."""

_MAX_CYCLES = 128
"""Cycles up to which spectra of different decay have the same power."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A differentiable parametrization of B images of one size, each with its own style.

    Attributes:
        size: (height, width) of the final images in pixels, at least 8 each.
        decay: (B,) float32, 0..3; amplitudes fall as frequency to the power -decay; 1 is natural.
        colours: (B, 3, 3) float32, columns as in ``COLOURS``.
        tint: (B, 3) float32, logits of red, green and blue that are added to every pixel.
        kind: "spectrum": all coefficients are free; "phase": their magnitudes are fixed.
        magnitude: (3, height, width // 2 + 1) float32 for "phase", see ``mean_magnitude``; None
            uses the magnitudes of a natural image, which fall by ``decay``.
    """

    size: Size
    decay: Tensor
    colours: Tensor
    tint: Tensor
    kind: Kind = "spectrum"
    magnitude: Tensor | None = None

    def __post_init__(self) -> None:
        """Reject wrong shapes and values out of range."""
        n = len(self.decay)
        if min(self.size) < 8:
            raise ValueError(f"size is {self.size}; use at least 8 pixels per side")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; use one of {', '.join(KINDS)}")
        for name, shape in (("decay", (n,)), ("colours", (n, 3, 3)), ("tint", (n, 3))):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} has shape {found}; for {n} images expected {shape}")
        if not bool(((self.decay >= 0) & (self.decay <= 3)).all()):
            raise ValueError(f"decay is {self.decay.tolist()}; use 0 to 3")
        if self.magnitude is not None:
            expected = (3, self.size[0], self.size[1] // 2 + 1)
            found = tuple(self.magnitude.shape)
            if self.kind != "phase":
                raise ValueError('magnitude requires kind "phase", got kind "spectrum"')
            if found != expected:
                raise ValueError(
                    f"magnitude has shape {found}; for images of {self.size} expected {expected}"
                )

    def draw(self, generators: Sequence[np.random.Generator]) -> Tensor:
        """Draw the initial coefficients, each image's from its own generator.

        Returns:
            (B, 3, height, width // 2 + 1, 2) float32 real and imaginary parts, or for "phase" (B,
            3, height, width // 2 + 1) float32 in -pi..pi.
        """
        height, width = self.size
        shape = (3, height, width // 2 + 1)
        if self.kind == "phase":
            drawn = [(2 * each.random(shape, np.float32) - 1) * np.pi for each in generators]
        else:
            drawn = [
                INIT_STD * each.standard_normal((*shape, 2), np.float32) for each in generators
            ]
        return torch.from_numpy(np.stack(drawn).astype(np.float32)).to(self.decay.device)

    def images(self, coefficients: Tensor, stage: Size, shifts: Tensor | None = None) -> Tensor:
        """Return images at the size of a stage.

        Args:
            coefficients: Coefficients of that stage, see ``low_frequencies``.
            stage: (height, width) of the stage.
            shifts: (B, 2) float32, cyclic shifts up and left as fractions of height and width.

        Returns:
            (B, 3, height, width) float32 in 0..1, differentiable.
        """
        planes = self._planes(coefficients, stage, shifts)
        mixed = torch.einsum("bij,bjhw->bihw", self.colours, planes)
        return torch.sigmoid(mixed + self.tint[:, :, None, None])

    def _planes(self, coefficients: Tensor, stage: Size, shifts: Tensor | None) -> Tensor:
        scale = spectrum_scale(self.size, stage, self.decay)[:, None]
        if self.kind == "phase":
            magnitude = scale * _PHASE_MAGNITUDE
            if self.magnitude is not None:
                magnitude = low_frequencies(self.magnitude[None], self.size, stage) * (
                    scale[:1] > 0
                )
            # The tint alone determines the mean colour.
            magnitude = magnitude * _nonconstant_mask(stage, scale.device)
            magnitude = magnitude.expand_as(coefficients)
            waves = torch.polar(magnitude, _hermitian(coefficients, stage))
        else:
            waves = torch.view_as_complex(coefficients * scale[..., None])
        if shifts is not None:
            # A shift changes the phase of each wave in proportion to its frequency.
            rows, columns = (2 * torch.pi * each for each in _wave_numbers(stage, shifts.device))
            turned = shifts[:, :1, None] * rows[:, None] + shifts[:, 1:, None] * columns
            waves = waves * torch.polar(torch.ones_like(turned), turned)[:, None]
        planes: Tensor = torch.fft.irfft2(waves, s=stage, norm="forward")
        return planes

    def coefficients(self, images: Tensor) -> Tensor:
        """Return the coefficients of images, the inverse of ``images`` at full size.

        Args:
            images: (B, 3, height, width) float32 strictly inside 0..1, of the canvas's size. The
                Nyquist frequency of an even side is lost.

        Returns:
            As ``draw``; for "phase" the angles alone.
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
"""Magnitude of waves before the decay, for the contrast of photographs."""


def spectrum_scale(size: Size, stage: Size, decay: Tensor) -> Tensor:
    """Return the factors of coefficients: amplitude by frequency.

    1/4 frequency ** -decay, with frequency in cycles per shorter side and at least 1. Other decays
    are scaled to the total power of decay 1. The factor is 0 at the Nyquist frequency of an even
    side.

    Args:
        size: (height, width) of the final image.
        stage: (height, width) of this stage.
        decay: (B,) float32.

    Returns:
        (B, stage height, stage width // 2 + 1) float32.
    """
    frequency, known = (each.to(decay.device) for each in _frequencies(size, stage))
    band = torch.arange(1, _MAX_CYCLES + 1, device=decay.device, dtype=torch.float32)
    power = (band[None] ** (1 - 2 * decay[:, None])).sum(1)
    level = (1 / band).sum().div(power).sqrt() / 4
    return level[:, None, None] * frequency[None] ** -decay[:, None, None] * known


@lru_cache(maxsize=16)
def _frequencies(size: Size, stage: Size) -> tuple[Tensor, Tensor]:
    """Return a stage's frequencies, at least 1, and a mask that is 0 at the Nyquist frequency."""
    shorter = min(size)
    rows, columns = _wave_numbers(stage, torch.device("cpu"))
    frequency = torch.hypot(rows[:, None] * shorter / size[0], columns[None] * shorter / size[1])
    known = (2 * rows.abs() < stage[0])[:, None] & (2 * columns < stage[1])[None]
    return frequency.clamp(min=1), known.float()


def low_frequencies(coefficients: Tensor, size: Size, stage: Size) -> Tensor:
    """Return a copy of the coefficients of the low frequencies that a stage can show.

    Args:
        coefficients: (B, 3, height, width // 2 + 1, ...) of ``size``.
        size: (height, width) of the final image.
        stage: (height, width) of the stage.

    Returns:
        (B, 3, stage height, stage width // 2 + 1, ...).

    Raises:
        ValueError: If the stage is larger than the image.
    """
    rows, columns = _low_indices(size, stage, coefficients.device)
    return coefficients[:, :, rows, columns]


def set_low_frequencies(coefficients: Tensor, part: Tensor, size: Size, stage: Size) -> None:
    """Write a stage's coefficients into all coefficients, in place; inverts low_frequencies."""
    rows, columns = _low_indices(size, stage, coefficients.device)
    coefficients[:, :, rows, columns] = part


def _low_indices(size: Size, stage: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    if stage[0] > size[0] or stage[1] > size[1]:
        raise ValueError(
            f"stage size {stage} is larger than the image size {size}; use a smaller stage"
        )
    rows, columns = _wave_numbers(stage, device)
    return rows.long()[:, None] % size[0], columns.long()[None]


def _wave_numbers(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the wave numbers of a spectrum's rows and columns, float32."""
    rows = torch.fft.fftfreq(size[0], 1 / size[0], device=device).round()
    return rows, torch.arange(size[1] // 2 + 1, dtype=torch.float32, device=device)


def _nonconstant_mask(stage: Size, device: torch.device) -> Tensor:
    """Return 1 for each wave and 0 for the constant."""
    rows, columns = _wave_numbers(stage, device)
    return ((rows != 0)[:, None] | (columns != 0)[None]).float()


def _hermitian(phases: Tensor, stage: Size) -> Tensor:
    """Return the phases of a real image: waves along the height are paired with their conjugates.

    Without this, the two waves of a pair would weaken each other, and the magnitude would differ
    from the fixed one.
    """
    rows, _ = _wave_numbers(stage, phases.device)
    first = phases[..., 0]
    mirror = -first[..., (-rows).long() % stage[0]]
    column = torch.where(rows > 0, first, torch.where(rows < 0, mirror, 0.0))
    return torch.cat([column[..., None], phases[..., 1:]], -1)


def mean_magnitude(images: Tensor) -> Tensor:
    """Return the mean magnitudes of images' spectra, for a ``Canvas`` of kind "phase".

    This is the template of MACO, computed from any set of images.

    Args:
        images: (N, 3, height, width) float32 in 0..1 or uint8.

    Returns:
        (3, height, width // 2 + 1) float32.
    """
    if images.dtype == torch.uint8:
        images = images.float() / 255
    logits = torch.logit(images, eps=1 / 256)
    planes = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(COLOURS.to(logits.device)), logits)
    waves: Tensor = torch.fft.rfft2(planes - planes.mean((2, 3), keepdim=True), norm="forward")
    return waves.abs().mean(0)


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Ranges of the random warps for transformation robustness; all 0 disables them.

    Attributes:
        rotation: Largest angle in degrees, 0..45.
        zoom: Largest relative change of the window's size, 0..0.5.
        jitter: Largest shift as a fraction of the image's side, 0..0.5; 0.5 is any position.
    """

    rotation: float = 10.0
    zoom: float = 0.1
    jitter: float = 0.5

    def __post_init__(self) -> None:
        """Reject values outside these ranges."""
        for name, limit in (("rotation", 45.0), ("zoom", 0.5), ("jitter", 0.5)):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"{name} is {value}; use 0 to {limit}")


def draw_warps(
    generator: np.random.Generator, steps: int, robustness: Robustness
) -> NDArray[np.float32]:
    """Draw an image's warps for all its steps.

    Args:
        generator: The image's own generator.
        steps: Number of warps.
        robustness: Ranges of the warps.

    Returns:
        (steps, 4) float32: angle in radians, relative size of the window, shifts of its centre
            along y and x as fractions of the image's sides. Angles follow a triangular
            distribution, so that small ones are more frequent.
    """
    unit = generator.random((steps, 5))
    angle = math.radians(robustness.rotation) * (unit[:, 0] - unit[:, 1])
    window = 1 + robustness.zoom * (2 * unit[:, 2] - 1)
    shift = robustness.jitter * (2 * unit[:, 3:] - 1)
    return np.concatenate([angle[:, None], window[:, None], shift], 1).astype(np.float32)


MIN_SCALE = 0.75
"""A window of ``warp`` covers at most its size divided by this."""


def warp(
    images: Tensor,
    warps: Tensor,
    window: Size,
    output: Size,
    robustness: Robustness,
    scales: Tensor | None = None,
) -> Tensor:
    """Sample the centres of images through rotated and scaled windows, bilinearly.

    Images are periodic, so nothing is padded with a colour. Shifts are applied in the spectrum,
    where they are exact; see ``Canvas.images``.

    Args:
        images: (B, C, height, width).
        warps: (B, 2), the first two columns of ``draw_warps``.
        window: (height, width) in pixels that a window of relative size 1 covers.
        output: (height, width) of the result in pixels.
        robustness: Ranges of the warps, which bound the part of an image that is sampled.
        scales: (B,), at least ``MIN_SCALE``; magnification of each image.

    Returns:
        (B, C, output height, output width), differentiable.
    """
    # A constant, not the smallest scale: a view must not depend on the other images.
    least = 1.0 if scales is None else MIN_SCALE
    tiled = _periodic(images, _half_extent(window, robustness, least))
    height, width = tiled.shape[-2:]
    angle, scale = warps.to(images.dtype).unbind(1)
    if scales is not None:
        scale = scale / scales
    cos, sin = scale * angle.cos(), scale * angle.sin()
    zero = torch.zeros_like(cos)
    # affine_grid's coordinates run from -1 to 1 between the outer edges of the border pixels.
    matrix = torch.stack(
        [
            torch.stack([cos * (window[1] / width), -sin * (window[0] / width), zero], 1),
            torch.stack([sin * (window[1] / height), cos * (window[0] / height), zero], 1),
        ],
        1,
    )
    grid = functional.affine_grid(matrix, [*images.shape[:2], *output], align_corners=False)
    return functional.grid_sample(tiled, grid, mode="bilinear", align_corners=False)


def _half_extent(window: Size, robustness: Robustness, least_scale: float) -> Size:
    """Return the pixels from the centre that a window of any size and angle may need."""
    limit = math.radians(robustness.rotation)
    largest = (1 + robustness.zoom) / 2 / least_scale
    height, width = window
    # A window extends furthest along an axis when its diagonal points along it.
    upright, flat = min(limit, math.atan2(width, height)), min(limit, math.atan2(height, width))
    down = largest * (height * math.cos(upright) + width * math.sin(upright))
    across = largest * (width * math.cos(flat) + height * math.sin(flat))
    return math.ceil(down) + 1, math.ceil(across) + 1


def _periodic(images: Tensor, reach: Size) -> Tensor:
    """Return the part of the periodic image within ``reach`` of the centre."""
    for dim, each in ((-2, reach[0]), (-1, reach[1])):
        side = images.shape[dim]
        missing = each - side // 2
        if missing <= 0:
            images = images.narrow(dim, -missing, side + 2 * missing)
        while missing > 0:
            more = min(missing, side)
            sides = (more, more, 0, 0) if dim == -1 else (0, 0, more, more)
            images = functional.pad(images, sides, mode="circular")
            missing -= more
            side += 2 * more
    return images


def random_generator(*key: int) -> np.random.Generator:
    """Return the generator of a key; different keys give independent streams.

    Args:
        key: Integers of any size and sign; (1, 2) and (12,) differ.

    Returns:
        A Philox 4x64-10 generator (Salmon et al. 2011), the same on every machine.
    """
    text = ",".join(str(int(part)) for part in key).encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"pixmix-featviz").digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
