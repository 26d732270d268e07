"""What every text encoder is: captions in, condition tokens out, and whoever is warned is warned once."""

import abc
import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np

from causal_diffusion.errors import UserError

log = logging.getLogger(__name__)

BEGINNING = 60  # characters of a caption that a message shows


class TextEncoder(abc.ABC):
    """Captions to condition tokens.

    Attributes:
        name: the kind, as text.encoder says it.
        tokens: M, to which every caption is padded or cut.
        width: E, numbers per token; 0 where tokens are ids.
        vocabulary: how many ids there are; 0 where tokens are vectors.
        fingerprint: SHA-256 of all that the output depends on.
    """

    name: str
    tokens: int
    width: int
    vocabulary: int

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str: ...

    @abc.abstractmethod
    def encode(
        self, captions: Sequence[str], cache: str | os.PathLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(text, mask) of N captions.

        Args:
            captions: those that are longer than the encoder takes are cut, and one warning says so.
            cache: folder in which features are kept from call to call, see text_cache.py; ids need none. None: the
                encoder's own, where it has one.

        Returns:
            text float32 [N, M, E], or int32 [N, M]; mask bool [N, M], True at the caption's tokens.

        Raises:
            UserError: ``captions`` are not strings, or the cache cannot be written.
        """


class Warned:
    """What a user has been warned of."""

    def __init__(self):
        self._known = set()

    def new(self, things: Iterable[str]) -> list[str]:
        """Those that are new, in their order; from now on they are not."""
        new = [thing for thing in dict.fromkeys(things) if thing not in self._known]
        self._known.update(new)
        return new

    def cut(self, captions: Iterable[str], encoder: TextEncoder) -> None:
        """One warning of all captions that are cut for the first time."""
        if new := self.new(captions):
            first = new[0] if len(new[0]) <= BEGINNING else f"{new[0][:BEGINNING]}..."
            others = f" and {len(new) - 1} more captions are" if len(new) > 1 else " is"
            log.warning("%r%s cut to the %d tokens that %r takes", first, others, encoder.tokens, encoder.name)


def checked_captions(captions: Sequence[str]) -> list[str]:
    """Captions as a list of strings; UserError where they are something else."""
    if isinstance(captions, str):
        raise UserError(f"captions is the string {captions[:BEGINNING]!r}: a list of strings would do")
    captions = list(captions)
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"a caption is a {type(caption).__name__}: a string would do")
    return [str(caption) for caption in captions]


def check_tokens(tokens: int) -> None:
    """Raises UserError where ``tokens`` is no number of tokens."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise UserError(f"tokens is {tokens!r}: a whole number such as 24 would do")
