"""Escape-time layers: reference implementations, properties of images, and invalid layers."""

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from fractals import escape, escape_kernels
from fractals.escape import (
    FORMULAS,
    TRAPS,
    EscapeLayer,
    draw_escape,
    orbit_parameters,
    render_escape,
    samples_along_pixel,
)
from fractals.escape_kernels import FLOAT32_WIDTH, measure_orbits, window_frame
from fractals.numerics import Draws

JULIA = EscapeLayer(
    formula="power",
    power=2,
    plane="julia",
    constant=(-0.7269, 0.1889),
    centre=(0.1, -0.2),
    width=1.7,
    rotation=0.13,
    max_iterations=64,
    trap="cross",
    trap_centre=(0.2, 0.1),
    trap_rotation=0.07,
    smooth_turns=0.6,
    trap_turns=0.1,
    wave_turns=0.3,
    wave_detail=0.4,
    cell_turns=0.1,
    inner_trap_turns=0.2,
    inner_wave_turns=0.3,
    relief=0.5,
    light_rotation=0.2,
    steepness=0.05,
    edge=-0.4,
    edge_phase=0.3,
    glow=0.5,
    glow_reach=0.02,
)
WINDOWS: list[dict[str, Any]] = [
    {"formula": "power", "power": 2, "plane": "parameter", "centre": (-0.7436, 0.1318)},
    {"formula": "power", "power": 3, "plane": "julia", "centre": (0.8, 0.3)},
    {"formula": "power", "power": 4, "plane": "parameter", "centre": (0.6, 0.62)},
    {"formula": "power", "power": 5, "plane": "julia", "centre": (0.9, 0.2)},
    {"formula": "ship", "power": 2, "plane": "parameter", "centre": (-1.7553, -0.03)},
    {"formula": "ship", "power": 3, "plane": "julia", "centre": (0.7, 0.5)},
    {"formula": "tricorn", "power": 2, "plane": "parameter", "centre": (-0.45, 0.72)},
    {"formula": "celtic", "power": 2, "plane": "parameter", "centre": (-0.9, 0.4)},
    {"formula": "phoenix", "power": 2, "plane": "julia", "coefficient": (-0.5, 0.1)},
    {"formula": "rings", "power": 2, "plane": "julia", "centre": (0.55, 0.35)},
    {"formula": "rings", "power": 3, "plane": "julia", "centre": (0.5, 0.4)},
    {"formula": "newton", "power": 3, "plane": "julia", "coefficient": (0.9, 0.2)},
    {"formula": "newton", "power": 4, "plane": "parameter", "coefficient": (1.1, -0.1)},
    {"formula": "newton", "power": 5, "plane": "julia", "coefficient": (1.0, 0.3)},
]


def ramp() -> NDArray[np.float32]:
    """Return a cyclic palette whose three channels differ."""
    t = np.arange(256)[:, None] / 256 + np.array([0.0, 0.2, 0.55])
    return (0.5 + 0.45 * np.cos(2 * math.pi * t)).astype(np.float32)


def features_of(layer: EscapeLayer, rows: int, columns: int) -> NDArray[np.float32]:
    frame = window_frame(layer.centre, layer.width, layer.rotation, rows, columns)
    return measure_orbits(orbit_parameters(layer), frame, layer.width, 0, rows, columns)


@pytest.mark.parametrize(
    "window", WINDOWS, ids=lambda p: f"{p['formula']}{p['power']}-{p['plane']}"
)
@pytest.mark.parametrize("width", [FLOAT32_WIDTH, 0.5], ids=["double", "single"])
def test_orbits_follow_their_formula(window: dict[str, Any], width: float) -> None:
    trap = list(TRAPS)[WINDOWS.index(window) % len(TRAPS)]
    layer = replace(JULIA, width=width, max_iterations=20, trap=trap, wave_phase=0.17, **window)
    rows, columns = 10, 13
    measured = features_of(layer, rows, columns)
    frame = window_frame(layer.centre, layer.width, layer.rotation, rows, columns)
    origin, across, down = (complex(*frame[i : i + 2]) for i in (0, 2, 4))
    expected = np.empty((4, rows, columns))
    for row in range(rows):
        for column in range(columns):
            point = origin + column * across + row * down
            expected[:, row, column] = reference.escape_features(layer, point)
    assert np.ptp(expected, axis=(1, 2)).max() > 0.001
    # Twenty steps magnify a rounding of the first step 2^20 to 5^20 times. Most points stay
    # accurate; a few chaotic ones may differ.
    differs = np.abs(measured - expected).max(axis=0) > (0.02 if width > FLOAT32_WIDTH else 0.002)
    assert differs.mean() <= (0.1 if width > FLOAT32_WIDTH else 0.0)


