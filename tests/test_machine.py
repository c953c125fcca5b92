"""A picture is the same on every machine: kept between two builds of all kernels."""

from pathlib import Path

import pytest

from fingerprints import mixing_fingerprints, on_a_plain_processor, picture_fingerprints


@pytest.mark.slow
def test_a_processor_without_fused_multiply_adds_paints_and_draws_the_same(tmp_path: Path) -> None:
    # Every kernel is compiled for a plain processor, in another process.
    assert on_a_plain_processor("pictures", tmp_path) == picture_fingerprints()


@pytest.mark.slow
def test_a_processor_without_fused_multiply_adds_mixes_the_same(tmp_path: Path) -> None:
    assert on_a_plain_processor("mixing", tmp_path) == mixing_fingerprints()
