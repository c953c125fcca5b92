"""Generators of fractals, and of the simple datasets that they are measured against."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from fractals import (
    BASELINE_VERSION,
    GENOME_VERSION,
    Genome,
    draw_genome,
    measure,
    render,
    render_baseline,
)
from pipelines.generate.generator import Generated, Pixels


@dataclass(frozen=True, kw_only=True)
class FractalGenerator:
    """Renders image i of a family and a seed.

    family: one of `fractals.FAMILIES`; height, width: pixels; samples_per_pixel: points of a
    chaos game for each pixel.
    """

    seed: int = 0
    family: str = "mixed"
    height: int = 256
    width: int = 256
    samples_per_pixel: float = 50.0

    def generate(self, numbers: range) -> Iterator[Generated]:
        """Render images, one by one."""
        return map(self._generate, numbers)

    def _generate(self, number: int) -> Generated:
        genome = draw_genome(self.seed, number, self.family)
        image = self._render(genome)
        record = {
            "seed": self.seed,
            "family": self.family,
            "statistics": _statistics(image),
            "genome": genome.to_json(),
        }
        return Generated(image, record, genome.attempt + 1)

    def generate_again(self, record: Mapping[str, Any]) -> Pixels:
        """Render an image again from the genome in its record."""
        return self._render(Genome.from_json(record["genome"]))

    def kind(self) -> str:
        """Return what the images are."""
        return "fractals"

    def settings(self) -> dict[str, Any]:
        """Return all that the images depend on, besides their number."""
        return asdict(self)

    def licence(self) -> str:
        """Return CC0: formulas and random numbers are nobody's, and we claim nothing."""
        return "CC0-1.0"

    def versions(self) -> dict[str, Any]:
        """Return the version that counts the changes of images."""
        return {"genome_version": GENOME_VERSION}

    def chunk_size(self) -> int:
        """Return how many images a process renders between two commits to the disk.

        About a second's work, 32 images of 256x256 at 50 samples a pixel and never more: that is
        what a killed run loses, and committing costs a few milliseconds.
        """
        work = self.height * self.width * self.samples_per_pixel / (256 * 256 * 50)
        return max(1, min(32, round(32 / work)))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the generator of a dataset from the settings in its manifest."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})

    def _render(self, genome: Genome) -> Pixels:
        return render(genome, (self.height, self.width), self.samples_per_pixel)


@dataclass(frozen=True, kw_only=True)
class BaselineGenerator:
    """Generates image i of a process and a seed.

    process: one of `fractals.BASELINE_KINDS`, the kind of the dataset; height, width: pixels.
    """

    process: str
    seed: int = 0
    height: int = 256
    width: int = 256

    def generate(self, numbers: range) -> Iterator[Generated]:
        """Generate images, one by one."""
        return map(self._generate, numbers)

    def _generate(self, number: int) -> Generated:
        image = self._image(number)
        record = {"seed": self.seed, "kind": self.process, "statistics": _statistics(image)}
        return Generated(image, record, 1)

    def generate_again(self, record: Mapping[str, Any]) -> Pixels:
        """Generate an image again from its record."""
        return self._image(record["index"])

    def kind(self) -> str:
        """Return what the images are."""
        return self.process

    def settings(self) -> dict[str, Any]:
        """Return all that the images depend on, besides their number and the process."""
        return {"seed": self.seed, "height": self.height, "width": self.width}

    def licence(self) -> str:
        """Return CC0: random numbers are nobody's, and we claim nothing."""
        return "CC0-1.0"

    def versions(self) -> dict[str, Any]:
        """Return the version that counts the changes of images."""
        return {"baseline_version": BASELINE_VERSION}

    def chunk_size(self) -> int:
        """Return how many images a process generates between two commits to the disk.

        256 of 256x256, a few seconds' work, most of it statistics and encoding; fewer larger ones.
        """
        return max(1, min(256, 2**24 // (self.height * self.width)))

    @classmethod
    def from_settings(cls, kind: str, settings: Mapping[str, Any]) -> Self:
        """Return the generator of a dataset from the kind and the settings in its manifest."""
        sizes = {name: settings[name] for name in ("seed", "height", "width")}
        return cls(process=kind, **sizes)

    def _image(self, number: int) -> Pixels:
        return render_baseline(self.process, self.seed, number, (self.height, self.width))


def _statistics(image: Pixels) -> dict[str, float]:
    return {name: round(value, 6) for name, value in measure(image).items()}
