"""flam3, the renderer of fractal flames, as a rival: run its programs and write its file format.

Settings go through the environment, as flam3's README says; a quality is samples per pixel.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from fractals.chaos import ChaosLayer
from pipelines.errors import PipelineError


@dataclass(frozen=True, kw_only=True)
class Flam3:
    """Where flam3's programs are."""

    render: str
    genome: str


def find_flam3() -> Flam3 | None:
    """Return flam3's programs if both are on the PATH (Debian: flam3-utils)."""
    render, genome = shutil.which("flam3-render"), shutil.which("flam3-genome")
    return Flam3(render=render, genome=genome) if render and genome else None


def flame_xml(layer: ChaosLayer, height: int, width: int) -> str:
    """Return a layer of affine maps and variations as flam3's XML, at quality 1.

    Of variations with parameters, flam3's names are known for julian alone. The palette is flam3's
    first.
    """
    camera = layer.camera
    flame = ElementTree.Element(
        "flame",
        size=f"{width} {height}",
        center=f"{camera.centre[0]} {camera.centre[1]}",
        scale=f"{min(height, width) / camera.width}",
        quality="1",
        supersample="1",
        estimator_radius="0",
        palette="0",
    )
    for each in layer.maps:
        a, b, c, d, e, f = each.affine
        written = {
            "weight": f"{each.weight}",
            "color": f"{each.colour}",
            "color_speed": f"{each.speed}",
            "coefs": f"{a} {d} {b} {e} {c} {f}",
        }
        for term in each.variations:
            written[term.name] = f"{term.weight}"
            if term.name == "julian":
                power, distance = term.parameters
                written |= {"julian_power": f"{power:g}", "julian_dist": f"{distance:g}"}
        ElementTree.SubElement(flame, "xform", written)
    return ElementTree.tostring(flame, encoding="unicode")


def resized(xml: str, side: int) -> str:
    """Return a random genome of flam3-genome as a square image of another side, at quality 1."""
    flame = ElementTree.fromstring(xml)
    if flame.tag != "flame":
        flame = next(flame.iter("flame"))
    width, height = (int(number) for number in flame.attrib["size"].split())
    flame.set("scale", f"{float(flame.attrib['scale']) * side / min(width, height)}")
    flame.set("size", f"{side} {side}")
    flame.set("quality", "1")
    return ElementTree.tostring(flame, encoding="unicode")


def random_genome(flam3: Flam3, seed: str) -> str:
    """Return the XML of a random genome, one that flam3 finds good; the seed is any text."""
    return _run([flam3.genome], {"isaac_seed": seed, "seed": "1"}, "")


def render_flames(flam3: Flam3, flames: list[str], quality: float, folder: Path) -> None:
    """Render flames on one core to JPEG files of quality 95 in a folder.

    Args:
        flam3: the programs.
        flames: XML of `flame_xml` or `resized`.
        quality: samples a pixel.
        folder: where the images go.

    Raises:
        PipelineError: if flam3 fails.
    """
    settings = {
        "qs": f"{quality}",
        "nthreads": "1",
        "isaac_seed": "pixmix",
        "seed": "1",
        "format": "jpg",
        "jpeg": "95",
        "prefix": f"{folder}{os.sep}",
    }
    _run([flam3.render], settings, f"<flames>{''.join(flames)}</flames>")


def _run(command: list[str], settings: dict[str, str], text: str) -> str:
    try:
        finished = subprocess.run(
            command,
            env={**os.environ, **settings},
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise PipelineError(
            f"{Path(command[0]).name} ended with {error.returncode}; "
            "take it off the PATH to do without it"
        ) from error
    return finished.stdout
