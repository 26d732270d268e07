"""The layout of a config: how a sequence is cut into blocks, who sees whom, and the streams of a training clip."""

import dataclasses
from typing import Any

import numpy as np

from causal_diffusion.layout.clauses import CLAUSES, narrowed, with_shared
from causal_diffusion.layout.ids import CLEAN, COARSE, NOISY, REFERENCE, Ids, concatenate
from causal_diffusion.ranges import SHARE, SIZE, SIZE_OR_NONE, Range, check_numbers

Array = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """Who sees whom. Lengths are counted in frames."""

    kind: str = "teacher_forcing"  # a key of CLAUSES
    block: int = 1  # frames per block: they are denoised together
    first: int = 0  # frames of the first block, at most block; 0: as many as the others
    window: int = 0  # frames seen before the own block (bidirectional_window: the first noisy one); 0: a whole clip
    sinks: int = 0  # first frames of the sequence that are never forgotten
    gap: int = 0  # training moves the sinks up to so many frames further into the past, see positions
    copies: int = 1  # noisy copies per clean pass in training (teacher_forcing)
    coarse: int = 0  # frames of coarse history: the first ones of a training clip, shown as nothing else
    reference: int = 0  # 1: a clean frame that all see and that sees only itself, in training the last of the clip
    knot: int = 0  # frames of the next block that each block is denoised with (teacher_forcing)
    ranges: tuple[int, ...] = ()  # blocks seen, the own included, by stage of level; () is no limit
    range_levels: tuple[float, ...] = ()  # levels that part the stages, falling, one fewer than ranges

    def __post_init__(self):
        if self.kind not in CLAUSES:
            raise ValueError(f"layout.kind is {self.kind!r}; it is one of {', '.join(CLAUSES)}")
        check_numbers(
            self, "layout", block=SIZE, first=SIZE_OR_NONE, window=SIZE_OR_NONE, sinks=SIZE_OR_NONE, gap=SIZE_OR_NONE,
            copies=Range(1, 1_000), coarse=SIZE_OR_NONE, reference=Range(0, 1), knot=SIZE_OR_NONE, ranges=SIZE,
            range_levels=SHARE,
        )  # fmt: skip
        if self.first > self.block:
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
            if size % self.block:
                low = size // self.block * self.block
                raise ValueError(
                    f"layout.{name} is {size} and layout.block is {self.block}: whole blocks are kept, "
                    f"so layout.{name} = {low} or {low + self.block} would do"
                )
        if self.copies > 1 and self.kind != "teacher_forcing":
            raise ValueError(
                f"layout.copies is {self.copies} and layout.kind is {self.kind!r}: several noisy copies share the "
                "clean one of 'teacher_forcing'; layout.copies = 1 would do"
            )
        self._check_streams()
        self._check_ranges()

    def _check_streams(self):
        whole = not (self.coarse + self.pad) % self.block
        if self.coarse and (self.kind not in ("frame_causal", "block_causal") or not whole):
            raise ValueError(
                f"layout.coarse is {self.coarse}, layout.kind is {self.kind!r} and layout.block is {self.block}: "
                "whole blocks of a causal stream can be coarse; layout.coarse = 0 would do"
            )
        if self.knot and self.kind != "teacher_forcing":
            raise ValueError(
                f"layout.knot is {self.knot} and layout.kind is {self.kind!r}: a frame of two noisy blocks needs the "
                "clean copy of 'teacher_forcing', which tells them apart; layout.knot = 0 would do"
            )
        if self.knot >= self.block:
            raise ValueError(
                f"layout.knot is {self.knot} and layout.block is {self.block}: a knot is a part of the next block, "
                f"layout.knot = {self.block - 1} would do"
            )

    def _check_ranges(self):
        if self.ranges and self.kind == "bidirectional_window":
            raise ValueError(
                f"layout.ranges is {self.ranges} and layout.kind is {self.kind!r}: there all noisy blocks see each "
                "other; layout.ranges = () with layout.range_levels = () would do"
            )
        falling = all(a > b for a, b in zip(self.range_levels, self.range_levels[1:], strict=False))
        if len(self.range_levels) != max(0, len(self.ranges) - 1) or not falling:
            even = tuple(round(1 - i / max(1, len(self.ranges)), 3) for i in range(1, len(self.ranges)))
            raise ValueError(
                f"layout.ranges is {self.ranges} and layout.range_levels is {self.range_levels}: falling levels part "
                f"the stages, layout.range_levels = {even} would do"
            )

    @property
    def separate_clean(self) -> bool:
        """Whether training needs a clean copy beside the noisy stream."""
        return self.kind == "teacher_forcing"

    @property
    def by_role(self) -> bool:
        """Whether, within one stream, clean and noisy frames see differently."""
        return self.kind in ("prefix", "partial_prefix", "bidirectional_window")

    @property
    def cacheable(self) -> bool:
        """Whether a finished block is never changed by a later one, so that its keys and values may be kept."""
        return self.kind not in ("full", "prefix")

    @property
    def pad(self) -> int:
        """Frames that the first block lacks. They stand before frame 0, at negative indices."""
        return self.block - self.first if self.first else 0

    def block_of(self, frame: Array, lead: Array = 0) -> Array:
        """Index of the block that a frame belongs to, ``lead`` blocks before the one that its index lies in."""
        return (frame + self.pad) // self.block - lead

    def block_start(self, frame: Array, lead: Array = 0) -> Array:
        """Index of the first frame of the block that a frame belongs to; negative where the first block is short."""
        return self.block_of(frame, lead) * self.block - self.pad

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
        q, k = q.beside(-1), k.beside(-2)
        q_block = self.block_of(q.frame, q.lead)
        seen = CLAUSES[self.kind](q, k, q_block, self.block_of(k.frame, k.lead)) & narrowed(self, q, k, q_block)
        return with_shared(q, k, seen) & (k.frame >= 0) | (q.frame < 0) & (q.frame == k.frame)

    def prefix_visible(self, q: Ids, k: Ids, frames: int) -> Array:
        """Which key frames the prefix attention of each query frame sees, bool [..., Tq, Tk].

        A noisy frame sees the last ``frames`` clean frames before its block; every other one nothing but itself,
        which the attention itself sees to.
        """
        q, k = q.beside(-1), k.beside(-2)
        start = self.block_start(q.frame, q.lead)
        before = (k.frame >= start - frames) & (k.frame < start) & (k.frame >= 0)
        return (q.role == NOISY) & (k.role == CLEAN) & before

    def noisy_frames(self, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """The frames of one noisy copy of a clip of ``frames`` frames, in order.

        Block after block, each followed by its knot. The last block has none: no frames are left.

        Returns:
            (frame, own), int [T]: the index in time, and a frame of the block that it is denoised with. That is the
            frame itself, for a knot the last frame before it.
        """
        order = np.arange(self.coarse, frames)
        if not self.knot:
            return order, order
        blocks = [order[self.block_of(order) == b] for b in range(self.block_count(frames))]
        knots = [np.arange(block[-1] + 1, min(block[-1] + 1 + self.knot, frames)) for block in blocks]
        parts = [part for pair in zip(blocks, knots, strict=True) for part in pair]
        own = [part for b, k in zip(blocks, knots, strict=True) for part in (b, np.full_like(k, b[-1]))]
        return np.concatenate(parts), np.concatenate(own)

    def training_ids(self, frames: int) -> dict[str, Ids]:
        """Streams of a training clip of ``frames`` frames by name, in the order in which they are concatenated.

        'coarse', 'clean', 'noisy' and 'reference', those that there are. Never the first two at once, so that this is
        the order of their names, in which JAX returns dicts.
        """
        streams, (frame, own) = {}, self.noisy_frames(frames)
        if self.coarse:
            streams["coarse"] = Ids.of(COARSE, np.arange(self.coarse), 0, self.last_stage)
        if self.separate_clean:
            streams["clean"] = Ids.of(CLEAN, np.arange(frames - self.block), 0, self.last_stage)
        lead = self.block_of(frame) - self.block_of(own)
        frame, lead = np.tile(frame, self.copies), np.tile(lead, self.copies)
        copy = np.repeat(np.arange(self.copies), len(own))
        streams["noisy"] = Ids.of(NOISY, frame, copy, 0, lead)
        if self.reference:
            streams["reference"] = Ids.of(REFERENCE, np.array([frames - 1]), 0, self.last_stage)
        return streams

    def positions(self, frame: Array, gap: Array) -> Array:
        """Indices in time of training frames when the sinks are moved ``gap`` frames into the past.

        A stream leaves its sinks behind, to distances that no training clip shows. So training draws a gap per clip
        and lets everything after the sinks happen that much later (randomised positions, Ruoss et al. 2023, arXiv
        2305.16843): ``0 1 2 3 | 4 5 ..`` becomes ``0 1 2 3 | 4+gap 5+gap ..``. Who sees whom does not change.

        Args:
            frame: [..., T], counted without the gap.
            gap: [...], a multiple of the block.
        """
        return frame + gap[..., None] * (frame >= self.sinks - self.pad)

    def training_mask(self, frames: int) -> np.ndarray:
        """Static mask of a training clip over its concatenated streams, bool [T, T]."""
        ids = concatenate(*self.training_ids(frames).values())
        return np.asarray(self.visible(ids, ids))

    def block_groups(self, frames: int) -> np.ndarray:
        """Number of the block of every frame of a clip's concatenated streams, from 0; each stream has its own."""
        ids = concatenate(*self.training_ids(frames).values())
        parts = (self.block_of(ids.frame, ids.lead), ids.role, ids.copy)
        return np.cumsum(np.append(False, np.any([np.diff(part) != 0 for part in parts], axis=0)))

    def block_table(self, frames: int) -> np.ndarray:
        """The training mask with one entry per block, for a block-sparse kernel: is anything there to compute?"""
        group = self.block_groups(frames)
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