@pytest.mark.parametrize("side", [1, 2])
def test_shading_matches_the_reference(side: int) -> None:
    layer = replace(JULIA, edge=0.3)
    height, width = 24, 31
    frame = window_frame(layer.centre, layer.width, layer.rotation, height * side, width * side)
    frame[:2] -= frame[2:4] + frame[4:6]
    shape = (height * side + 1, width * side + 1)
    features = measure_orbits(orbit_parameters(layer), frame, layer.width, 0, *shape)
    expected = reference.shaded(features, ramp(), layer, side)
    image = render_escape(layer, ramp(), (height, width), {1: 10, 2: 50}[side])
    # float32 against float64; a palette step at a wrapped coordinate costs 1/256 of a colour.
    assert np.abs(image - expected).max() < 2e-3


def test_an_orbit_does_not_depend_on_its_neighbours() -> None:
    layer = replace(JULIA, max_iterations=256)
    rows, columns = 37, 29
    whole = features_of(layer, rows, columns)
    frame = window_frame(layer.centre, layer.width, layer.rotation, rows, columns)
    band = measure_orbits(orbit_parameters(layer), frame, layer.width, 5, 11, columns)
    assert np.array_equal(band, whole[:, 5:16])
    frame[:2] += 3 * frame[2:4]
    narrow = measure_orbits(orbit_parameters(layer), frame, layer.width, 0, rows, columns - 3)
    assert np.mean(narrow == whole[:, :, 3:]) > 0.7  # a column's start differs in the last bit
    assert np.median(np.abs(narrow - whole[:, :, 3:])) == 0.0


def test_the_image_does_not_depend_on_the_size_of_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = render_escape(JULIA, ramp(), (50, 34), 50)
    monkeypatch.setattr("fractals.escape._BAND_SAMPLES", 300)
    assert np.array_equal(render_escape(JULIA, ramp(), (50, 34), 50), whole)


def test_every_size_shows_the_same_image() -> None:
    layer = replace(JULIA, constant=(0.285, 0.01), max_iterations=16, relief=0.2)
    small = render_escape(layer, ramp(), (48, 60), 800)
    large = render_escape(layer, ramp(), (192, 240), 50)
    large = large.reshape(48, 4, 60, 4, 3).mean((1, 3))
    # Slopes depend on the distance of samples, so fine edges differ, shapes and hues do not.
    # Measured .028 and .960; a window moved by a fiftieth of its width has .091 and .840.
    assert np.abs(small - large).mean() < 0.04
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.94


def test_a_wider_image_shows_more_at_the_sides() -> None:
    square = render_escape(JULIA, ramp(), (40, 40), 10)
    wide = render_escape(JULIA, ramp(), (40, 64), 10)
    tall = render_escape(JULIA, ramp(), (64, 40), 10)
    assert np.median(np.abs(wide[:, 12:52] - square)) < 1e-4
    assert np.median(np.abs(tall[12:52] - square)) < 1e-4


