"""The look that pictures share: colours and type."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (13, 17, 23)
RULE = (48, 54, 61)
TEXT = (230, 237, 243)
DIM_TEXT = (139, 148, 158)

CONTEXT = (88, 166, 255)        # given frames
TRAINED = (63, 185, 80)         # generated, within the training length
BEYOND = (240, 136, 62)         # generated, past the training length

SERIES = ((88, 166, 255), (240, 136, 62), (63, 185, 80), (188, 140, 255), (247, 120, 186), (227, 179, 65))

_STAND_INS = str.maketrans({"\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00d7": "x", "\u2192": "->",
                            "\u2264": "<=", "\u2265": ">="})


def font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's built-in scalable face, `size` in pixels."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """The face has no glyph for some common signs and would draw a box: write them with signs it has."""
    return text.translate(_STAND_INS)


def text_width(text: str, face) -> int:
    return int(np.ceil(face.getlength(text)))


def mix(colour, other, share: float):
    """`share` of `colour` over 1 - share of `other`."""
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(colour, other, strict=True))


def canvas(width: int, height: int):
    """A blank picture and its pen."""
    picture = Image.new("RGB", (width, height), BACKGROUND)
    return picture, ImageDraw.Draw(picture)
