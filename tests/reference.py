"""Slow, simple reference implementations that the compiled kernels must match."""

import cmath
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fractals.chaos import Affine, Camera, ChaosLayer, Map, Tone
from fractals.escape import EscapeLayer

# --- fractals/image_kernels.py --------------------------------------------------------------------


def luma(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return Rec. 601 luma in thousandths of a level."""
    return image.astype(np.int64) @ np.array([299, 587, 114])


def edge_mask(luma: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Mark a Sobel response / 4 above 0.05 of 255000, with repeated borders, in integers."""
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
    """Count complete 8x8 blocks with a variance above (0.03 * 255000)^2."""
    count = 0
    for top in range(0, luma.shape[0] - 7, 8):
        for left in range(0, luma.shape[1] - 7, 8):
            block = luma[top : top + 8, left : left + 8]
            count += bool(((64 * block - block.sum()) ** 2).sum() > 64**3 * 7650**2)
    return count


def colour_counts(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of pixels in each of 8x8x8 colour bins."""
    counts = np.zeros((8, 8, 8), np.int64)
    for pixel in image.reshape(-1, 3) // 32:
        counts[tuple(pixel)] += 1
    return counts.ravel()


def entropy_of_counts(counts: NDArray[np.int64]) -> float:
    """Return the sum of -p log2 p."""
    total = int(counts.sum())
    return -sum(int(n) / total * math.log2(int(n) / total) for n in counts if n)


def box_counts(mask: NDArray[np.uint8], n_sizes: int) -> list[int]:
    """Return how many squares of side 2, 4, 8, ... contain a mark."""
    marks = np.argwhere(mask)
    return [len(Counter(map(tuple, marks // 2**size))) for size in range(1, n_sizes + 1)]


def ring_sums(
    power: NDArray[np.float64], rings: NDArray[np.int64], weights: NDArray[np.float64], n_rings: int
) -> NDArray[np.float64]:
    """Return the weighted power of each ring."""
    return np.array([(power * weights)[rings == ring].sum() for ring in range(n_rings)])


def resized(
    luma: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    row_weights: NDArray[np.float64],
    column_starts: NDArray[np.int64],
    column_weights: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Apply both weightings as matrices, rounded half up once at the end."""

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


# --- fractals/numerics.py -------------------------------------------------------------------------


def nearest_float32(exact: Fraction) -> np.float32:
    """Return the float32 nearest to a number, ties to even, by comparing exact distances."""
    near = np.float32(float(exact))
    candidates = [
        np.nextafter(near, np.float32(-np.inf)),
        near,
        np.nextafter(near, np.float32(np.inf)),
    ]

    def distance(value: np.float32) -> tuple[Fraction, int]:
        return abs(Fraction(float(value)) - exact), int(value.view(np.int32)) & 1

    return min(candidates, key=distance)


# --- fractals/numerics.py -------------------------------------------------------------------------

_64_BITS = (1 << 64) - 1


def xoshiro256plusplus(state: list[int]) -> Iterator[int]:
    """Yield the 64-bit words after a state of four, in unbounded integers."""

    def rotated(x: int, k: int) -> int:
        return (x << k | x >> (64 - k)) & _64_BITS

    a, b, c, d = state
    while True:
        yield (rotated((a + d) & _64_BITS, 23) + a) & _64_BITS
        c, d, t = c ^ a, d ^ b, b << 17 & _64_BITS
        a, b, c, d = a ^ d, b ^ c, c ^ t, rotated(d, 45)


def xorshift32(state: int) -> int:
    """Return the next state with Marsaglia's shifts 13, 17, 5."""
    state ^= state << 13 & 0xFFFFFFFF
    state ^= state >> 17
    return state ^ (state << 5 & 0xFFFFFFFF)


# --- fractals/baselines.py ------------------------------------------------------------------------


def units(words: Iterator[int]) -> Iterator[float]:
    """Yield the uniforms of a stream of words."""
    return ((word >> 11) / 2**53 for word in words)


def noise(words: Iterator[int], height: int, width: int) -> NDArray[np.uint8]:
    """Return the bytes of words, the lowest first."""
    n = height * width * 3
    content = b"".join(next(words).to_bytes(8, "little") for _ in range(-(-n // 8)))
    return np.frombuffer(content, np.uint8, n).reshape(height, width, 3)


def leaves(
    words: Iterator[int], height: int, width: int, smallest: float, largest: float
) -> NDArray[np.uint8]:
    """Test each leaf against every uncovered pixel."""
    unit = units(words)
    image = np.zeros((height, width, 3), np.uint8)
    uncovered = np.ones((height, width), bool)
    y, x = np.mgrid[:height, :width].astype(float)
    while uncovered.any():
        radius = (smallest**-2 - next(unit) * (smallest**-2 - largest**-2)) ** -0.5
        cx = next(unit) * (width + 3 * largest) - 1.5 * largest
        cy = next(unit) * (height + 3 * largest) - 1.5 * largest
        direction = 0j
        while not 1e-6 < abs(direction) ** 2 <= 1:
            direction = complex(2 * next(unit) - 1, 2 * next(unit) - 1)
        direction /= abs(direction)
        disc, across = next(unit) < 0.5, radius * (0.25 + 0.75 * next(unit))
        colour = list(next(words).to_bytes(8, "little")[:3])
        turned = ((x - cx) + 1j * (y - cy)) * direction.conjugate()
        box = (abs(turned.real) <= radius) & (abs(turned.imag) <= across)
        inside = uncovered & ((abs(turned) <= radius) if disc else box)
        image[inside] = colour
        uncovered &= ~inside
    return image


def spectrum(words: Iterator[int], height: int, width: int) -> NDArray[np.float64]:
    """Return the levels of an image before rounding, by numpy's transform."""
    unit = units(words)
    side = 1
    while side < max(height, width):
        side *= 2
    a, b = 0.5 + 3 * next(unit), 0.5 + 3 * next(unit)
    k = np.minimum(np.arange(side), side - np.arange(side)).astype(float)
    size = np.where(k > 0, k**a, 0)[None, :] + np.where(k > 0, k**b, 0)[:, None]
    size[0, 0] = np.inf
    fields = np.empty((3, height, width))
    for c in range(3):
        turns = np.array([next(unit) for _ in range(side * side)]).reshape(side, side)
        whole = np.fft.ifft2(np.exp(2j * np.pi * turns) / size)
        fields[c] = whole.real[:height, :width]
    levels = np.empty((height, width, 3))
    for c in range(3):
        mixed = sum((2 * next(unit) - 1) * field for field in fields)
        mean, deviation = 64 + 128 * next(unit), 32 + 40 * next(unit)
        levels[..., c] = mean + deviation * (mixed - mixed.mean()) / mixed.std()
    return levels.clip(0, 255)


# --- fractals/variations.py -----------------------------------------------------------------------

Points = NDArray[np.float64]


def vary(  # noqa: C901 - a list of formulas
    name: str, x: Points, y: Points, p: tuple[float, ...] = (), first: Points | None = None,
    second: Points | None = None,
) -> tuple[Points, Points]:  # fmt: skip
    """Apply a variation to points, as in the paper's appendix.

    first, second: its uniforms in [0, 1). Juliascope's sign is the parity of the root here and a
    coin flip in the paper. Where the paper squares affine coefficients (waves, rings, fan), p is
    the resulting number in the formula.
    """
    r = np.hypot(x, y)
    theta, phi = np.arctan2(x, y), np.arctan2(y, x)
    sin, cos, pi = np.sin, np.cos, np.pi
    u = np.zeros_like(x) if first is None else first
    v = np.zeros_like(x) if second is None else second
    a, b, c, d = (*p, 0.0, 0.0, 0.0, 0.0)[:4]
    match name:
        case "linear":
            return x, y
        case "sinusoidal":
            return sin(x), sin(y)
        case "spherical":
            return x / r**2, y / r**2
        case "swirl":
            return x * sin(r**2) - y * cos(r**2), x * cos(r**2) + y * sin(r**2)
        case "horseshoe":
            return (x - y) * (x + y) / r, 2 * x * y / r
        case "polar":
            return theta / pi, r - 1
        case "handkerchief":
            return r * sin(theta + r), r * cos(theta - r)
        case "heart":
            return r * sin(theta * r), -r * cos(theta * r)
        case "disc":
            return theta / pi * sin(pi * r), theta / pi * cos(pi * r)
        case "spiral":
            return (cos(theta) + sin(r)) / r, (sin(theta) - cos(r)) / r
        case "hyperbolic":
            return sin(theta) / r, r * cos(theta)
        case "diamond":
            return sin(theta) * cos(r), cos(theta) * sin(r)
        case "ex":
            p0, p1 = sin(theta + r), cos(theta - r)
            return r * (p0**3 + p1**3), r * (p0**3 - p1**3)
        case "julia":
            omega = np.where(u < 0.5, 0, pi)
            return np.sqrt(r) * cos(theta / 2 + omega), np.sqrt(r) * sin(theta / 2 + omega)
        case "bent":
            return np.where(x < 0, 2 * x, x), np.where(y < 0, y / 2, y)
        case "waves":
            return x + a * sin(y * b), y + c * sin(x * d)
        case "fisheye":
            return 2 / (r + 1) * y, 2 / (r + 1) * x
        case "popcorn":
            return x + a * sin(np.tan(3 * y)), y + b * sin(np.tan(3 * x))
        case "exponential":
            return np.exp(x - 1) * cos(pi * y), np.exp(x - 1) * sin(pi * y)
        case "power":
            return r ** sin(theta) * cos(theta), r ** sin(theta) * sin(theta)
        case "cosine":
            return cos(pi * x) * np.cosh(y), -sin(pi * x) * np.sinh(y)
        case "rings":
            radius = (r + a) % (2 * a) - a + r * (1 - a)
            return radius * cos(theta), radius * sin(theta)
        case "fan":
            turned = theta + np.where((theta + b) % a > a / 2, -a / 2, a / 2)
            return r * cos(turned), r * sin(turned)
        case "blob":
            radius = r * (a + (b - a) / 2 * (sin(c * theta) + 1))
            return radius * cos(theta), radius * sin(theta)
        case "pdj":
            return sin(a * y) - cos(b * x), sin(c * x) - cos(d * y)
        case "eyefish":
            return 2 / (r + 1) * x, 2 / (r + 1) * y
        case "bubble":
            return 4 / (r**2 + 4) * x, 4 / (r**2 + 4) * y
        case "cylinder":
            return sin(x), y
        case "perspective":
            return b / (b - y * sin(a)) * x, b / (b - y * sin(a)) * y * cos(a)
        case "julian" | "juliascope":
            root = np.trunc(abs(a) * u)
            sign = np.where((name == "juliascope") & (root % 2 == 1), -1, 1)
            turned = (sign * phi + 2 * pi * root) / a
            return r ** (b / a) * cos(turned), r ** (b / a) * sin(turned)
        case "blur":
            return u * cos(2 * pi * v), u * sin(2 * pi * v)
        case "ngon":
            angle = phi - b * np.floor(phi / b)
            angle = np.where(angle > b / 2, angle - b, angle)
            k = (c * (1 / cos(angle) - 1) + d) / r**a
            return k * x, k * y
        case "curl":
            bent = (x + 1j * y) / (1 + a * (x + 1j * y) + b * (x + 1j * y) ** 2)
            return bent.real, bent.imag
        case "rectangles":
            return (2 * np.floor(x / a) + 1) * a - x, (2 * np.floor(y / b) + 1) * b - y
        case "tangent":
            return sin(x) / cos(y), np.tan(y)
        case "square":
            return u - 0.5, v - 0.5
        case "cross":
            return np.sqrt(1 / (x**2 - y**2) ** 2) * x, np.sqrt(1 / (x**2 - y**2) ** 2) * y
    raise ValueError(name)


# --- fractals/chaos_kernels.py: the game ----------------------------------------------------------


def symmetry_affines(symmetry: int) -> list[Affine]:
    """Return the rotations, and for a negative symmetry the reflection in the y axis."""
    affines: list[Affine] = []
    for i in range(1, abs(symmetry)):
        angle = math.tau * i / abs(symmetry)
        affines.append((math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle), 0))
    if symmetry < 0:
        affines.append((-1, 0, 0, 0, 1, 0))
    return affines


def to_pixels(
    camera: Camera, height: int, width: int, x: Points, y: Points
) -> tuple[Points, Points]:
    """Map plane points to pixels: rotated and scaled about the centre."""
    scale = min(height, width) / camera.width
    z = (x - camera.centre[0] + 1j * (y - camera.centre[1])) * np.exp(1j * camera.rotation) * scale
    return width / 2 + z.real, height / 2 + z.imag


def folded(fold: str, position: Points, side: int) -> Points:
    """Return the folded position in pixels within [0, side)."""
    if fold == "mirror":
        return side - abs(position % (2 * side) - side)
    return position % side if fold == "wrap" else position


def _affine(affine: Affine, x: Points, y: Points) -> tuple[Points, Points]:
    a, b, c, d, e, f = affine
    return a * x + b * y + c, d * x + e * y + f


def _mapped(
    each: Map, x: Points, y: Points, colour: Points, random: np.random.Generator
) -> tuple[Points, Points, Points]:
    x, y = _affine(each.affine, x, y)
    if each.variations:
        u, v, x_sum, y_sum = x, y, np.zeros_like(x), np.zeros_like(y)
        for term in each.variations:
            first, second = random.random((2, len(x)))
            x, y = vary(term.name, u, v, term.parameters, first, second)
            x_sum, y_sum = x_sum + term.weight * x, y_sum + term.weight * y
        x, y = x_sum, y_sum
    if each.post is not None:
        x, y = _affine(each.post, x, y)
    return x, y, (1 - each.speed) * colour + each.speed * each.colour


def chaos_game(
    layer: ChaosLayer, height: int, width: int, points: int, seed: int, orbits: int = 1,
    warm_up: int = 50, probabilities: list[float] | None = None, games: int = 1,
) -> Points:  # fmt: skip
    """Play the game with independent orbits, each of which chooses its own maps.

    probabilities: of each map, those of the symmetry last; by default proportional to the weights.
    games: number of games among which the orbits are divided evenly. Returns the points of each
    pixel and the sums of their colours, (2, games, height, width) float64.
    """
    random = np.random.default_rng(seed)
    total = sum(each.weight for each in layer.maps)
    symmetry = [Map(affine=affine, speed=0) for affine in symmetry_affines(layer.symmetry)]
    maps = [*layer.maps, *symmetry]
    weights = [each.weight for each in layer.maps] + [total] * len(symmetry)
    marks = np.cumsum(probabilities or weights) / sum(probabilities or weights)
    x, y = random.uniform(-1, 1, (2, orbits))
    colour = random.random(orbits)
    cells = games * height * width
    ground = np.arange(orbits) % games * height * width
    planes = np.zeros((2, cells))
    for step in range(warm_up + points // orbits):
        chosen = np.searchsorted(marks, random.random(orbits), side="right")
        for number, each in enumerate(maps):
            mine = np.flatnonzero(chosen == number)
            x[mine], y[mine], colour[mine] = _mapped(each, x[mine], y[mine], colour[mine], random)
        lost = np.flatnonzero(~(abs(x) + abs(y) < 1e6))
        x[lost], y[lost] = random.uniform(-1, 1, (2, len(lost)))
        if step < warm_up:
            continue
        seen = (x, y, colour) if layer.final is None else _mapped(layer.final, x, y, colour, random)
        column, row = to_pixels(layer.camera, height, width, seen[0], seen[1])
        column, row = (
            folded(layer.camera.fold, column, width),
            folded(layer.camera.fold, row, height),
        )
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cell = row[inside].astype(np.int64) * width + column[inside].astype(np.int64)
        planes[0] += np.bincount(ground[inside] + cell, minlength=cells)
        planes[1] += np.bincount(ground[inside] + cell, seen[2][inside], minlength=cells)
    return planes.reshape(2, games, height, width)


# --- fractals/escape_kernels.py -------------------------------------------------------------------


def escape_step(
    formula: str, power: int, z: complex, before: complex, c: complex, k: complex
) -> complex:
    """Return one step of an orbit; see ``EscapeLayer``."""
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
    """Return the value of a trap's conic at a point, in the trap's own frame."""
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
    """Return the four features of one orbit: log count, log trap, wave, cell."""
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


def shaded(
    features: NDArray[np.float32], palette: NDArray[np.float32], layer: EscapeLayer, side: int
) -> NDArray[np.float64]:
    """Colour a window whose features have one more row above and column to the left."""
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
    write_light = 0.4 * layer.relief * np.maximum(facing, 0) ** 8
    bright = layer.glow * (layer.glow_reach / (layer.glow_reach + 2**trap)) ** 2 + write_light
    bright = np.minimum(bright, 1)[..., None]
    tone = palette[int(layer.edge_phase % 1 * 256) % 256].astype(float)
    tone = tone * (1 + min(layer.edge, 0)) + (1 - tone) * max(layer.edge, 0)
    position = t % 1 * 256
    first, part = np.floor(position).astype(int), (position % 1)[..., None]
    colour = palette[first % 256] * (1 - part) + palette[(first + 1) % 256] * part
    colour = (tone + (colour - tone) * keep[..., None]) * lit[..., None]
    return by_pixel(np.clip(colour + (1 - colour) * bright, 0, 1))


# --- fractals/chaos_kernels.py: light -------------------------------------------------------------


def b3_matrix(side: int, gap: int) -> NDArray[np.float64]:
    """Return (1, 4, 6, 4, 1)/16 with taps ``gap`` apart as a matrix; outside taps read the edge."""
    matrix = np.zeros((side, side))
    for here in range(side):
        for tap, weight in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1), strict=True):
            matrix[here, min(max(here + tap * gap, 0), side - 1)] += weight / 16
    return matrix


def smooth(plane: NDArray[np.floating], gap: int) -> NDArray[np.float64]:
    """Weight rows and columns in the same way."""
    rows, columns = (b3_matrix(side, gap) for side in plane.shape)
    smoothed: NDArray[np.float64] = rows @ plane.astype(np.float64) @ columns.T
    return smoothed


def density_levels(
    points: NDArray[np.floating], softness: float, n_levels: int
) -> NDArray[np.float64]:
    """Return each pixel's smoothing level: one more for a quarter of the points."""
    once = smooth(points, 1)
    surroundings = np.minimum(once, smooth(once, 2))
    density = np.maximum(np.maximum(0.5 * points, surroundings), 1e-37)
    levels: NDArray[np.float64] = np.clip(0.5 * np.log2(softness / density), 0, n_levels)
    return levels


def spread(
    plane: NDArray[np.floating], levels: NDArray[np.float64], n_levels: int
) -> NDArray[np.float64]:
    """Smooth each level's part of the plane by its own kernels, the widest first.

    The order matters only near the edges, which are repeated.
    """
    total = np.zeros(plane.shape)
    for level in range(n_levels + 1):
        share = plane * np.maximum(1 - np.abs(levels - level), 0)
        for exponent in reversed(range(level)):
            share = smooth(share, 2**exponent)
        total += share
    return total


def tone_map(
    points: NDArray[np.floating],
    colours: NDArray[np.floating],
    played: int,
    tone: Tone,
    table: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Apply the logarithm, the palette, gamma with vibrancy, and bleeding above white."""
    density = points.astype(np.float64) * min(points.shape) ** 2 / played
    light = np.log1p(tone.contrast * density) / np.log1p(tone.contrast * tone.exposure)
    value = light**tone.gamma
    share = smooth(colours, 1) / np.maximum(smooth(points, 1), 1e-9)
    position = (tone.colour_start + tone.colour_stretch * share) % 1.0 * 256
    left = position.astype(int) % 256
    part = (position % 1.0)[..., None]
    ink = (1 - part) * table[left] + part * table[(left + 1) % 256]
    kept, flat = value[..., None] * ink, (light[..., None] * ink) ** tone.gamma
    mixed = tone.vibrancy * kept + (1 - tone.vibrancy) * flat
    bled = mixed + 0.35 * np.maximum(value - 1, 0)[..., None]
    return np.minimum(bled, 1).transpose(2, 0, 1), np.minimum(value, 1)


def blended_layer(
    below: NDArray[np.floating],
    light: NDArray[np.floating],
    cover: NDArray[np.floating],
    blend: str,
    opacity: float,
) -> NDArray[np.float64]:
    """Blend a layer: below (n, 3), light (3, n) premultiplied, cover (n,)."""
    base, ink = below.astype(np.float64), opacity * light.T.astype(np.float64)
    hidden = opacity * cover.astype(np.float64)[:, None]
    if blend == "over":
        seen = (1 - hidden) * base + ink
    elif blend == "screen":
        seen = base + ink - base * ink
    elif blend == "lighten":
        seen = np.maximum(base, ink)
    else:
        # The colour multiplies the covered part; the rest of the pixel shows the base.
        seen = (1 - hidden) * base + ink * base
    return np.minimum(seen, 1)


def gradient(
    first: NDArray[np.floating], second: NDArray[np.floating], height: int, width: int
) -> NDArray[np.float64]:
    """Interpolate linearly from one colour to the other, at the centres of the rows."""
    share = ((np.arange(height) + 0.5) / height)[:, None, None]
    ground = (1 - share) * first.astype(np.float64) + share * second.astype(np.float64)
    return np.repeat(ground, width, axis=1)


# --- fractals/palettes.py -------------------------------------------------------------------------

# The two matrices of https://bottosson.github.io/posts/oklab/, rows as printed there.
_LMS_OF_LAB = np.array(
    [
        [1.0, +0.3963377774, +0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_OF_LMS = np.array(
    [
        [+4.0767416621, -3.3077115913, +0.2309699292],
        [-1.2684380046, +2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, +1.7076147010],
    ]
)


def linear_rgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert OKLab (3,) to linear RGB (3,), which may be outside the gamut [0, 1]."""
    rgb: NDArray[np.float64] = _RGB_OF_LMS @ (_LMS_OF_LAB @ lab) ** 3
    return rgb


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert display RGB (3,) in [0, 1] to OKLab by solving the matrices."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab: NDArray[np.float64] = np.linalg.solve(
        _LMS_OF_LAB, np.cbrt(np.linalg.solve(_RGB_OF_LMS, linear))
    )
    return lab


def palette_rings(
    stops: tuple[tuple[float, float, float], ...], strict: float, lax: float
) -> NDArray[np.float64]:
    """Return display RGB (17, 256, 3) of a ring of stops, for each sixteenth of chroma.

    A colour that exceeds [0, 1] by between ``strict`` and ``lax`` may count as inside or outside,
    so an entry has one or several colours; the others are NaN.
    """
    rings = np.full((17, 256, 3), np.nan)
    for entry in range(256):
        left, part = divmod(entry * len(stops) / 256, 1)
        ease = part * part * (3 - 2 * part)
        one, other = (np.array(stops[int(left + side) % len(stops)]) for side in (0, 1))
        lab = (1 - ease) * one + ease * other
        for sixteenths in range(16, -1, -1):
            rgb = linear_rgb(lab * np.array([1, sixteenths / 16, sixteenths / 16]))
            outside = max(-rgb.min(), rgb.max() - 1)
            if outside <= lax or sixteenths == 0:
                rgb = rgb.clip(0, 1)
                rings[sixteenths, entry] = np.where(
                    rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055
                )
            if outside <= strict:
                break
    return rings


# --- pixmix/op_kernels.py ------------------------------------------------------------------------


def by_table(image: NDArray[np.uint8], tables: list[list[int]]) -> NDArray[np.uint8]:
    """Map each channel through its own table of 256."""
    channels = [np.array(table)[image[..., i]] for i, table in enumerate(tables)]
    return np.stack(channels, axis=2).astype(np.uint8)


def autocontrast(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale and shift each channel so that its minimum becomes 0 and its maximum 255."""
    tables = []
    for i in range(3):
        low, high = int(image[..., i].min()), int(image[..., i].max())
        scale = 255.0 / (high - low) if high > low else 1.0
        offset = -low * scale if high > low else 0.0
        tables.append([min(max(int(v * scale + offset), 0), 255) for v in range(256)])
    return by_table(image, tables)


def equalize(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Map each value to the number of smaller ones, in steps."""
    tables = []
    for i in range(3):
        counts = Counter(image[..., i].ravel().tolist())
        step = (image[..., i].size - counts[max(counts)]) // 255
        below = [sum(counts[u] for u in counts if u < v) for v in range(256)]
        even = [min((step // 2 + n) // step, 255) if step else v for v, n in enumerate(below)]
        tables.append(list(range(256)) if len(counts) == 1 else even)
    return by_table(image, tables)


def posterize(image: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Round down to multiples of 2^(8 - bits)."""
    step = 2 ** (8 - bits)
    return (image.astype(int) // step * step).astype(np.uint8)


def solarize(image: NDArray[np.uint8], threshold: int) -> NDArray[np.uint8]:
    """Invert the values from the threshold up."""
    return np.where(image < threshold, image, 255 - image).astype(np.uint8)


def affine(image: NDArray[np.uint8], matrix: tuple[float, ...]) -> NDArray[np.uint8]:
    """Map each output pixel's center by the matrix, and interpolate there; black outside."""
    height, width = image.shape[:2]
    a, b, c, d, e, f = matrix
    out = np.zeros_like(image)
    taps = image.astype(float).tolist()
    for i in range(height):
        for j in range(width):
            x = a * (j + 0.5) + b * (i + 0.5) + c
            y = d * (j + 0.5) + e * (i + 0.5) + f
            if not (0 <= x < width and 0 <= y < height):
                continue
            left, top = math.floor(x - 0.5), math.floor(y - 0.5)
            dx, dy = x - 0.5 - left, y - 0.5 - top
            columns = [min(max(k, 0), width - 1) for k in (left, left + 1)]
            rows = [min(max(k, 0), height - 1) for k in (top, top + 1)]
            for channel in range(3):
                upper, lower = (
                    taps[k][columns[0]][channel]
                    + (taps[k][columns[1]][channel] - taps[k][columns[0]][channel]) * dx
                    for k in rows
                )
                out[i, j, channel] = int(upper + (lower - upper) * dy)
    return out


def rotate(image: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Rotate about the center, with a matrix rounded to 15 digits."""
    turn = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(turn), 15), round(math.sin(turn), 15)
    x, y = image.shape[1] / 2, image.shape[0] / 2
    c, f = cosine * -x + sine * -y + x, -sine * -x + cosine * -y + y
    return affine(image, (cosine, sine, c, -sine, cosine, f))


def shear_x(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Shift each row in proportion to its height."""
    return affine(image, (1, factor, 0, 0, 1, 0))


def shear_y(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Shift each column in proportion to its distance from the left."""
    return affine(image, (1, 0, 0, factor, 1, 0))


def translate_x(image: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """Replace every pixel by the one `pixels` to its right."""
    columns = np.arange(image.shape[1]) + pixels
    inside = (columns >= 0) & (columns < image.shape[1])
    return image[:, np.where(inside, columns, 0)] * inside[None, :, None]


def translate_y(image: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """Replace every pixel by the one `pixels` below it."""
    return translate_x(image.transpose(1, 0, 2), pixels).transpose(1, 0, 2)


def grey(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the luma of Rec. 601, computed in 65536ths and rounded."""
    sums: NDArray[np.int64] = image.astype(np.int64) @ np.array([19595, 38470, 7471])
    return (sums + 32768) // 65536


def blended(
    degenerate: NDArray[np.int64], image: NDArray[np.uint8], factor: float
) -> NDArray[np.uint8]:
    """Blend in float32: round the product, then the sum, and clip the result to a byte."""
    start = degenerate.astype(np.float32)
    with np.errstate(over="ignore"):
        product = np.float32(factor) * (image.astype(np.float32) - start)
    return np.clip(start + product, 0, 255).astype(np.uint8)


def color(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Blend each pixel with its gray."""
    return blended(grey(image)[..., None], image, factor)


def contrast(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Blend each pixel with the mean gray of the image."""
    return blended(np.array(int(grey(image).sum() / grey(image).size + 0.5)), image, factor)


def brightness(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Blend each pixel with black."""
    return blended(np.array(0), image, factor)


def sharpness(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Blend each pixel with the mean of its 3x3 window, whose center has weight 5."""
    height, width = image.shape[:2]
    smooth = image.astype(np.int64)
    if min(height, width) > 2:
        padded = image.astype(np.int64)
        window = 4 * padded[1:-1, 1:-1]
        for i in range(3):
            for j in range(3):
                window = window + padded[i : height - 2 + i, j : width - 2 + j]
        smooth[1:-1, 1:-1] = [
            [[round(Fraction(n, 13)) for n in pixel] for pixel in row] for row in window.tolist()
        ]
    return blended(smooth, image, factor)


# --- pixmix/fused.py -----------------------------------------------------------------------------


def mixed(
    image: NDArray[np.uint8],
    start: tuple[str, float] | None,
    rounds: list[tuple[tuple[str, float] | None, str, float, float]],
    mixing_crop: NDArray[np.uint8] | None,
) -> NDArray[np.float64]:
    """Mix an image by the paper's pseudocode, in Pillow and float64.

    rounds: (operation, or None for the mixing image; "add" or "multiply"; a; b).
    """
    from pipelines.bench.references import PILLOW_OPERATIONS

    def apply(name: str, argument: float) -> NDArray[np.uint8]:
        return np.asarray(PILLOW_OPERATIONS[name](Image.fromarray(image), argument))

    x = (image if start is None else apply(*start)) / 255
    for operation, mixing, a, b in rounds:
        if operation is None:
            assert mixing_crop is not None
            y = mixing_crop / 255
        else:
            y = apply(*operation) / 255
        if mixing == "add":
            x = (a * (2 * x - 1) + b * (2 * y - 1) + 1) / 2
        else:
            x = (2 * x) ** a * np.maximum(2 * y, 1e-37) ** b / 2
        x = np.clip(x, 0, 1)
    return x


def crop_and_flip(
    image: NDArray[np.uint8], padding: int, top: int, left: int, size: tuple[int, int], flip: bool
) -> NDArray[np.uint8]:
    """Pad with black, crop, mirror."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    crop = padded[top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(crop[:, ::-1] if flip else crop)


# --- pixmix/resizing.py --------------------------------------------------------------------------


def triangle_filter(side: int, full: int) -> list[list[int]]:
    """Return the weights of all pixels of a side, in 2^-22, for each new pixel."""
    scale = side / full
    support = max(scale, 1.0)
    rows = []
    for i in range(full):
        centre = (i + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), side)
        # A product with the reciprocal, as in Pillow; a quotient may differ in the last bit.
        reciprocal = 1.0 / support
        weights = [max(0.0, 1.0 - abs((j - centre + 0.5) * reciprocal)) for j in range(start, stop)]
        total = sum(weights)
        whole = [int(weight / total * 2**22 + 0.5) for weight in weights]
        rows.append([0] * start + whole + [0] * (side - stop))
    return rows


def resized_bilinearly(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Apply both filters as integer matrices, each rounded to a byte, in Pillow 13's order."""
    height, width = image.shape[:2]
    rows, columns = (
        np.array(triangle_filter(side, full), np.int64)
        for side, full in zip((height, width), size, strict=True)
    )

    def rounded(sums: NDArray[np.int64]) -> NDArray[np.int64]:
        return (sums + 2**21) >> 22

    values = image.astype(np.int64)
    if height > size[0] and height - size[0] > 2 * (width - size[1]):
        values = rounded(np.einsum("yi,ixc->yxc", rows, values))
        values = rounded(np.einsum("xj,yjc->yxc", columns, values))
    else:
        values = rounded(np.einsum("xj,yjc->yxc", columns, values))
        values = rounded(np.einsum("yi,ixc->yxc", rows, values))
    return values.astype(np.uint8)


# --- pixmix/draws.py: Philox ---------------------------------------------------------------------

PHILOX_CONSTANTS = {
    32: ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)),
    64: (
        (0xD2E7470EE14C6C93, 0xCA5A826395121157),
        (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B),
    ),
}
"""Multipliers and key increments by word size: Salmon et al., SC 2011, and Random123."""


def philox_words(counter: list[int], key: list[int], bits: int) -> list[int]:
    """Return the words of Philox 4xB-10, B bits each: ten rounds in Python's integers."""
    multipliers, increments = PHILOX_CONSTANTS[bits]
    modulus = 1 << bits
    c, k = list(counter), list(key)
    for _ in range(10):
        high_0, low_0 = divmod(multipliers[0] * c[0], modulus)
        high_1, low_1 = divmod(multipliers[1] * c[2], modulus)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[i] + increments[i]) % modulus for i in range(2)]
    return c


def shuffled(items: list[Any], first: int, seed: int, epoch: int, kind: int) -> list[Any]:
    """Shuffle by Fisher and Yates, with a 64-bit word per position, in Python's integers."""
    mixed, low32 = list(items), (1 << 32) - 1
    for i in reversed(range(1, len(mixed))):
        position = first + i
        counter = [position & low32, position >> 32, epoch, (3 << 24) + kind]
        low, high, *_ = philox_words(counter, [seed & low32, seed >> 32], 32)
        j = ((high << 32) + low) * (i + 1) >> 64
        mixed[i], mixed[j] = mixed[j], mixed[i]
    return mixed


# --- pipelines/loading/order.py ------------------------------------------------------------------


def partitions_of_shards(
    sizes: list[int], seed: int, epoch: int, shuffle_window: int | None, shard_partitions: int
) -> tuple[list[list[int]], list[int]]:
    """Return the samples of each partition in order, and the remaining samples."""
    numbers = iter(range(sum(sizes)))
    shards = [[next(numbers) for _ in range(size)] for size in sizes]
    laid: list[tuple[int, int]] = []
    empty: list[tuple[int, int]] = []
    for nth, shard in enumerate(shuffled(list(range(len(sizes))), 0, seed, epoch, 1)):
        laid += [(nth, sample) for sample in shards[shard]]
        if not shards[shard]:
            empty.append((nth, len(laid)))
    length, at_once = len(laid) // shard_partitions, shuffle_window or len(sizes)
    parts, position = [], 0
    for partition in range(shard_partitions + 1):
        cut = (
            laid[partition * length : (partition + 1) * length]
            if partition < shard_partitions
            else laid[position:]
        )
        # A window also counts the shards of its partition without samples.
        here = [nth for nth, at in empty if position <= at < position + len(cut)]
        part: list[int] = []
        for begin in range(min([*here, *(nth for nth, _ in cut)], default=0), len(sizes), at_once):
            group = [sample for nth, sample in cut if begin <= nth < begin + at_once]
            part += shuffled(group, position, seed, epoch, 0)
            position += len(group)
        parts.append(part)
    return parts[:shard_partitions], parts[shard_partitions]


def order_of_partitions(
    sizes: list[int], seed: int, epoch: int, shuffle_window: int | None, shard_partitions: int
) -> list[int]:
    """Return the order of an epoch: partitions interleaved, then the remaining samples."""
    parts, left = partitions_of_shards(sizes, seed, epoch, shuffle_window, shard_partitions)
    return [sample for row in zip(*parts, strict=True) for sample in row] + left


# --- pixmix/mixing.py ----------------------------------------------------------------------------

Reals = NDArray[np.float64]


def multiply_unclipped(x: Reals, y: Reals, a: float, b: float) -> Reals:
    """Return (2x)^a max(2y, 1e-37)^b / 2 by logarithms: a factor may overflow float64."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exponent = b * np.log(np.maximum(2 * y, 1e-37))
        exponent = exponent + (a * np.log(2 * x) if a != 0 else 0.0)
    return np.exp(np.minimum(exponent, 700.0)) / 2


def mix(name: str, x: Reals, y: Reals, a: float, b: float) -> Reals:
    """Mix by the formula in `pixmix.mixing`, in float64."""
    formula = {
        "add": lambda: (a * (2 * x - 1) + b * (2 * y - 1) + 1) / 2,
        "multiply": lambda: multiply_unclipped(x, y, a, b),
    }[name]
    return np.clip(formula(), 0, 1)


# --- pixmix/draws.py -----------------------------------------------------------------------------


def _weights(branch: int, u: int, v: int, beta: float) -> tuple[float, float]:
    # The upper 23 bits of a word plus one half: never 0 or 1.
    first, second = (((word >> 9) + 0.5) / 2**23 for word in (u, v))
    a, b = first ** (1 / beta), 1 - second ** (1 / beta)
    return (a, b) if branch >> 31 else (2 - a, -b)


def _operation(words: list[int], operations: list[int], severity: float) -> dict[str, Any]:
    return {
        "operates": words[0] >> 31 == 1,
        "code": operations[words[1] * len(operations) >> 32],
        "level": 0.1 + (severity - 0.1) * (words[2] + 0.5) / 2**32,
        "negative": words[3] >> 31 == 1,
    }


def drawn(
    seed: int,
    epoch: int,
    index: int,
    view: int,
    *,
    k: int,
    beta: float,
    severity: float,
    operations: list[int],
    n_mixings: int,
    n_mixing_images: int,
    crop_range: tuple[int, int],
) -> dict[str, Any]:
    """Draw a view of a sample word by word, according to the table in `pixmix.draws`.

    operations: codes to draw from. crop_range: number of vertical and horizontal crop positions.
    """
    key = [seed % 2**32, (seed >> 32) % 2**32]

    def block(number: int) -> list[int]:
        return philox_words([number, index, epoch, 2**24 + view], key, 32)

    flip, top, left, _ = philox_words([0, index, epoch, 0], key, 32)
    n_rounds, mixing_image, image_top, image_left = block(1)
    rounds = []
    for r in range(k):
        item = _operation(block(2 + 3 * r), operations, severity)
        item["operates"] |= n_mixing_images == 0
        mixing, *weights = block(3 + 3 * r)
        rounds.append(
            item
            | {
                "mixing": mixing * n_mixings >> 32,
                "weights": _weights(*weights, beta),
            }
        )
    return {
        "flip": flip >> 31,
        "crop": (top * crop_range[0] >> 32, left * crop_range[1] >> 32),
        "start": _operation(block(0), operations, severity),
        "n_rounds": n_rounds * (k + 1) >> 32,
        "mixing_image": mixing_image * n_mixing_images >> 32,
        "image_words": (image_top, image_left),
        "rounds": rounds,
    }


# --- featviz -------------------------------------------------------------------------------------


def image_of_waves(
    coefficients: NDArray[np.float32],
    size: tuple[int, int],
    decay: float,
    colours: NDArray[np.float32],
    tint: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return (3, height, width) in 0..1, a sum of waves with amplitudes by frequency."""
    height, width = size
    band = range(1, 129)
    power = sum(k ** (1 - 2 * decay) for k in band)
    level = math.sqrt(sum(1 / k for k in band) / power) / 4
    y, x = np.mgrid[:height, :width]
    planes = np.zeros((3, height, width))
    for row in range(height):
        up = row if 2 * row < height else row - height
        for along in range(width // 2 + 1):
            if 2 * abs(up) == height or 2 * along == width:
                continue
            length = math.hypot(up * min(size) / height, along * min(size) / width)
            turn = 2 * math.pi * (up * y / height + along * x / width)
            strength = level * max(length, 1.0) ** -decay * (1 if along == 0 else 2)
            for plane in range(3):
                real, imaginary = (float(part) for part in coefficients[plane, row, along])
                planes[plane] += strength * (real * np.cos(turn) - imaginary * np.sin(turn))
    logits = np.einsum("ij,jhw->ihw", colours, planes) + tint[:, np.newaxis, np.newaxis]
    return 1 / (1 + np.exp(-logits))


def warped(
    image: NDArray[np.float32],
    angle: float,
    scale: float,
    window: tuple[int, int],
    output: tuple[int, int],
) -> NDArray[np.float64]:
    """Sample a rotated window at the centre of a periodic image, pixel by pixel."""
    height, width = image.shape[-2:]
    seen = np.zeros((image.shape[0], *output))
    for row in range(output[0]):
        for column in range(output[1]):
            down = ((row + 0.5) / output[0] - 0.5) * window[0] * scale
            right = ((column + 0.5) / output[1] - 0.5) * window[1] * scale
            y = height / 2 + math.sin(angle) * right + math.cos(angle) * down - 0.5
            x = width / 2 + math.cos(angle) * right - math.sin(angle) * down - 0.5
            top, left = math.floor(y), math.floor(x)
            for di, part_of_y in ((0, top + 1 - y), (1, y - top)):
                for dj, part_of_x in ((0, left + 1 - x), (1, x - left)):
                    pixel = image[:, (top + di) % height, (left + dj) % width]
                    seen[:, row, column] += part_of_y * part_of_x * pixel
    return seen
