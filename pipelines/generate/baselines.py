"""The painter of the simple sets that fractals are measured against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from fractals import BASELINE_VERSION, Baseline, measure, paint_baseline
from pipelines.generate.encoding import Picture
from pipelines.generate.painting import Painted


@dataclass(frozen=True, kw_only=True)
class BaselinePainter:
    """Paints picture i of a process and a seed.

    process: one of `fractals.BASELINES`, the kind of the set; height, width: pixels.
    """

    process: Baseline
    seed: int = 0
    height: int = 256
    width: int = 256

    def paint(self, pictures: range) -> Iterator[Painted]:
        """Paint pictures, one by one."""
        return map(self._paint, pictures)

    def _paint(self, index: int) -> Painted:
        picture = self._picture(index)
        statistics = {name: round(value, 6) for name, value in measure(picture).items()}
        record = {"seed": self.seed, "kind": self.process, "statistics": statistics}
        return Painted(picture, record, 1)

    def repaint(self, record: Mapping[str, Any]) -> Picture:
        """Paint a picture again from its record."""
        return self._picture(record["index"])

    def kind(self) -> str:
        """Name what is painted."""
        return self.process

    def settings(self) -> dict[str, Any]:
        """Return all that the pictures depend on, besides their number."""
        # The process is the set's kind.
        return {"seed": self.seed, "height": self.height, "width": self.width}

    def licence(self) -> str:
        """Return CC0: random numbers are nobody's, and we claim nothing."""
        return "CC0-1.0"

    def versions(self) -> dict[str, Any]:
        """Return the version that counts the changes of pictures."""
        return {"baseline_version": BASELINE_VERSION}

    @classmethod
    def from_settings(cls, kind: Baseline, settings: Mapping[str, Any]) -> Self:
        """Make the painter of a set from the kind and the settings in its manifest."""
        sizes = {name: settings[name] for name in ("seed", "height", "width")}
        return cls(process=kind, **sizes)

    def _picture(self, index: int) -> Picture:
        return paint_baseline(self.process, self.seed, index, (self.height, self.width))


def chunk_size(height: int, width: int) -> int:
    """Return how many pictures a process paints between two commits to the disk.

    256 of 256x256, a few seconds' work, most of it statistics and encoding; fewer of larger ones.
    """
    return max(1, min(256, 2**24 // (height * width)))
