"""Captions as HumanML3D writes them (Guo et al. 2022): a text file per clip, a caption per line.

    a man kicks with his left leg.#a/DET man/NOUN kick/VERB with/ADP his/DET left/ADJ leg/NOUN#0.0#0.0

Four fields with '#' between them: the sentence, its words as lemma/part-of-speech, and the seconds from and to which it
describes the clip; 0.0 and 0.0, or nan, if it describes all of it.
"""

import math
from pathlib import Path
from typing import NamedTuple

from causal_diffusion.errors import UserError
from causal_diffusion.text_files import read_lines


class Caption(NamedTuple):
    """What someone says about a clip, or about the part of it from ``start`` to ``end`` seconds.

    tokens: 'lemma/part-of-speech' of each word; () if it is not known.
    start, end: both 0: the whole clip.
    """

    text: str
    tokens: tuple[str, ...] = ()
    start: float = 0.0
    end: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether it describes the whole clip."""
        return self.end == 0

    def frames(self, fps: float, count: int) -> tuple[int, int]:
        """(start, stop) of what it describes, of a clip of that many frames."""
        return (0, count) if self.whole else (min(int(self.start * fps), count), min(int(self.end * fps), count))


def read_captions(path: Path) -> list[Caption]:
    """All captions of a file, in order; empty lines are skipped.

    Raises:
        UserError: the file cannot be read or holds none, or the first line that is wrong, by its number.
    """
    captions, wrong = usable_captions(path)
    if wrong:
        raise UserError(wrong[0])
    return captions


def usable_captions(path: Path) -> tuple[list[Caption], list[str]]:
    """The captions of a file, in order, and why other lines hold none; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or holds no caption; the message names the first line that is wrong.
    """
    try:
        lines = read_lines(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace it") from None
    captions, wrong = [], []
    for line in lines:
        try:
            if line.wrong:
                raise UserError(f"{path} is not UTF-8 text: line {line.number} {line.wrong}, try saving it as UTF-8")
            if line.text.strip():
                captions.append(parse_caption(line.text, f"{path} line {line.number}"))
        except UserError as error:
            wrong.append(str(error))
    if not captions:
        raise UserError(wrong[0] if wrong else f"{path} holds no caption: one a line, {_EXAMPLE!r} would do")
    return captions, wrong


_EXAMPLE = "a person walks.#a/DET person/NOUN walk/VERB#0.0#0.0"


def parse_caption(line: str, where: str) -> Caption:
    """One line; ``where`` names it in messages."""
    fields = [field.strip() for field in line.split("#")]
    if len(fields) != 4 or not fields[0]:
        raise UserError(f"{where} is no caption: four fields, text#words#start#end, not {len(fields)} or without text, "
                        f"{_EXAMPLE!r} would do")  # fmt: skip
    try:
        start, end = (float(field) for field in fields[2:])
    except ValueError:
        raise UserError(f"{where} has times {fields[2]!r} and {fields[3]!r}: seconds, '0.0' and '0.0' for the whole "
                        "clip, would do") from None  # fmt: skip
    start, end = (0.0 if math.isnan(time) else time for time in (start, end))
    if not (start == end == 0 or 0 <= start < end < math.inf):
        raise UserError(f"{where} describes seconds {start:g} to {end:g}: the end must be after the start, both 0 for "
                        "the whole clip")  # fmt: skip
    return Caption(fields[0], tuple(fields[1].split()), start, end)
