"""Plots, by the extra `viz` (matplotlib): whether they can be drawn, and as files."""

import io
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_plotting() -> None:
    """See that plots can be drawn here.

    Raises:
        PipelineError: if the extra `viz` is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PipelineError(
            "a plot needs matplotlib, which is not installed; run pip install 'pixmix[viz]'"
        )


def legend_name(name: str) -> str:
    """Return a name as matplotlib shows it whole: not as mathematics, nor as one to leave out."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def plot_png(figure: "Figure", *, dpi: int) -> bytes:
    """Return a plot as a PNG file, of so many pixels an inch."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name may have letters that the font lacks: boxes are drawn for them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()
