"""What the figures share: their colours and letters, and text that fits its place."""

from PIL import ImageFont

PAPER, INK, SOFT, FRAME = (255, 255, 255), (28, 28, 30), (110, 110, 118), (200, 200, 206)
"""Colours: of the ground, of what matters, of what is beside it, of frames."""

TEXT, LINE = 14, 19
"""Pixels: height of letters, and from one line to the next."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def shortened(line: str, font: Font, room: int) -> str:
    """Return a line, cut and with an ellipsis at its end where it is wider than its room, pixels.

    One letter at least stays.
    """
    text = line
    while font.getlength(text) > room and len(text) > 1:
        text = f"{text.rstrip('…')[:-1]}…"
    return text
