"""Images do not depend on the CPU: two builds of all kernels compute the same hashes."""

from pathlib import Path

import pytest

from fingerprints import image_fingerprints, mixing_fingerprints, on_a_plain_processor


@pytest.mark.slow
def test_a_cpu_without_fused_multiply_adds_renders_the_same_images(tmp_path: Path) -> None:
    # Another process compiles every kernel for a generic CPU.
    assert on_a_plain_processor("images", tmp_path) == image_fingerprints()


@pytest.mark.slow
def test_a_cpu_without_fused_multiply_adds_mixes_the_same_images(tmp_path: Path) -> None:
    assert on_a_plain_processor("mixing", tmp_path) == mixing_fingerprints()
