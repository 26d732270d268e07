"""What may be seen: one predicate over the ids of a query and a key.

A sequence is a row of frames, cut into *blocks* of ``block`` frames. Its tokens live in named *streams* that meet
only in attention. Every frame of every stream carries two ids, its role and its index in time; the tokens of a
frame share them. From these ids alone ``Layout.visible`` says whether a query may see a key, during training (all
blocks at once), while denoising (blocks in flight against cache slots) and while committing (a clean block
against cache slots). That it is the *same* predicate is why a cached stream equals the uncached forward.

Masks are drawn with queries as rows and keys as columns, one letter per block, ``#`` visible and ``.`` hidden.

frame_causal (diffusion forcing, Chen et al. 2024, arXiv 2407.01392): one stream, every block at its own level::

          0 1 2 3
        0 # . . .
        1 # # . .
        2 # # # .
        3 # # # #

teacher_forcing (skip-causal, ACDiT, Hu et al. 2024, arXiv 2412.07720): a clean copy beside the noisy sequence. A
noisy block sees the clean past and itself, never the clean copy of itself. Nobody reads the last clean block, so
training drops it::

            clean   noisy
            0 1 2   0 1 2 3
        c0  # . .   . . . .
        c1  # # .   . . . .
        c2  # # #   . . . .
        n0  . . .   # . . .
        n1  # . .   . # . .
        n2  # # .   . . # .
        n3  # # #   . . . #

window and sinks narrow both, by the frames *before the query's block* (block 1, window 2, sinks 1)::

          0 1 2 3 4 5
        3 # # # # . .      sink 0, window 1 2, itself
        4 # . # # # .      sink 0, window 2 3, itself
        5 # . . # # #      sink 0, window 3 4, itself
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

NOISY, CLEAN = 0, 1

Array = Any


class Ids(NamedTuple):
    """Ids of the frames of one or more streams; every array broadcasts to ``[..., T]``.

    ``role`` is NOISY or CLEAN. ``frame`` is the index in time, from 0; a negative one marks an empty cache slot.
    """

    role: Array
    frame: Array

    @classmethod
    def of(cls, role, frame):
        """One role for all of ``frame`` [..., T]."""
        return cls(frame * 0 + role, frame)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Who sees whom. Lengths are counted in frames."""

    kind: str = "teacher_forcing"  # a key of CLAUSES
    block: int = 1  # frames per block: they are denoised together and see each other
    window: int = 0  # frames seen before the own block; 0: as many as the training clip holds
    sinks: int = 0  # first frames of the sequence that are never forgotten
    gap: int = 0  # training moves the sinks up to so many frames further into the past, see positions

    def __post_init__(self):
        if self.kind not in CLAUSES:
            raise ValueError(f"layout.kind is {self.kind!r}; it is one of {', '.join(CLAUSES)}")
        if self.gap and not self.sinks:
            raise ValueError(
                f"layout.gap is {self.gap} and layout.sinks is 0: nothing can be moved, layout.gap = 0 would do"
            )
        if self.block < 1:
            raise ValueError(f"layout.block is {self.block}; a block has at least 1 frame")
        for name in ("window", "sinks", "gap"):
            size = getattr(self, name)
            if size < 0 or size % self.block:
                low = max(0, size // self.block * self.block)
                raise ValueError(
                    f"layout.{name} is {size} and layout.block is {self.block}: whole blocks are kept, "
                    f"so layout.{name} = {low} or {low + self.block} would do"
                )

    @property
    def separate_clean(self) -> bool:
        """Whether training needs a clean copy beside the noisy stream."""
        return self.kind == "teacher_forcing"

    def visible(self, q: Ids, k: Ids) -> Array:
        """Which key frames each query frame may see.

        Args:
            q: ids of the queries, [..., Tq].
            k: ids of the keys, [..., Tk]; negative frames are never visible.

        Returns:
            bool [..., Tq, Tk]. Works on NumPy arrays as on traced ones.
        """
        q = Ids(*(x[..., :, None] for x in q))
        k = Ids(*(x[..., None, :] for x in k))
        q_block, k_block = q.frame // self.block, k.frame // self.block
        seen = CLAUSES[self.kind](q.role, k.role, q_block, k_block) & (k.frame >= 0)
        if self.window:
            seen &= (k.frame >= q_block * self.block - self.window) | (k.frame < self.sinks)
        return seen

    def training_ids(self, frames: int) -> dict[str, Ids]:
        """Streams of a training clip of ``frames`` frames by name, in the order in which they are concatenated."""
        noisy = {"noisy": Ids.of(NOISY, np.arange(frames))}
        if not self.separate_clean:
            return noisy
        return {"clean": Ids.of(CLEAN, np.arange(frames - self.block))} | noisy

    def positions(self, frame: Array, gap: Array) -> Array:
        """Indices in time of training frames when the sinks are moved ``gap`` frames into the past.

        A stream leaves its sinks behind, to distances that no training clip shows. So training draws a gap per clip
        and lets everything after the sinks happen that much later (randomised positions, Ruoss et al. 2023, arXiv
        2305.16843): ``0 1 2 3 | 4 5 ..`` becomes ``0 1 2 3 | 4+gap 5+gap ..``. Who sees whom does not change.

        Args:
            frame: [..., T], counted without the gap.
            gap: [...], a multiple of the block.
        """
        return frame + gap[..., None] * (frame >= self.sinks)

    def training_mask(self, frames: int) -> np.ndarray:
        """Static mask of a training clip over its concatenated streams, bool [T, T]."""
        ids = concatenate(*self.training_ids(frames).values())
        return np.asarray(self.visible(ids, ids))

    def block_table(self, frames: int) -> np.ndarray:
        """The training mask with one entry per block instead of per frame: what a block-sparse kernel computes."""
        mask = self.training_mask(frames)
        return mask[:: self.block, :: self.block]


def concatenate(*ids: Ids) -> Ids:
    """Ids of streams laid one after the other along the frame axis."""
    return Ids(*(np.concatenate(parts, axis=-1) for parts in zip(*ids, strict=True)))


def _frame_causal(q_role, k_role, q_block, k_block):
    del q_role, k_role  # one stream: a committed block is a noisy one whose level has reached zero
    return k_block <= q_block


def _teacher_forcing(q_role, k_role, q_block, k_block):
    clean_sees = (q_role == CLEAN) & (k_role == CLEAN) & (k_block <= q_block)
    past = (q_role == NOISY) & (k_role == CLEAN) & (k_block < q_block)
    itself = (q_role == NOISY) & (k_role == NOISY) & (k_block == q_block)
    return clean_sees | past | itself


CLAUSES = {"frame_causal": _frame_causal, "teacher_forcing": _teacher_forcing}
