"""How a fractal is made, as sections of a page: pictures that fit a phone, and all its numbers."""

from fractals import Genome
from pipelines.report.figures import as_png
from pipelines.report.genome_figure import layer_picture, picture_of
from pipelines.report.genome_tables import described, ground_tables, layer_tables
from pipelines.report.page import PageImage, Section


def sections(genome: Genome, side: int, shape: tuple[int, int]) -> list[Section]:
    """Return a genome as sections of a page: the whole picture, then a section a layer.

    Args:
        genome: of the picture.
        side: of the picture, the longer one, pixels.
        shape: height and width of the picture in its set.
    """
    n = len(genome.layers)
    whole = PageImage(
        data=as_png(picture_of(genome, side, shape)),
        description="The picture",
        caption=f"{n} layer{'' if n == 1 else 's'}, from the ground up below.",
    )
    return [
        Section(title="The picture", parts=(whole, *ground_tables(genome))),
        *(
            Section(
                title=f"Layer {number}: {described(layer)[0]}",
                parts=(
                    PageImage(
                        data=as_png(layer_picture(genome, number - 1, shape)),
                        description=f"Layer {number} alone, its maps and its palette",
                        caption="The layer alone, its maps, and below them its palette.",
                    ),
                    *layer_tables(layer),
                ),
            )
            for number, layer in enumerate(genome.layers, 1)
        ),
    ]
