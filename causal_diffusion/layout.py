"""What may be seen: one predicate over the ids of a query and a key.

A sequence is a row of frames, cut into *blocks* of ``block`` frames (the first one may be shorter, ``first``). Its
tokens live in named *streams* that meet only in attention. Every frame of every stream carries ids: its role, its
index in time, the noisy copy it belongs to and the stage of its noise level; the tokens of a frame share them. From
these ids alone ``Layout.visible`` says whether a query may see a key, during training (all blocks at once), while
denoising (blocks in flight against cache slots) and while committing (a clean block against cache slots). That it is
the *same* predicate is why a cached stream equals the uncached forward.

Masks are drawn with queries as rows and keys as columns, one letter per block (per frame where a title says so), ``#``
visible and ``.`` hidden.

block_causal (diffusion forcing, Chen et al. 2024, arXiv 2407.01392): one stream, every block at its own level::

          0 1 2 3
        0 # . . .
        1 # # . .
        2 # # # .
        3 # # # #

teacher_forcing (skip-causal, ACDiT, Hu et al. 2024, arXiv 2412.07720): a clean copy beside the noisy sequence. A
noisy block sees the clean past and itself, never the clean copy of itself. Nobody reads the last clean block, so
training drops it. With ``copies`` several noisy sequences, each at its own levels, share one clean pass::

            clean   noisy
            0 1 2   0 1 2 3
        c0  # . .   . . . .
        c1  # # .   . . . .
        c2  # # #   . . . .
        n0  . . .   # . . .
        n1  # . .   . # . .
        n2  # # .   . . # .
        n3  # # #   . . . #

window and sinks narrow every kind, by the frames *before the query's block* (block 1, window 2, sinks 1)::

          0 1 2 3 4 5
        3 # # # # . .      sink 0, window 1 2, itself
        4 # . # # # .      sink 0, window 2 3, itself
        5 # . . # # #      sink 0, window 3 4, itself

full (DFoT, Song et al. 2025, arXiv 2502.06764): one stream, everybody sees everybody. Nothing can be cached::

          0 1 2 3
        0 # # # #
        1 # # # #
        2 # # # #
        3 # # # #

frame_causal, by frame: causal inside blocks too. They are denoised together and still do not look ahead (ViD-GPT,
Gao et al. 2024, arXiv 2406.10981). Blocks of 3 after a first one of 1 frame::

          0 1 2 3 4
        0 # . . . .
        1 # # . . .
        2 # # # . .
        3 # # # # .
        4 # # # # #

partial_prefix, by frame: the clean prefix (c) is frame-causal, the noisy block (n) that follows it sees all of the
prefix and all of itself (Ca2-VDM's variant, Gao et al. 2024, arXiv 2411.16375)::

            c0 c1 c2 n3 n4
        c0  #  .  .  .  .
        c1  #  #  .  .  .
        c2  #  #  #  .  .
        n3  #  #  #  #  #
        n4  #  #  #  #  #

prefix, by frame: the same with a prefix that sees all of itself, as in prefix language models. A later prefix frame
changes the earlier ones, so nothing can be cached::

            c0 c1 c2 n3 n4
        c0  #  #  #  .  .
        c1  #  #  #  .  .
        c2  #  #  #  .  .
        n3  #  #  #  #  #
        n4  #  #  #  #  #

Other streams: context tokens (x: registers, class or text tokens) are seen by all and see only context; a reference
frame (r) is seen by all and sees only itself (EasyControl, Zhang et al. 2025, arXiv 2503.07027); coarse history (h:
far frames in few, large tokens, FAR, Gu et al. 2025, arXiv 2503.19325) is causal and no window hides it::

            x r h0 h1 n2 n3
        x   # . .  .  .  .
        r   . # .  .  .  .
        h0  # # #  .  .  .
        h1  # # #  #  .  .
        n2  # # #  #  #  .
        n3  # # #  #  #  #

Of these the network has context tokens (``model.registers``, before its streams) and, in training, coarse history;
reference frames, and streams that keep coarse history, are clauses that wait for a config.

ranges: how many blocks a query sees, its own included, by the stage of its level (MAGI-1, arXiv 2505.13211). The
noisier, the farther. For ranges 4, 2 a noisy block 3 sees all, one that is half done only its neighbour::

               0 1 2 3
        noisy  # # # #
        half   . . # #

Factorised attention asks the same predicate of fewer keys: of the same cell (along time) or the same frame (in
space), see ``Layout.token_mask``.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

NOISY, CLEAN, CONTEXT, REFERENCE, COARSE = range(5)

Array = Any


class Ids(NamedTuple):
    """Ids of the frames of one or more streams; every array broadcasts to ``[..., T]``.

    ``role`` is NOISY, CLEAN, CONTEXT, REFERENCE or COARSE. ``frame`` is the index in time, from 0; negative ones are
    never visible. ``copy`` numbers the noisy copies of a clip. ``stage`` numbers the ranges of level, noisiest first.
    """

    role: Array
    frame: Array
    copy: Array
    stage: Array

    @classmethod
    def of(cls, role, frame, copy=0, stage=0):
        """The same for all of ``frame`` [..., T], or arrays that broadcast against it."""
        zero = frame * 0
        return cls(zero + role, frame, zero + copy, zero + stage)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Who sees whom. Lengths are counted in frames."""

    kind: str = "teacher_forcing"  # a key of CLAUSES
    block: int = 1  # frames per block: they are denoised together
    first: int = 0  # frames of the first block, at most block; 0: as many as the others
    window: int = 0  # frames seen before the own block; 0: as many as the training clip holds
    sinks: int = 0  # first frames of the sequence that are never forgotten
    gap: int = 0  # training moves the sinks up to so many frames further into the past, see positions
    copies: int = 1  # noisy copies per clean pass in training (teacher_forcing)
    coarse: int = 0  # first frames of a training clip that are shown as coarse history only
    ranges: tuple[int, ...] = ()  # blocks seen, the own included, by stage of level; () is no limit
    range_levels: tuple[float, ...] = ()  # levels that part the stages, falling, one fewer than ranges

    def __post_init__(self):
        if self.kind not in CLAUSES:
            raise ValueError(f"layout.kind is {self.kind!r}; it is one of {', '.join(CLAUSES)}")
        if self.block < 1:
            raise ValueError(f"layout.block is {self.block}; a block has at least 1 frame")
        if not 0 <= self.first <= self.block:
            raise ValueError(
                f"layout.first is {self.first} and layout.block is {self.block}: the first block is no longer than "
                f"the others, layout.first = {self.block} would do"
            )
        if self.gap and not self.sinks:
            raise ValueError(
                f"layout.gap is {self.gap} and layout.sinks is 0: nothing can be moved, layout.gap = 0 would do"
            )
        for name in ("window", "sinks", "gap"):
            size = getattr(self, name)
            if size < 0 or size % self.block:
                low = max(0, size // self.block * self.block)
                raise ValueError(
                    f"layout.{name} is {size} and layout.block is {self.block}: whole blocks are kept, "
                    f"so layout.{name} = {low} or {low + self.block} would do"
                )
        if self.copies < 1 or (self.copies > 1 and self.kind != "teacher_forcing"):
            raise ValueError(
                f"layout.copies is {self.copies} and layout.kind is {self.kind!r}: several noisy copies share the "
                "clean one of 'teacher_forcing'; layout.copies = 1 would do"
            )
        whole = not (self.coarse + self.pad) % self.block
        if self.coarse and (self.kind not in ("frame_causal", "block_causal") or not whole):
            raise ValueError(
                f"layout.coarse is {self.coarse}, layout.kind is {self.kind!r} and layout.block is {self.block}: "
                "whole blocks of a causal stream can be coarse; layout.coarse = 0 would do"
            )
        falling = all(a > b for a, b in zip(self.range_levels, self.range_levels[1:], strict=False))
        if len(self.range_levels) != max(0, len(self.ranges) - 1) or not falling:
            even = tuple(round(1 - i / max(1, len(self.ranges)), 3) for i in range(1, len(self.ranges)))
            raise ValueError(
                f"layout.ranges is {self.ranges} and layout.range_levels is {self.range_levels}: falling levels part "
                f"the stages, layout.range_levels = {even} would do"
            )
        if self.ranges and min(self.ranges) < 1:
            raise ValueError(f"layout.ranges is {self.ranges}; a block sees at least itself, which counts 1")

    @property
    def separate_clean(self) -> bool:
        """Whether training needs a clean copy beside the noisy stream."""
        return self.kind == "teacher_forcing"

    @property
    def by_role(self) -> bool:
        """Whether, within one stream, clean and noisy frames see differently."""
        return self.kind in ("prefix", "partial_prefix")

    @property
    def cacheable(self) -> bool:
        """Whether a finished block is never changed by a later one, so that its keys and values may be kept."""
        return self.kind not in ("full", "prefix")

    @property
    def pad(self) -> int:
        """Frames that the first block lacks. They stand before frame 0, at negative indices."""
        return self.block - self.first if self.first else 0

    def block_of(self, frame: Array) -> Array:
        """Index of the block that a frame belongs to."""
        return (frame + self.pad) // self.block

    def block_start(self, frame: Array) -> Array:
        """Index of the first frame of the block that a frame belongs to; negative where the first block is short."""
        return self.block_of(frame) * self.block - self.pad

    def whole(self, frames: int) -> int:
        """The most frames, at most ``frames``, that are whole blocks; negative where not even the first one is."""
        return self.block_start(frames)

    @property
    def last_stage(self) -> int:
        """Stage of what is clean."""
        return max(0, len(self.ranges) - 1)

    def block_count(self, frames: int) -> int:
        """Blocks of a clip of ``frames`` frames."""
        return -(-(frames + self.pad) // self.block)

    def by_frame(self, per_block: Array, frames: int, start: int = 0) -> Array:
        """Values per block [..., n] -> per frame [..., T] of frames start .. frames - 1, n blocks from start on."""
        return per_block[..., self.block_of(np.arange(start, frames)) - self.block_of(start)]

    def stages(self, t: Array) -> Array:
        """Stage of each level, an int array like t: 0 above range_levels[0], and so on."""
        stage = (t * 0).astype(np.int32)
        for level in self.range_levels:
            stage = stage + (t <= level)
        return stage

    def visible(self, q: Ids, k: Ids) -> Array:
        """Which key frames each query frame may see.

        Args:
            q: ids of the queries, [..., Tq].
            k: ids of the keys, [..., Tk]; negative frames are never visible but to a query of the same negative
                frame, so that a softmax over an empty slot or a padding frame has something to sum.

        Returns:
            bool [..., Tq, Tk]. Works on NumPy arrays as on traced ones.
        """
        q = Ids(*(x[..., :, None] for x in q))
        k = Ids(*(x[..., None, :] for x in k))
        q_block, k_block = self.block_of(q.frame), self.block_of(k.frame)
        seen = CLAUSES[self.kind](q, k, q_block, k_block)
        kept = (k.frame < self.sinks - self.pad) | (k.role == COARSE)  # whatever is narrowed
        if self.window:
            start = q_block * self.block - self.pad
            seen = seen & ((k.frame >= start - self.window) | kept)
        if self.ranges:
            reach = 0
            for stage, blocks in enumerate(self.ranges):
                reach = reach + blocks * (q.stage == stage)
            seen = seen & ((q_block - k_block < reach) | kept)
        # These two are seen by all, and see only their own kind.
        seen = seen & (q.role != CONTEXT) | (k.role == CONTEXT)
        seen = seen & (q.role != REFERENCE) | (k.role == REFERENCE)
        seen = seen & ((q.role != CONTEXT) | (k.role == CONTEXT))
        seen = seen & ((q.role != REFERENCE) | (k.role != REFERENCE) | (q.frame == k.frame))
        return seen & (k.frame >= 0) | (q.frame < 0) & (q.frame == k.frame)

    def prefix_visible(self, q: Ids, k: Ids, frames: int) -> Array:
        """Which key frames the prefix attention of each query frame sees, bool [..., Tq, Tk].

        A noisy frame sees the last ``frames`` clean frames before its block; every other one nothing but itself,
        which the attention itself sees to.
        """
        q = Ids(*(x[..., :, None] for x in q))
        k = Ids(*(x[..., None, :] for x in k))
        start = self.block_start(q.frame)
        before = (k.frame >= start - frames) & (k.frame < start) & (k.frame >= 0)
        return (q.role == NOISY) & (k.role == CLEAN) & before

    def training_ids(self, frames: int) -> dict[str, Ids]:
        """Streams of a training clip of ``frames`` frames by name, in the order in which they are concatenated."""
        order, c = np.arange(frames), self.copies
        if self.coarse:
            history = Ids.of(COARSE, order[: self.coarse], 0, self.last_stage)
            return {"coarse": history, "noisy": Ids.of(NOISY, order[self.coarse :])}
        noisy = {"noisy": Ids.of(NOISY, np.tile(order, c), np.repeat(np.arange(c), frames))}
        if not self.separate_clean:
            return noisy
        past = order[: frames - self.block]
        return {"clean": Ids.of(CLEAN, past, 0, self.last_stage)} | noisy

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
        """The training mask with one entry per block, for a block-sparse kernel: is anything there to compute?"""
        ids = concatenate(*self.training_ids(frames).values())
        new = np.append(True, (np.diff(self.block_of(ids.frame)) != 0) | (np.diff(ids.role) != 0)
                        | (np.diff(ids.copy) != 0))
        group = np.cumsum(new) - 1
        table = np.zeros((group[-1] + 1,) * 2, bool)
        np.logical_or.at(table, np.ix_(group, group), self.training_mask(frames))
        return table

    def token_mask(self, frames: int, cells: int, axis: str = "joint") -> np.ndarray:
        """The training mask by token, bool [T cells, T cells], tokens of a frame side by side.

        Args:
            frames: of the clip.
            cells: tokens per frame.
            axis: 'joint'; of factorised attention 'time' (keys of the same cell) or 'space' (of the same frame).
        """
        mask, every, same = self.training_mask(frames), np.ones((cells, cells), bool), np.eye(cells, dtype=bool)
        if axis == "space":
            return np.kron(np.eye(len(mask), dtype=bool), every)
        return np.kron(mask, {"joint": every, "time": same}[axis])


def concatenate(*ids: Ids) -> Ids:
    """Ids of streams laid one after the other along the frame axis."""
    return Ids(*(np.concatenate(parts, axis=-1) for parts in zip(*ids, strict=True)))


def _frame_causal(q, k, q_block, k_block):
    del q_block, k_block  # one stream: a committed block is a noisy one whose level has reached zero
    return k.frame <= q.frame


def _block_causal(q, k, q_block, k_block):
    del q, k
    return k_block <= q_block


def _full(q, k, q_block, k_block):
    del k, k_block
    return (q.frame == q.frame) & (q_block == q_block)


def _teacher_forcing(q, k, q_block, k_block):
    clean_sees = (q.role == CLEAN) & (k.role == CLEAN) & (k_block <= q_block)
    past = (q.role == NOISY) & (k.role == CLEAN) & (k_block < q_block)
    itself = (q.role == NOISY) & (k.role == NOISY) & (k_block == q_block) & (k.copy == q.copy)
    return clean_sees | past | itself


def _noisy_after_prefix(q, k, q_block, k_block):
    past = (k.role == CLEAN) & (k_block < q_block)
    return (q.role == NOISY) & (past | (k.role == NOISY) & (k_block == q_block))


def _partial_prefix(q, k, q_block, k_block):
    prefix = (q.role == CLEAN) & (k.role == CLEAN) & (k.frame <= q.frame)
    return prefix | _noisy_after_prefix(q, k, q_block, k_block)


def _prefix(q, k, q_block, k_block):
    return (q.role == CLEAN) & (k.role == CLEAN) | _noisy_after_prefix(q, k, q_block, k_block)


CLAUSES = {
    "frame_causal": _frame_causal,
    "block_causal": _block_causal,
    "full": _full,
    "teacher_forcing": _teacher_forcing,
    "prefix": _prefix,
    "partial_prefix": _partial_prefix,
}
