"""Images of any shape are measured at one size, in little memory."""

import resource
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.loading.mixing_set import open_mixing_set
from pipelines.report import set_statistics
from pipelines.report.set_statistics import at_measured_size
from shard_sets import encoded


@pytest.mark.parametrize("shape", [(30_000, 1), (1, 30_000)])
def test_a_thin_image_is_measured_in_little_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert at_measured_size(image).shape == (256, 256, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thin.png").write_bytes(encoded(image))
    with pytest.raises(PipelineError, match=r"thin\.png"):
        open_mixing_set(tmp_path / "set", 256, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("shape", [(700, 40), (33, 500), (300, 301), (1, 9)])
def test_a_thin_image_is_cut_as_others_are(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The centre alone is scaled where all of it would be too much: the same but for rounding."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    whole = at_measured_size(image).astype(int)
    monkeypatch.setattr(set_statistics, "MOST_PIXELS", 0)
    # Pillow rounds after each of two passes.
    assert np.abs(at_measured_size(image) - whole).max() <= 1
