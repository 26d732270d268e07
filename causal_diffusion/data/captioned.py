"""A source whose captions come with its elements, as condition tokens."""

import numpy as np

from causal_diffusion.data.wrapper import Wrapper
from causal_diffusion.errors import UserError


def captions_of(source) -> list[str]:
    """The captions of a source, one per element. UserError: it has none."""
    captions = getattr(source, "captions", None)
    if captions is None or len(captions) != len(source) or not any(captions):
        name = type(getattr(source, "source", source)).__name__
        raise UserError(f"text.encoder reads captions, and {name} has none: text.encoder = 'none' would do")
    return captions


class Captioned(Wrapper):
    """``source`` with 'text' and 'text_mask' in every element.

    Args:
        source: has ``captions``, one string per element.
        numbered: whether an element also has 'caption', int32 [], equal where captions are.
        encode: list of N captions -> (tokens [N, M, E] or ids of words [N, M], bool mask [N, M]).

    Each caption is encoded once and kept in memory; tokens that are floats as float16, which is finer than the bfloat16
    in which networks of this kind are trained.

    Raises:
        UserError: the source has no captions.
    """

    def __init__(self, source, encode, numbered: bool = False):
        captions = captions_of(source)
        super().__init__(source)
        self._numbered = numbered
        known = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        self._row = np.array([known[caption] for caption in captions])
        text, self._mask = (np.asarray(part) for part in encode(list(known)))
        self._text = text if text.dtype == np.int32 else text.astype(np.float16)

    def __repr__(self) -> str:
        return f"Captioned({self.source!r}, tokens={list(self._text.shape[1:])})"

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        row = self._row[range(len(self))[i]]
        text = self._text[row]
        text = text if text.dtype == np.int32 else text.astype(np.float32)
        element = self.source[i] | {"text": text, "text_mask": self._mask[row]}
        return element | {"caption": np.asarray(row, np.int32)} if self._numbered else element
