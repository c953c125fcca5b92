"""Slow, obvious twins of the compiled kernels: what the fast ones must equal."""

import cmath
import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from fractals.escape import EscapeLayer

# --- fractals/picture_kernels.py -----------------------------------------------------------------


def luma(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rec. 601 in thousandths of a level."""
    return picture.astype(np.int64) @ np.array([299, 587, 114])


def edge_mask(luma: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Sobel over 4 above 0.05 of 255000, the border repeated, in whole numbers."""
    height, width = luma.shape
    padded = np.pad(luma, 1, mode="edge").tolist()
    kernel = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
    mask = np.zeros((height, width), np.uint8)
    for i in range(height):
        for j in range(width):
            x = y = 0
            for di in range(3):
                for dj in range(3):
                    x += kernel[di][dj] * padded[i + di][j + dj]
                    y += kernel[dj][di] * padded[i + di][j + dj]
            mask[i, j] = x * x + y * y > (4 * 12750) ** 2
    return mask


def count_textured_blocks(luma: NDArray[np.int64]) -> int:
    """Whole 8x8 blocks with a variance above (0.03 * 255000)^2."""
    count = 0
    for top in range(0, luma.shape[0] - 7, 8):
        for left in range(0, luma.shape[1] - 7, 8):
            block = luma[top : top + 8, left : left + 8]
            count += bool(((64 * block - block.sum()) ** 2).sum() > 64**3 * 7650**2)
    return count


def colour_counts(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels in each of 8x8x8 boxes of colour."""
    counts = np.zeros((8, 8, 8), np.int64)
    for pixel in picture.reshape(-1, 3) // 32:
        counts[tuple(pixel)] += 1
    return counts.ravel()


def entropy_of_counts(counts: NDArray[np.int64]) -> float:
    """The sum of -p log2 p."""
    total = int(counts.sum())
    return -sum(int(n) / total * math.log2(int(n) / total) for n in counts if n)


def box_counts(mask: NDArray[np.uint8], n_sizes: int) -> list[int]:
    """How many squares of side 2, 4, 8, ... hold a mark."""
    marks = np.argwhere(mask)
    return [len(Counter(map(tuple, marks // 2**size))) for size in range(1, n_sizes + 1)]


def ring_sums(
    power: NDArray[np.float64], rings: NDArray[np.int64], weights: NDArray[np.float64], n_rings: int
) -> NDArray[np.float64]:
    """The weighted power of each ring."""
    return np.array([(power * weights)[rings == ring].sum() for ring in range(n_rings)])


def resized(
    luma: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    row_weights: NDArray[np.float64],
    column_starts: NDArray[np.int64],
    column_weights: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Both weightings as matrices, rounded half up once at the end."""

    def matrix(
        starts: NDArray[np.int64], weights: NDArray[np.float64], side: int
    ) -> NDArray[np.int64]:
        full = np.zeros((len(starts), side + weights.shape[1]), np.int64)
        for row, start, taps in zip(full, starts, weights, strict=True):
            row[start : start + len(taps)] = taps
        return full[:, :side]

    rows = matrix(row_starts, row_weights, luma.shape[0])
    columns = matrix(column_starts, column_weights, luma.shape[1])
    return (rows @ luma @ columns.T + (1 << 27)) >> 28


# --- fractals/escape_kernels.py ------------------------------------------------------------------


def escape_step(
    formula: str, power: int, z: complex, before: complex, c: complex, k: complex
) -> complex:
    """One step of an orbit, as the docstring of `EscapeLayer` has it."""
    if formula == "newton":
        return z - k * (z**power - 1) / (power * z ** (power - 1)) + c
    if formula == "rings":
        return z**power + c / z**power
    if formula == "ship":
        z = complex(abs(z.real), abs(z.imag))
    if formula == "tricorn":
        z = z.conjugate()
    after = z**power + c
    if formula == "celtic":
        after = complex(abs((z**power).real), (z**power).imag) + c
    if formula == "phoenix":
        after += k * before
    return after


def trap_value(
    trap: str, z: complex, centre: tuple[float, float], turns: float, size: float
) -> float:
    """The value of a trap's conic at a point, in the trap's own frame."""
    moved = (z - complex(*centre)) * complex(
        math.cos(2 * math.pi * turns), -math.sin(2 * math.pi * turns)
    )
    u, v = moved.real, moved.imag
    values = {
        "point": u * u + v * v,
        "circle": u * u + v * v - size * size,
        "line": u,
        "cross": u * v,
        "parabola": u * u - size * v,
        "hyperbola": u * u - v * v - size * size,
    }
    return abs(values[trap])


def escape_features(layer: EscapeLayer, point: complex) -> tuple[float, float, float, float]:
    """The four features of one orbit: log count, log trap, wave, cell."""
    c = complex(*layer.constant) if layer.plane == "julia" else point
    z = complex(1) if layer.formula == "newton" and layer.plane == "parameter" else point
    before, trap, waves, count, moved = 0j, 1e9, [], 0.0, 1.0
    settling = layer.formula == "newton"
    for _ in range(layer.max_iterations):
        if moved <= 1e-6 if settling else abs(z) > 100:
            break
        shape = (layer.trap, z, layer.trap_centre, layer.trap_rotation, layer.trap_size)
        trap = min(trap, trap_value(*shape))
        angle = cmath.phase(z)
        wave = (1 - layer.wave_detail) * math.sin(2 * angle)
        waves.append(wave + layer.wave_detail * math.sin(4 * angle))
        k = complex(*layer.coefficient)
        before, z = z, escape_step(layer.formula, layer.power, z, before, c, k)
        moved = abs(z - before) ** 2
        count += moved / (moved + 0.02) if settling else 1
    phase, log_trap = 2 * math.pi * layer.wave_phase, math.log2(trap + 0.003)
    if settling:
        return math.log2(1 + count), log_trap, math.sin(cmath.phase(z) + phase), 0.0
    mean = sum(waves) / max(len(waves), 1)
    if abs(z) <= 100:
        return -1.0, log_trap, mean, 0.0
    part = 1 - math.log(math.log(abs(z)) / math.log(100)) / math.log(layer.power)
    part = min(max(part, 0.0), 1.0)
    earlier = sum(waves[:-1]) / max(len(waves) - 1, 1)
    cell = (4 * part * (1 - part)) ** 2 * math.sin(2 * cmath.phase(z) + phase)
    return math.log2(1 + count + part), log_trap, earlier + (mean - earlier) * part, cell


def painted(
    features: NDArray[np.float32], palette: NDArray[np.float32], layer: EscapeLayer, side: int
) -> NDArray[np.float64]:
    """Colours of a window whose features have one more row above and column to the left."""
    smooth, trap, wave, cell = features.astype(float)
    outer = layer.phase + layer.smooth_turns * smooth + layer.trap_turns * trap
    outer += layer.wave_turns * wave + layer.cell_turns * cell
    inner = layer.inner_phase + layer.inner_trap_turns * trap + layer.inner_wave_turns * wave
    t = np.where(smooth >= 0, outer, inner)
    across, down = (t[1:, 1:] - t[1:, :-1]), (t[1:, 1:] - t[:-1, 1:])
    t, trap = t[1:, 1:], trap[1:, 1:]
    height, width = t.shape[0] // side, t.shape[1] // side

    def by_pixel(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.reshape(height, side, width, side, *values.shape[2:]).mean((1, 3))

    keep = 1 / (1 + 12 * by_pixel(across**2 + down**2))
    keep = np.kron(keep, np.ones((side, side)))
    steep = layer.steepness * min(t.shape) * keep
    angle = 2 * math.pi * layer.light_rotation
    facing = 0.66 - 0.75 * steep * (across * math.cos(angle) + down * math.sin(angle))
    facing /= np.sqrt(1 + steep**2 * (across**2 + down**2))
    lit = 1 + layer.relief * (1.3 * facing - 0.8)
    shine = 0.4 * layer.relief * np.maximum(facing, 0) ** 8
    bright = layer.glow * (layer.glow_reach / (layer.glow_reach + 2**trap)) ** 2 + shine
    bright = np.minimum(bright, 1)[..., None]
    tone = palette[int(layer.edge_phase % 1 * 256) % 256].astype(float)
    tone = tone * (1 + min(layer.edge, 0)) + (1 - tone) * max(layer.edge, 0)
    position = t % 1 * 256
    first, part = np.floor(position).astype(int), (position % 1)[..., None]
    colour = palette[first % 256] * (1 - part) + palette[(first + 1) % 256] * part
    colour = (tone + (colour - tone) * keep[..., None]) * lit[..., None]
    return by_pixel(np.clip(colour + (1 - colour) * bright, 0, 1))
