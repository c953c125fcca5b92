"""Palettes: OKLab against the reference, closed rings inside the gamut, and drawing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from fractals.numerics import Draws
from fractals.palettes import ENTRIES, Palette, draw_background, draw_palette, palette_table

STOPS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(-0.35, 0.35), st.floats(-0.35, 0.35)).map(
        lambda stop: (round(stop[0], 4), round(stop[1], 4), round(stop[2], 4))
    ),
    min_size=2,
    max_size=9,
).map(tuple)


@given(STOPS)
def test_a_ring_matches_the_reference(stops: tuple[tuple[float, float, float], ...]) -> None:
    table = palette_table(Palette(stops=stops))
    assert table.shape == (ENTRIES, 3)
    assert table.dtype == np.float32
    # Chroma falls in steps: where float32 and float64 disagree on which step just fits, either is
    # correct, and so is each step between them.
    off = np.nanmin(np.abs(table - reference.palette_rings(stops, 0.00199, 0.00201)).max(2), 0)
    # A cubed sum of float32 numbers, times up to 4.1; the sRGB curve is 13 times as steep at black.
    assert off.max() < 2e-4


@given(STOPS)
def test_a_ring_stays_in_gamut(stops: tuple[tuple[float, float, float], ...]) -> None:
    table = palette_table(Palette(stops=stops))
    assert table.min() >= 0
    assert table.max() <= 1


@given(st.integers(0, 10**9))
def test_a_ring_closes(seed: int) -> None:
    """At the seam the colour changes no more than elsewhere on the ring."""
    palette = draw_palette(Draws(seed))
    table = palette_table(palette).astype(np.float64)
    steps = np.abs(np.roll(table, -1, axis=0) - table).max(1)
    # Rotating the stops rotates the ring: the seam may be anywhere.
    n = len(palette.stops)
    turned = palette_table(Palette(stops=palette.stops[1:] + palette.stops[:1]))
    if ENTRIES % n == 0:
        np.testing.assert_array_equal(np.roll(table, -ENTRIES // n, axis=0), turned)
    # One step of chroma, 1/16, may be exactly at the seam.
    assert steps[-1] <= max(steps[:-1].max(), 0.08)


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_a_stop_inside_the_gamut_is_shown_exactly(rgb: tuple[float, float, float]) -> None:
    """The published matrices, inverted, and ours yield the same colour."""
    lightness, a, b = reference.oklab(np.array(rgb)).tolist()
    stop = (min(max(lightness, 0.0), 1.0), a, b)
    table = palette_table(Palette(stops=(stop, stop)))
    # The gamut has a margin of .002 linear, and the matrices agree to four digits.
    np.testing.assert_allclose(table, np.broadcast_to(rgb, table.shape), atol=2e-3)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # Ottosson's article, "table of example XYZ and Oklab pairs", has white; the rest are the
        # sRGB primaries as CSS Color 4 gives them, https://www.w3.org/TR/css-color-4/#ok-lab.
        ((1, 1, 1), (1.0, 0.0, 0.0)),
        ((1, 0, 0), (0.62796, 0.22486, 0.12585)),
        ((0, 1, 0), (0.86644, -0.23389, 0.1795)),
        ((0, 0, 1), (0.45201, -0.03246, -0.31153)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
    ],
)
def test_published_colours_are_reproduced(
    rgb: tuple[int, int, int], lab: tuple[float, float, float]
) -> None:
    table = palette_table(Palette(stops=(lab, lab)))
    np.testing.assert_allclose(table, np.broadcast_to(rgb, table.shape), atol=4e-3)


def test_a_colour_outside_the_gamut_keeps_its_lightness_and_hue() -> None:
    stop = (0.6, 0.3, -0.3)
    shown = reference.oklab(palette_table(Palette(stops=(stop, stop)))[0].astype(np.float64))
    assert shown[0] == pytest.approx(0.6, abs=5e-3)
    assert math.atan2(shown[2], shown[1]) == pytest.approx(math.atan2(-0.3, 0.3), abs=0.02)
    assert 0.1 < math.hypot(shown[1], shown[2]) < math.hypot(0.3, 0.3)


def test_no_stop_is_overshot() -> None:
    """Between two greys the ring rises and falls once, within their lightnesses."""
    table = palette_table(Palette(stops=((0.2, 0.0, 0.0), (0.9, 0.0, 0.0))))
    rise, fall = table[: ENTRIES // 2 + 1, 0], table[ENTRIES // 2 :, 0]
    assert (np.diff(rise) >= 0).all()
    assert (np.diff(fall) <= 0).all()
    assert table.min() == table[0, 0]
    assert table.max() == table[ENTRIES // 2, 0]


def test_a_table_is_cached_and_read_only() -> None:
    palette = draw_palette(Draws(5))
    table = palette_table(palette)
    assert palette_table(Palette(stops=palette.stops)) is table
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1


# --- drawing -------------------------------------------------------------------------------------


def test_drawn_palettes_have_3_to_8_stops_and_all_numbers_occur() -> None:
    counts = {len(draw_palette(Draws(seed)).stops) for seed in range(200)}
    assert counts == set(range(3, 9))


@given(st.integers(0, 10**9))
def test_drawn_stops_are_rounded_to_four_decimals(seed: int) -> None:
    draws = Draws(seed)
    palette = draw_palette(draws)
    ground = draw_background(draws, palette)
    assert len(ground.stops) == 2
    for stop in (*palette.stops, *ground.stops):
        assert stop == tuple(round(value, 4) for value in stop)
        assert all(type(value) is float for value in stop)


@given(st.integers(0, 10**9))
def test_dark_and_light_stops_alternate(seed: int) -> None:
    """The ring can be read in greyscale: no even stop is lighter than its odd neighbours."""
    stops = draw_palette(Draws(seed)).stops
    for one, other in zip(stops[::2], stops[1::2], strict=False):
        assert one[0] < other[0]


def test_drawing_is_a_function_of_the_key() -> None:
    drawn = [draw_palette(Draws(seed)) for seed in range(50)]
    assert len(set(drawn)) == 50
    assert drawn == [draw_palette(Draws(seed)) for seed in range(50)]


# --- invalid values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ((), "0 stops: .* at least 2; add colours"),
        (((0.5, 0.0, 0.0),), "1 stops: .* at least 2; add colours"),
        (
            ((0.5, 0.0, 0.0), (1.5, 0.0, 0.0)),
            r"\(1.5, 0.0, 0.0\): .*lightness in \[0, 1\].*; correct",
        ),
        (((-0.1, 0.0, 0.0), (0.5, 0.0, 0.0)), r"\(-0.1, 0.0, 0.0\): .*lightness in \[0, 1\]"),
        (((0.5, 0.0), (0.5, 0.0, 0.0)), r"\(0.5, 0.0\): a stop must be three numbers"),
        (((0.5, math.inf, 0.0), (0.5, 0.0, 0.0)), r"\(0.5, inf, 0.0\): .* three numbers"),
        (((0.5, 1e39, 0.0), (0.5, 0.0, 0.0)), r"\(0.5, 1e\+39, 0.0\): .* finite in float32"),
        (((math.nan, 0.0, 0.0), (0.5, 0.0, 0.0)), r"\(nan, 0.0, 0.0\): .* three numbers"),
    ],
)
def test_errors_name_value_rule_and_remedy(
    stops: tuple[tuple[float, float, float], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Palette(stops=stops)