PROGRAM = """
import hashlib, json, sys
import numpy as np
from dataclasses import asdict
from fractals.escape import render_escape
from fractals.escape import draw_escape
from fractals.numerics import Draws
palette = (np.arange(768).reshape(256, 3) * 37 % 256 / np.float32(256)).astype(np.float32)
digest = hashlib.sha256()
for index in range(8):
    layer = draw_escape(Draws(5, index))
    digest.update(json.dumps(asdict(layer)).encode())
    digest.update(render_escape(layer, palette, (24, 31), 50).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_a_generic_processor_draws_and_renders_the_same_bits(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    generic = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    palette = (np.arange(768).reshape(256, 3) * 37 % 256 / np.float32(256)).astype(np.float32)
    digest = hashlib.sha256()
    for index in range(8):
        layer = draw_escape(Draws(5, index))
        digest.update(json.dumps(asdict(layer)).encode())
        digest.update(render_escape(layer, palette, (24, 31), 50).tobytes())
    assert generic.stdout.strip() == digest.hexdigest()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**40), height=st.integers(1, 40), width=st.integers(1, 40))
def test_every_drawn_layer_covers_the_image_with_colours(
    seed: int, height: int, width: int
) -> None:
    layer, palette = draw_escape(Draws(seed)), ramp()
    before = palette.copy()
    image = render_escape(layer, palette, (height, width), 10)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1
    assert np.array_equal(palette, before)


def test_the_same_key_draws_the_same_layer_and_others_differ() -> None:
    layers = [draw_escape(Draws(3, index)) for index in range(20)]
    assert layers == [draw_escape(Draws(3, index)) for index in range(20)]
    assert len(set(layers)) == 20


def test_a_layer_survives_json() -> None:
    for index in range(40):
        layer = draw_escape(Draws(11, index))
        assert EscapeLayer(**json.loads(json.dumps(asdict(layer)))) == layer


def test_all_formulas_and_traps_are_drawn() -> None:
    layers = [draw_escape(Draws(1, index)) for index in range(200)]
    assert {layer.formula for layer in layers} == set(FORMULAS)
    assert {layer.trap for layer in layers} == set(TRAPS)
    assert {layer.plane for layer in layers} == {"julia", "parameter"}
    assert min(layer.width for layer in layers) < 0.01
    assert max(layer.width for layer in layers) > 1


def test_drawn_windows_have_content() -> None:
    statistics = [escape._draw_good_window(Draws(2, index))[1] for index in range(60)]
    accepted = [each for each in statistics if escape._penalty(each) == 0]
    assert len(accepted) > 36
    assert all(each.outside >= 0.5 and each.dusty <= 0.05 for each in accepted)


def test_the_zoom_ends_on_the_border() -> None:
    start = EscapeLayer(
        formula="power",
        power=2,
        plane="parameter",
        centre=(-0.3, 0.0),
        width=2.6,
        max_iterations=96,
    )
    counts = []
    for index in range(20):
        layer = escape._zoom_to_border(Draws(4, index), start, 0.01)
        assert 0.01 <= layer.width <= 0.0101
        counts.append(np.ptp(features_of(layer, 16, 17)[0]))
    assert np.median(counts) > 0.5


def test_parallel_lines_are_coherent_and_rings_are_not() -> None:
    y, x = np.mgrid[0:16, 0:19].astype(np.float32)
    lines = 2 + np.sin(0.5 * x + 0.3 * y, dtype=np.float32)
    rings = 2 + np.sin(np.hypot(x - 9, y - 7.5), dtype=np.float32)
    assert escape_kernels.coherence(lines) > 0.95
    assert escape_kernels.coherence(rings) < 0.2


def test_border_samples_are_chosen_where_the_count_changes() -> None:
    features = np.zeros((4, 16, 19), np.float32)
    features[0, :, 11:] = 1.0
    columns = {
        escape_kernels.choose_border_sample(features, unit)[1] for unit in np.linspace(0, 0.999, 50)
    }
    assert columns == {10, 11}
    features[0] = 0.0
    assert escape_kernels.choose_border_sample(features, 0.5) == (8, 9)


def test_the_inside_of_a_set_has_structure() -> None:
    layer = replace(
        JULIA, plane="parameter", centre=(-0.1, 0.0), width=0.4, relief=0.0, glow=0.0, rotation=0.0
    )
    assert (features_of(layer, 20, 26)[0] == -1).all()
    image = render_escape(layer, ramp(), (40, 52), 10)
    assert image.std(axis=(0, 1)).max() > 0.05


def test_samples_per_pixel_determine_samples_along_a_pixel() -> None:
    expected = {0.1: 1, 10: 1, 24: 2, 50: 2, 200: 3, 1000: 4}
    assert {samples: samples_along_pixel(samples) for samples in expected} == expected


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("formula", "mandelbulb", "mandelbulb.*use one of power, ship"),
        ("plane", "both", "both.*use one of julia, parameter"),
        ("trap", "mouse", "mouse.*use one of point"),
        ("power", 6, "power 6 is not supported by power; use one of 2, 3, 4, 5"),
        ("max_iterations", 30, "30.*multiple of 4"),
        ("max_iterations", 0, "0.*multiple of 4"),
        ("width", 1e-9, "width is 1e-09; use a number from"),
        ("width", math.nan, "width is nan; use a number from"),
        ("relief", 1.5, "relief is 1.5; use a number from 0.0 to 1.0"),
        ("centre", (1.0, 2.0, 3.0), "centre is .*two numbers, x and y, from -1e"),
        ("trap_centre", (0.0, 1e30), "trap_centre is .*from -1e.06 to 1e.06"),
        ("constant", (10**400, 0.0), "constant is .*two numbers, x and y, from -1e"),
        ("constant", (math.inf, 0.0), "constant is .*two numbers, x and y, from -1e"),
    ],
)
def test_an_invalid_layer_is_rejected(field: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        replace(JULIA, **{field: value})  # type: ignore[arg-type]


def test_rings_reject_the_parameter_plane() -> None:
    with pytest.raises(ValueError, match='use "julia"'):
        replace(JULIA, formula="rings", plane="parameter")


@pytest.mark.parametrize(("family", "power"), [(99, 2), (escape_kernels.POWER, 6)])
def test_an_unknown_formula_is_rejected(family: int, power: int) -> None:
    with pytest.raises(ValueError, match=f"{family}.*{power}"):
        escape_kernels.orbit_kernel(family, power)
