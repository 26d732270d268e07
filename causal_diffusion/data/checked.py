"""A source of one's own, checked row by row when its elements are read."""

import numpy as np

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.wrapper import Wrapper
from causal_diffusion.errors import UserError
from causal_diffusion.frames import ROUNDING, are_pictures, check_values, take_frames


class Checked(Wrapper):
    """``source`` with its elements checked, and pixels (uint8) mapped to [-1, 1].

    Args:
        source: see sources.py.
        config: the data section, whose shapes the elements have.
        classes: labels are below it, or -1 for none; 0: they are not looked at.
        vocabulary: ids of words are below it; 0: text comes as condition tokens, or not at all.
        frames: of a clip; None: any number.

    ``repr`` and all else are those of ``source``.

    Raises:
        UserError: when an element is read; the message names its row.
    """

    def __init__(self, source, config: DataConfig, *, classes: int, vocabulary: int, frames: int | None = None):
        super().__init__(source)
        self._shape, self._frames = config.frame_shape, frames
        self._classes, self._vocabulary = classes, vocabulary

    def __repr__(self) -> str:
        return repr(self.source)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        element = dict(self.source[i])
        name = f"video of clip {i}"
        shape, stated = np.shape(element["video"]), (self._frames, *self._shape)
        if len(shape) != len(stated) or shape[1:] != self._shape or self._frames not in (None, shape[0]):
            wanted = f"({self._frames or 'frames'}, {', '.join(map(str, self._shape))})"
            raise UserError(f"{name} is {shape}; by the data section of the config it is {wanted}")
        element["video"] = take_frames(
            name, element["video"], pictures=are_pictures(self._shape), tolerance=ROUNDING
        )
        for key in ("action", "text"):
            if key in element and np.asarray(element[key]).dtype.kind == "f":
                check_values(f"{key} of clip {i}", np.asarray(element[key]), pictures=False)
        if "label" in element and self._classes:
            check_label(f"label of clip {i}", element["label"], self._classes)
        if "text" in element and self._vocabulary:
            check_words(f"text of clip {i}", element["text"], self._vocabulary)
        return element


def check_label(name: str, label, classes: int) -> None:
    """UserError unless a label is one integer in 0 .. classes - 1, or -1 for none."""
    label = np.asarray(label)
    if label.dtype.kind not in "iu" or label.shape:
        raise UserError(f"{name} is {label.dtype}{list(label.shape)}; it is one integer")
    if not -1 <= label < classes:
        more = f", or try model.classes = {label + 1}" if label > 0 else ""
        raise UserError(f"{name} is {label}; classes are 0 .. {classes - 1}, and -1 is none: count from 0{more}")


def check_words(name: str, ids, vocabulary: int) -> None:
    """UserError unless ids of words are integers in 0 .. vocabulary - 1."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise UserError(f"{name} is {ids.dtype}; model.vocabulary is {vocabulary}: it holds ids of words, integers")
    if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary):
        more = f", try model.vocabulary = {ids.max() + 1}" if ids.min() >= 0 else ""
        raise UserError(f"{name} has ids {ids.min()} .. {ids.max()}; ids of words are 0 .. {vocabulary - 1}{more}")
