"""The Fourier parametrization of images, its stages, shifts, scales and magnitudes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from featviz.canvas import (
    COLOURS,
    MIN_SCALE,
    Canvas,
    Robustness,
    draw_warps,
    low_frequencies,
    mean_magnitude,
    random_generator,
    set_low_frequencies,
    spectrum_scale,
    warp,
)

SIZES = [(8, 8), (9, 12), (16, 11), (13, 15), (24, 36)]


def make_canvas(
    size: tuple[int, int], n: int = 2, *, kind: str = "spectrum", decay: float = 1.0
) -> Canvas:
    colours = COLOURS + torch.arange(n)[:, None, None] * 0.1
    tint = torch.linspace(-1, 1, 3 * n).view(n, 3)
    return Canvas(size=size, decay=torch.full((n,), decay), colours=colours, tint=tint, kind=kind)  # type: ignore[arg-type]


def draw(canvas: Canvas, key: int = 0) -> torch.Tensor:
    return canvas.draw([random_generator(key, index) for index in range(len(canvas.decay))])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decay", [0.6, 1.0, 1.7])
def test_an_image_is_the_sum_of_its_waves(size: tuple[int, int], decay: float) -> None:
    canvas = make_canvas(size, decay=decay)
    coefficients = draw(canvas) * 100
    images = canvas.images(coefficients, size)
    assert images.shape == (2, 3, *size)
    for index in range(2):
        expected = reference.image_of_waves(
            coefficients[index].numpy(),
            size,
            decay,
            canvas.colours[index].numpy(),
            canvas.tint[index].numpy(),
        )
        # Float32 rounding of a few hundred waves; a missing wave changes the image by 1e-2.
        np.testing.assert_allclose(images[index].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_coefficients_invert_images(size: tuple[int, int]) -> None:
    canvas = make_canvas(size)
    coefficients = draw(canvas) * 30
    images = canvas.images(coefficients, size)
    again = canvas.images(canvas.coefficients(images), size)
    torch.testing.assert_close(again, images, atol=2e-5, rtol=0)


@pytest.mark.parametrize("decay", [0.8, 1.2])
def test_phase_images_have_the_magnitudes_of_their_scale(decay: float) -> None:
    canvas = make_canvas((12, 15), kind="phase", decay=decay)
    planes = canvas._planes(draw(canvas), (12, 15), None)
    magnitude = torch.fft.rfft2(planes, norm="forward").abs()
    scale = spectrum_scale((12, 15), (12, 15), canvas.decay)[:, None].expand(2, 3, 12, 8).clone()
    scale[..., 0, 0] = 0
    ratio = magnitude[scale > 0] / scale[scale > 0]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)
    assert float(magnitude[scale == 0].max()) < 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_phases_are_recovered_from_their_image(size: tuple[int, int]) -> None:
    canvas = make_canvas(size, kind="phase")
    images = canvas.images(draw(canvas), size)
    again = canvas.images(canvas.coefficients(images), size)
    torch.testing.assert_close(again, images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "stage"), [((24, 36), (12, 18)), ((25, 37), (13, 19)), ((9, 9), (8, 8))]
)
@pytest.mark.parametrize("kind", ["spectrum", "phase"])
def test_a_finer_stage_continues_the_same_image(
    size: tuple[int, int], stage: tuple[int, int], kind: str
) -> None:
    canvas = make_canvas(size, kind=kind)
    coefficients = draw(canvas) * (50 if kind == "spectrum" else 1)
    coarse = canvas.images(low_frequencies(coefficients, size, stage), stage)
    fine = canvas.images(coefficients, size)
    waves, more_waves = (
        torch.fft.rfft2(torch.logit(each.double()), norm="forward") for each in (coarse, fine)
    )
    shown = low_frequencies(more_waves, size, stage)
    # Without the Nyquist frequency of an even side.
    rows = torch.fft.fftfreq(stage[0], 1 / stage[0]).abs() * 2 < stage[0]
    columns = torch.arange(stage[1] // 2 + 1) * 2 < stage[1]
    known = rows[:, None] & columns[None]
    assert int(known.sum()) >= 8 * 4 - 12
    torch.testing.assert_close(waves[..., known], shown[..., known], atol=1e-5, rtol=0)
    assert float(waves[..., known].abs().max()) > 0.1


@given(height=st.integers(8, 40), width=st.integers(8, 40), data=st.data())
def test_set_low_frequencies_inverts_low_frequencies(
    height: int, width: int, data: st.DataObject
) -> None:
    stage = (data.draw(st.integers(8, height)), data.draw(st.integers(8, width)))
    size = (height, width)
    coefficients = torch.arange(2 * 3 * height * (width // 2 + 1), dtype=torch.float32)
    coefficients = coefficients.view(2, 3, height, width // 2 + 1)
    part = low_frequencies(coefficients, size, stage)
    assert part.shape == (2, 3, stage[0], stage[1] // 2 + 1)
    assert len(part[0, 0].unique()) == part[0, 0].numel()
    modified = coefficients.clone()
    set_low_frequencies(modified, part + 1, size, stage)
    torch.testing.assert_close(low_frequencies(modified, size, stage), part + 1)
    assert int((modified != coefficients).sum()) == part.numel()


def test_a_stage_larger_than_the_image_is_rejected() -> None:
    with pytest.raises(
        ValueError, match=r"stage size \(16, 8\) is larger than the image size \(8, 8\)"
    ):
        low_frequencies(torch.zeros(1, 3, 8, 5), (8, 8), (16, 8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["spectrum", "phase"])
def test_a_shift_by_whole_pixels_rolls_the_image(size: tuple[int, int], kind: str) -> None:
    canvas = make_canvas(size, kind=kind)
    coefficients = draw(canvas) * (50 if kind == "spectrum" else 1)
    shifts = torch.tensor([[3 / size[0], 5 / size[1]], [-2 / size[0], 0.0]])
    moved = canvas.images(coefficients, size, shifts)
    still = canvas.images(coefficients, size)
    torch.testing.assert_close(moved[0], still[0].roll((-3, -5), (1, 2)), atol=2e-5, rtol=0)
    torch.testing.assert_close(moved[1], still[1].roll((2, 0), (1, 2)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("decay", [0.5, 1.0, 1.6])
def test_the_scale_falls_as_frequency_to_the_power_of_decay(decay: float) -> None:
    scale = spectrum_scale((64, 64), (64, 64), torch.tensor([decay]))[0]
    ratio = scale[0, 2:31] / scale[0, 1]
    expected = torch.arange(2, 31) ** -decay
    torch.testing.assert_close(ratio, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scale[5, 0], scale[0, 5])
    assert bool((scale[32] == 0).all())
    assert bool((scale[:, 32] == 0).all())


def test_all_decays_have_the_same_total_power() -> None:
    band = torch.arange(1, 129, dtype=torch.float64)
    powers = []
    for decay in (0.5, 1.0, 1.5):
        scale = spectrum_scale((300, 300), (300, 300), torch.tensor([decay]))[0, 0, 1:129]
        # The number of waves on a ring is proportional to its radius.
        powers.append(float((band * scale.double() ** 2).sum()))
    np.testing.assert_allclose(powers, powers[1], rtol=1e-5)


def test_textures_are_isotropic_in_nonsquare_images() -> None:
    scale = spectrum_scale((32, 64), (32, 64), torch.tensor([1.0]))[0]
    # Four waves over 32 pixels are as long as eight over 64.
    torch.testing.assert_close(scale[4, 0], scale[0, 8])


def test_initial_coefficients_depend_only_on_the_images_own_generator() -> None:
    canvas = make_canvas((16, 24), 3)
    together = canvas.draw([random_generator(1), random_generator(2), random_generator(3)])
    alone = make_canvas((16, 24), 1).draw([random_generator(2)])
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])
    assert float(together.std()) == pytest.approx(0.01, rel=0.05)


def test_initial_phases_are_uniform() -> None:
    phases = make_canvas((64, 64), 1, kind="phase").draw([random_generator(0)])
    assert phases.shape == (1, 3, 64, 33)
    assert -np.pi <= float(phases.min()) < -3.1
    assert 3.1 < float(phases.max()) <= np.pi
    assert abs(float(phases.mean())) < 0.1


def test_images_have_the_given_magnitudes() -> None:
    photographs = torch.rand(4, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    magnitude = mean_magnitude(photographs)
    assert magnitude.shape == (3, 24, 17)
    canvas = Canvas(
        size=(24, 32), decay=torch.ones(1), colours=COLOURS[None], tint=torch.zeros(1, 3),
        kind="phase", magnitude=magnitude,
    )  # fmt: skip
    images = canvas.images(draw(canvas), (24, 32))
    measured = mean_magnitude(images.clamp(1 / 256, 255 / 256))
    # Without the Nyquist frequency of even sides and the mean, which the tint determines.
    inner = (slice(None), slice(1, 12), slice(0, 16))
    torch.testing.assert_close(measured[inner], magnitude[inner], atol=1e-3, rtol=1e-2)


def test_magnitudes_of_uint8_equal_those_of_floats() -> None:
    bytes_ = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    as_bytes = mean_magnitude(bytes_.to(torch.uint8))
    torch.testing.assert_close(as_bytes, mean_magnitude(bytes_ / 255))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (4, 9)}, r"size is \(4, 9\); use at least 8"),
        ({"kind": "pixels"}, "kind is 'pixels'; use one of spectrum, phase"),
        ({"decay": torch.tensor([-0.1])}, "decay is .*; use 0 to 3"),
        ({"decay": torch.tensor([math.nan])}, "decay is .*; use 0 to 3"),
        ({"colours": torch.eye(3)}, r"colours has shape \(3, 3\); for 1 images expected"),
        ({"tint": torch.zeros(2, 3)}, r"tint has shape \(2, 3\)"),
        ({"magnitude": torch.zeros(3, 16, 9)}, 'magnitude requires kind "phase"'),
        ({"kind": "phase", "magnitude": torch.zeros(3, 16, 8)}, "magnitude has shape"),
    ],
)
def test_a_canvas_rejects_invalid_arguments(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "size": (16, 16),
        "decay": torch.ones(1),
        "colours": COLOURS[None],
        "tint": torch.zeros(1, 3),
    }
    Canvas(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Canvas(**good | changes)  # type: ignore[arg-type]


FAR = Robustness(rotation=45, zoom=0.5, jitter=0.5)


def images(height: int, width: int, n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("size", [(12, 12), (13, 10), (9, 21)])
@pytest.mark.parametrize("window", [None, (6, 5), (9, 9)])
@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.3, 0.8), (-0.7, 1.4)])
def test_a_warp_samples_a_periodic_image_bilinearly(
    size: tuple[int, int], window: tuple[int, int] | None, angle: float, scale: float
) -> None:
    source = images(*size)
    view = window or size
    output = (view[0], view[1] + 2)
    warps = torch.tensor([[angle, scale], [-angle, 1.0]])
    result = warp(source, warps, view, output, FAR)
    assert result.shape == (2, 3, *output)
    for index, (angle_of_view, scale_of_view) in enumerate(warps.tolist()):
        expected = reference.warped(
            source[index].numpy(), angle_of_view, scale_of_view, view, output
        )
        # Float32 positions have errors of a few thousandths of a pixel.
        np.testing.assert_allclose(result[index].numpy(), expected, atol=3e-5)


@pytest.mark.parametrize("size", [(12, 12), (13, 9)])
def test_the_identity_warp_returns_the_image(size: tuple[int, int]) -> None:
    source = images(*size)
    warps = torch.tensor([[0.0, 1.0]]).repeat(2, 1)
    result = warp(source, warps, size, size, Robustness(rotation=0, zoom=0, jitter=0))
    torch.testing.assert_close(result, source, atol=1e-5, rtol=0)


def test_warps_never_show_padding() -> None:
    # Padding would be darker.
    white = torch.ones(64, 3, 16, 24)
    warps = torch.from_numpy(draw_warps(random_generator(3), 64, FAR))
    assert float(warps[:, 0].abs().max()) > 0.6
    result = warp(white, warps[:, :2], (16, 24), (16, 24), FAR, torch.full((64,), MIN_SCALE))
    torch.testing.assert_close(result, torch.ones_like(result), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(16, 100), (90, 12), (20, 30)])
@pytest.mark.parametrize("rotation", [10, 30, 45])
def test_warps_never_show_padding_in_nonsquare_windows(
    size: tuple[int, int], rotation: float
) -> None:
    robustness = Robustness(rotation=rotation, zoom=0.5, jitter=0)
    angles = torch.linspace(-1, 1, 31) * math.radians(rotation)
    warps = torch.stack([angles, torch.full((31,), 1.5)], 1)
    white = torch.ones(31, 1, *size)
    result = warp(white, warps, size, size, robustness, torch.full((31,), MIN_SCALE))
    torch.testing.assert_close(result, torch.ones_like(result), atol=1e-5, rtol=0)


def test_a_scale_magnifies_the_view() -> None:
    source = images(16, 16)
    warps = torch.tensor([[0.2, 1.0]]).repeat(2, 1)
    half_windows = torch.tensor([[0.2, 0.5]]).repeat(2, 1)
    enlarged = warp(source, warps, (16, 16), (16, 16), FAR, torch.full((2,), 2.0))
    torch.testing.assert_close(enlarged, warp(source, half_windows, (16, 16), (16, 16), FAR))


def test_a_view_does_not_depend_on_other_images() -> None:
    source = images(20, 20, 5)
    warps = torch.from_numpy(draw_warps(random_generator(1), 5, FAR))[:, :2]
    scales = torch.tensor([0.8, 1.0, 1.2, 1.9, 0.75])
    together = warp(source, warps, (10, 10), (12, 12), FAR, scales)
    alone = warp(source[3:4], warps[3:4], (10, 10), (12, 12), FAR, scales[3:4])
    assert torch.equal(together[3:4], alone)


def test_warps_cover_their_ranges() -> None:
    robustness = Robustness(rotation=10, zoom=0.1, jitter=0.25)
    warps = draw_warps(random_generator(0), 20_000, robustness)
    assert warps.shape == (20_000, 4)
    angle, window, down, right = warps.T
    for values, low, high in (
        (angle, -math.radians(10), math.radians(10)),
        (window, 0.9, 1.1),
        (down, -0.25, 0.25),
        (right, -0.25, 0.25),
    ):
        assert low - 1e-6 <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
    # Small angles are more frequent: half of a triangular distribution is within 0.29 of its width.
    assert np.mean(np.abs(angle) < 0.2929 * math.radians(10)) == pytest.approx(0.5, abs=0.02)


def test_zero_robustness_draws_identity_warps() -> None:
    warps = draw_warps(random_generator(0), 5, Robustness(rotation=0, zoom=0, jitter=0))
    np.testing.assert_array_equal(warps, [[0, 1, 0, 0]] * 5)


@pytest.mark.parametrize(
    ("name", "value"), [("rotation", 46), ("rotation", -1), ("zoom", 0.6), ("jitter", 0.51)]
)
def test_robustness_rejects_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}; use 0 to"):
        Robustness(**{name: value})
