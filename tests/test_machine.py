"""Images do not depend on the CPU: two builds of all kernels compute the same hashes."""

from pathlib import Path

import pytest

from fingerprints import fingerprints_without_fma, image_fingerprints, mixing_fingerprints


@pytest.mark.slow
def test_a_cpu_without_fused_multiply_adds_renders_the_same_images(tmp_path: Path) -> None:
    # Another process compiles every kernel for a generic CPU.
    assert fingerprints_without_fma("images", tmp_path) == image_fingerprints()


@pytest.mark.slow
def test_a_cpu_without_fused_multiply_adds_mixes_the_same_images(tmp_path: Path) -> None:
    assert fingerprints_without_fma("mixing", tmp_path) == mixing_fingerprints()
