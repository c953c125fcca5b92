import math

import numpy as np
import pytest
import torch

import reference
from featviz.canvas import MIN_SCALE, Robustness, draw_warps, random_generator, warp

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
