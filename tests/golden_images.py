"""Fingerprints of genomes and images, which change only on purpose.

    python -m tests.golden_images        # rewrite tests/golden/images.json

Run it in the commit that changes images, together with a higher ``fractals.GENOME_VERSION`` and a
line under "Output changes" in the changelog.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from fractals import FAMILIES, GENOME_VERSION, draw_genome, render

FILE = Path(__file__).resolve().parent / "golden" / "images.json"
SEED_AND_INDEX = ((0, 0), (0, 1), (7, 13999))
SIZE = (64, 48)
SAMPLES_PER_PIXEL = 8


def fingerprints() -> dict[str, Any]:
    """Return sha256 of each example's genome (sorted compact JSON) and of its pixels (C order)."""
    images = {}
    for family in FAMILIES:
        for seed, index in SEED_AND_INDEX:
            genome = draw_genome(seed, index, family)
            text = json.dumps(genome.to_json(), sort_keys=True, separators=(",", ":"))
            pixels = render(genome, SIZE, SAMPLES_PER_PIXEL).tobytes()
            images[f"{family} {seed} {index}"] = {
                "genome": hashlib.sha256(text.encode()).hexdigest(),
                "pixels": hashlib.sha256(pixels).hexdigest(),
            }
    return {
        "genome_version": GENOME_VERSION,
        "size": list(SIZE),
        "samples_per_pixel": SAMPLES_PER_PIXEL,
        "images": images,
    }


def main() -> None:
    """Rewrite the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(fingerprints(), indent=1) + "\n")


if __name__ == "__main__":
    main()
