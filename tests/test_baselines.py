"""Baseline mixing sets: references, defining statistics, and images that never change."""

import hashlib
from typing import Any

import numpy as np
import pytest

import reference
from fractals import BASELINE_KINDS, measure, render_baseline
from fractals.baselines import MAX_LEAF_RADIUS, MIN_LEAF_RADIUS
from fractals.numerics import random_state

SIZES = [(20, 33), (1, 1), (3, 40)]
# sha256 of images 0 and 7 of seed 5, 40 high and 24 wide: what a seed produces is public.
KEPT = {
    "dead-leaves": "4bd6c53e5fe8ca2280a196114fda93b1520b176c910c54c9f8704acb81518ecb",
    "spectrum": "85da9bc1a988c3c7d64569a6ee2f559ef1a1b276b67a3fda0007ce9786a6de99",
    "noise": "75bb2a0c20a23c60ef329f3ef7c605a2e1b058219bd50a89a4f5e21bdd024129",
}


def words(kind: Any, seed: int, index: int) -> Any:  # noqa: ANN401
    state = random_state(0x42415345, list(BASELINE_KINDS).index(kind), seed, index)
    return reference.xoshiro256plusplus([int(word) for word in state])


@pytest.mark.parametrize("size", SIZES)
def test_noise_and_leaves_match_the_references(size: tuple[int, int]) -> None:
    for index in range(3):
        found = render_baseline("noise", -3, index, size)
        assert (found == reference.noise(words("noise", -3, index), *size)).all()
        smallest = max(0.75, MIN_LEAF_RADIUS * min(size))
        largest = max(2 * smallest, MAX_LEAF_RADIUS * min(size))
        found = render_baseline("dead-leaves", -3, index, size)
        expected = reference.leaves(words("dead-leaves", -3, index), *size, smallest, largest)
        # Rounding may decide pixels exactly on the edge of a leaf.
        assert (found == expected).all(axis=-1).mean() > 0.99


@pytest.mark.parametrize("size", [(20, 33), (3, 40)])
def test_spectra_match_the_reference_after_rounding(size: tuple[int, int]) -> None:
    for index in range(3):
        found = render_baseline("spectrum", 2**70, index, size)
        expected = reference.spectrum(words("spectrum", 2**70, index), *size)
        assert abs(found - expected).max() < 0.5 + 1e-2


def test_kinds_have_the_statistics_that_define_them() -> None:
    found = {
        kind: [measure(render_baseline(kind, 0, index, (128, 96))) for index in range(12)]
        for kind in BASELINE_KINDS
    }
    mean = {
        kind: {name: np.mean([values[name] for values in each]) for name in each[0]}
        for kind, each in found.items()
    }
    # White noise has no spectral slope, scale-invariant images do, and leaves have more edges.
    assert abs(mean["noise"]["spectral_slope"]) < 0.1
    assert 1.5 < mean["dead-leaves"]["spectral_slope"] < 3
    assert mean["spectrum"]["spectral_slope"] > 1.5
    assert mean["dead-leaves"]["edge_density"] > 1.5 * mean["spectrum"]["edge_density"]


@pytest.mark.parametrize("kind", BASELINE_KINDS)
def test_an_image_depends_only_on_kind_seed_index_and_size(kind: Any) -> None:  # noqa: ANN401
    one = render_baseline(kind, 5, 7, (40, 24))
    assert (one == render_baseline(kind, 5, 7, (40, 24))).all()
    for other in ((5, 8), (6, 7)):
        assert (one != render_baseline(kind, *other, (40, 24))).mean() > 0.5
    images = b"".join(render_baseline(kind, 5, index, (40, 24)).tobytes() for index in (0, 7))
    assert hashlib.sha256(images).hexdigest() == KEPT[kind]


@pytest.mark.parametrize(
    ("kind", "index", "size", "message"),
    [
        ("clouds", 0, (8, 8), "kind is 'clouds'; use one of dead-leaves, spectrum, noise"),
        ("noise", -1, (8, 8), "index -1"),
        ("noise", 0, (0, 8), "size 0x8"),
    ],
)
def test_invalid_arguments_are_rejected(
    kind: Any,  # noqa: ANN401
    index: int,
    size: tuple[int, int],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        render_baseline(kind, 0, index, size)
