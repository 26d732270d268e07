"""What of a static mask is computed: rectangles of queries and keys in which everything is seen.

Teacher forcing of four blocks, a clean copy without its last block and the noisy sequence. A block is one query frame
here, a letter the rectangle that computes it::

            clean   noisy
            0 1 2   0 1 2 3
        0   a . .   . . . .         a   rows 0 and noisy 1, keys 0         two queries of one block each
        1   b b .   . . . .         b   rows 1 and noisy 2, keys 0 1
        2   c c c   . . . .         c   rows 2 and noisy 3, keys 0 1 2
        0   . . .   d . . .
        1   a . .   . d . .         d   four squares side by side, in one product
        2   b b .   . . d .
        3   c c c   . . . d

Rows that see the same are a *run*. The keys that a run sees are cut into ranges without a gap; runs that share a range
share a rectangle. So a rectangle's rows may lie apart, its keys never do, and no key is copied. What a run saw in
several rectangles is merged by the softmax's own sums. With n blocks these are 2n - 1 runs, n rectangles, and exactly
the visible pairs: n^2 of the (2n - 1)^2 that a dense mask computes.

Products of very few rows are slow, whatever they save. Neighbours of less than LEAST_ROWS tokens together are one run:
what they all see stays a rectangle, and what some of them see is one with a mask of its own. Block-causal, frames that
are too small to be runs of their own, in pairs::

            0 1 2 3
        0   a . . .         a, b   keys that both rows see
        1   a c . .         c, d   keys that row 1, or 3, sees, computed for both and hidden from the other
        2   b b b .
        3   b b b d
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from causal_diffusion.layout import StaticMask

LEAST_ROWS = 64  # tokens; see `python -m benchmarks cpu_attention_rule`

Range = tuple[int, int]


class Rectangle(NamedTuple):
    """Query frames that see the same key frames.

    rows: ranges of query frames; part: which array the keys are in; keys: their range in it; squares: into how many
    equal pieces rows and keys are cut, each piece of the rows seeing its own piece of the keys alone; mask: the same
    for each of ``rows`` or each of the pieces, [its rows, its keys], None where all of it is seen.
    """

    rows: tuple[Range, ...]
    part: int
    keys: Range
    mask: StaticMask | None = None
    squares: int = 1

    @property
    def pairs(self) -> int:
        """Pairs of frames that are computed."""
        return sum(end - start for start, end in self.rows) * (self.keys[1] - self.keys[0]) // self.squares


class Run(NamedTuple):
    """Query frames start .. end - 1, and where they were computed: (number of a rectangle, first of its rows)."""

    start: int
    end: int
    at: tuple[tuple[int, int], ...]


class Plan(NamedTuple):
    """Rectangles, and the runs that they make up, in the order of the queries."""

    rectangles: tuple[Rectangle, ...]
    runs: tuple[Run, ...]

    @property
    def pairs(self) -> int:
        """Pairs of frames that are computed."""
        return sum(rectangle.pairs for rectangle in self.rectangles)


@functools.lru_cache(maxsize=256)
def plan(mask: StaticMask, sizes: tuple[int, ...], tokens: int) -> Plan:
    """Rectangles of a mask.

    Args:
        mask: [T, S]; every query sees at least one key.
        sizes: frames of each array of keys, summing to S.
        tokens: of a query frame.

    Raises:
        ValueError: a query that sees nothing.
    """
    if not (some := mask.array.any(axis=1)).all():
        raise ValueError(f"query frame {int(np.argmin(some))} sees no key")
    borders, rows, runs = np.cumsum((0, *sizes)), {}, _runs(mask.array, tokens)
    for start, end in runs:
        for part, (low, high) in enumerate(zip(borders, borders[1:], strict=False)):
            seen = mask.array[start:end, low:high]
            every, some = seen.all(axis=0), seen.any(axis=0)
            for keys in ranges(every):
                rows.setdefault((part, keys, None), []).append((start, end))
            for keys in ranges(some & ~every):
                partly = StaticMask(seen[:, slice(*keys)])
                rows.setdefault((part, keys, partly), []).append((start, end))
    rectangles = _side_by_side([Rectangle(tuple(of), *each) for each, of in rows.items()])
    places: dict = {start: [] for start, _ in runs}
    for number, rectangle in enumerate(rectangles):
        offset = 0
        for first, last in rectangle.rows:
            for start in (start for start in places if first <= start < last):
                places[start].append((number, offset + start - first))
            offset += last - first
    return Plan(tuple(rectangles), tuple(Run(start, end, tuple(places[start])) for start, end in runs))


def seen_by_run(mask: StaticMask, sizes: tuple[int, ...], tokens: int):
    """Each run with the keys that it sees, for a backend that takes them side by side; arguments as ``plan``.

    Returns:
        [(run, [(array, (start, end) in it, mask by frame or None)])].
    """
    rectangles, runs = plan(mask, sizes, tokens)
    out = []
    for run in runs:
        seen = []
        for number, at in run.at:
            of = rectangles[number]
            width = (of.keys[1] - of.keys[0]) // of.squares
            start = of.keys[0] + width * (at // (run.end - run.start) if of.squares > 1 else 0)
            seen.append((of.part, (start, start + width), of.mask))
        out.append((run, seen))
    return out


def _runs(array, tokens):
    """Ranges of rows that see the same, or of LEAST_ROWS tokens where those are shorter."""
    changes = [*(1 + np.flatnonzero(np.any(array[1:] != array[:-1], axis=1))).tolist(), len(array)]
    least, runs, start = math.ceil(LEAST_ROWS / tokens), [], 0
    for end in changes:
        if end - start >= least or end == len(array):
            runs.append((start, end))
            start = end
    return runs


def ranges(seen) -> list[Range]:
    """Ranges (start, end) of what is True in bool [n]."""
    cuts = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]]).astype(np.int8)))
    return [tuple(pair) for pair in cuts.reshape(-1, 2).tolist()]


def _side_by_side(rectangles):
    """Neighbours on a diagonal, equal in size and mask and each of one range of rows, become one of several squares."""
    out, ends = [], {}  # where a further square would have to begin -> the rectangle that it would join
    for new in rectangles:
        (start, end), (low, high) = new.rows[0], new.keys
        if len(new.rows) > 1:
            out.append(new)
            continue
        like = (end - start, high - low, new.mask)
        number = ends.pop((new.part, start, low, like), len(out))
        if number == len(out):
            out.append(new)
        else:
            old = out[number]
            out[number] = old._replace(rows=((old.rows[0][0], end),), keys=(old.keys[0], high), squares=old.squares + 1)
        ends[new.part, end, high, like] = number
    return out
