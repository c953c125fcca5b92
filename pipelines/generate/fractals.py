"""The painters of fractals, and of the simple sets that fractals are measured against."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from fractals import (
    BASELINE_VERSION,
    GENOME_VERSION,
    Genome,
    draw_genome,
    measure,
    paint_baseline,
    render,
)
from pipelines.generate.encoding import Picture
from pipelines.generate.painting import Painted


@dataclass(frozen=True, kw_only=True)
class FractalPainter:
    """Paints picture i of a family and a seed.

    family: one of `fractals.FAMILIES`; height, width: pixels; samples_per_pixel: points of a
    chaos game for each pixel.
    """

    seed: int = 0
    family: str = "mixed"
    height: int = 256
    width: int = 256
    samples_per_pixel: float = 50.0

    def paint(self, pictures: range) -> Iterator[Painted]:
        """Paint pictures, one by one."""
        return map(self._paint, pictures)

    def _paint(self, index: int) -> Painted:
        genome = draw_genome(self.seed, index, self.family)
        picture = self._render(genome)
        statistics = {name: round(value, 6) for name, value in measure(picture).items()}
        record = {
            "seed": self.seed,
            "family": self.family,
            "statistics": statistics,
            "genome": genome.to_json(),
        }
        return Painted(picture, record, genome.attempt + 1)

    def repaint(self, record: Mapping[str, Any]) -> Picture:
        """Paint a picture again from the genome in its record."""
        return self._render(Genome.from_json(record["genome"]))

    def kind(self) -> str:
        """Name what is painted."""
        return "fractals"

    def settings(self) -> dict[str, Any]:
        """Return all that the pictures depend on, besides their number."""
        return asdict(self)

    def licence(self) -> str:
        """Return CC0: formulas and random numbers are nobody's, and we claim nothing."""
        return "CC0-1.0"

    def versions(self) -> dict[str, Any]:
        """Return the version that counts the changes of pictures."""
        return {"genome_version": GENOME_VERSION}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Make the painter of a set from the settings in its manifest."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})

    def _render(self, genome: Genome) -> Picture:
        return render(genome, (self.height, self.width), self.samples_per_pixel)


def fractal_chunk(height: int, width: int, samples_per_pixel: float) -> int:
    """Return how many pictures a process paints between two commits to the disk.

    About a second's work, 32 pictures of 256x256 at 50 samples a pixel and never more: that is
    what a killed run loses, and committing costs a few milliseconds.
    """
    work = height * width * samples_per_pixel / (256 * 256 * 50)
    return max(1, min(32, round(32 / work)))


@dataclass(frozen=True, kw_only=True)
class BaselinePainter:
    """Paints picture i of a process and a seed.

    process: one of `fractals.BASELINES`, the kind of the set; height, width: pixels.
    """

    process: str
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
    def from_settings(cls, kind: str, settings: Mapping[str, Any]) -> Self:
        """Make the painter of a set from the kind and the settings in its manifest."""
        sizes = {name: settings[name] for name in ("seed", "height", "width")}
        return cls(process=kind, **sizes)

    def _picture(self, index: int) -> Picture:
        return paint_baseline(self.process, self.seed, index, (self.height, self.width))


def baseline_chunk(height: int, width: int) -> int:
    """Return how many pictures a process paints between two commits to the disk.

    256 of 256x256, a few seconds' work, most of it statistics and encoding; fewer of larger ones.
    """
    return max(1, min(256, 2**24 // (height * width)))
