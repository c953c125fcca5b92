"""An image is the same on every machine: kept between two builds of all kernels."""

from pathlib import Path

import pytest

from fingerprints import image_fingerprints, mixing_fingerprints, on_a_plain_processor


@pytest.mark.slow
def test_a_processor_without_fused_multiply_adds_paints_and_draws_the_same(tmp_path: Path) -> None:
    # Every kernel is compiled for a plain processor, in another process.
    assert on_a_plain_processor("images", tmp_path) == image_fingerprints()


@pytest.mark.slow
def test_a_processor_without_fused_multiply_adds_mixes_the_same(tmp_path: Path) -> None:
    assert on_a_plain_processor("mixing", tmp_path) == mixing_fingerprints()
