"""scikit-learn's handwritten digits: 1,797 real pictures that need no download."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import PipelineError
from pipelines.shards.pictures import encode_png, encoder_version
from pipelines.shards.sources import Item

TEST_EVERY = 5
"""Every fifth picture is for testing: the writers follow each other, so both parts have all."""


@dataclass(frozen=True, kw_only=True)
class DigitsSource:
    """The training or the test part of the digits, enlarged to size x size, as grey PNG."""

    split: Literal["train", "test"]
    size: int = 32

    def kind(self) -> str:
        """Name what it is."""
        return "digits"

    def settings(self) -> dict[str, Any]:
        """Return split and size, and what decides the bytes of a PNG."""
        return {"split": self.split, "size": self.size, "encoder": encoder_version()}

    def foreign(self) -> bool:
        """Encoded here."""
        return False

    def classes(self) -> Sequence[str]:
        """Return the ten digits."""
        return [str(digit) for digit in range(10)]

    def items(self) -> Iterator[Item]:
        """Give the pictures.

        Raises:
            PipelineError: if scikit-learn is not installed.
        """
        _, labels = _load()
        for index, label in enumerate(labels.tolist()):
            if (index % TEST_EVERY == TEST_EVERY - 1) == (self.split == "test"):
                yield Item(place=index, name=f"digits/{index}", extension="png", label=label)

    def read(self, place: Any) -> bytes:  # noqa: ANN401
        """Return a picture as PNG."""
        pictures, _ = _load()
        size = (self.size, self.size)
        enlarged = Image.fromarray(pictures[place]).resize(size, Image.Resampling.BICUBIC)
        return encode_png(np.asarray(enlarged))


@lru_cache(maxsize=1)
def _load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return (1797, 8, 8) uint8, scikit-learn's 0..16 spread over 0..255, and the labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PipelineError(
            "the digits come with scikit-learn, which is not installed; run "
            "pip install 'pixmix[digits]'"
        ) from error
    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)
