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
several rectangles is merged by the softmax's own sums.

With n blocks these are 2n - 1 runs, n rectangles, and exactly the visible pairs: n^2 of the (2n - 1)^2 that a dense
mask computes.
"""

import functools
from typing import NamedTuple

import numpy as np

from causal_diffusion.layout import StaticMask

Range = tuple[int, int]


class Rectangle(NamedTuple):
    """Query frames that all see the same key frames.

    rows: ranges of query frames; part: which array the keys are in; keys: their range in it; squares: into how many
    equal pieces rows and keys are cut, each piece of the rows seeing its own piece of the keys alone.
    """

    rows: tuple[Range, ...]
    part: int
    keys: Range
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
        """Pairs of frames that are computed: those that are seen, each once."""
        return sum(rectangle.pairs for rectangle in self.rectangles)


@functools.lru_cache(maxsize=256)
def plan(mask: StaticMask, sizes: tuple[int, ...]) -> Plan:
    """Rectangles of a mask.

    Args:
        mask: [T, S]; every query sees at least one key.
        sizes: frames of each array of keys, summing to S.

    Raises:
        ValueError: a query that sees nothing.
    """
    borders, runs = np.cumsum((0, *sizes)), []
    for start, end in _ranges(np.ones(len(mask.array), bool), _changes(mask.array)):
        seen = []
        for part, (low, high) in enumerate(zip(borders, borders[1:], strict=False)):
            seen += [(part, keys) for keys in _ranges(mask.array[start, low:high])]
        if not seen:
            raise ValueError(f"query frame {start} sees no key")
        runs.append((start, end, seen))
    rows: dict = {}
    for start, end, seen in runs:
        for each in seen:
            rows.setdefault(each, []).append((start, end))
    rectangles, places = _side_by_side([Rectangle(tuple(of), *each) for each, of in rows.items()]), {}
    for number, rectangle in enumerate(rectangles):
        offset = 0
        for start, end in rectangle.rows:
            for run in (run for run in runs if start <= run[0] < end):
                places.setdefault(run[0], []).append((number, offset + run[0] - start))
            offset += end - start
    return Plan(tuple(rectangles), tuple(Run(start, end, tuple(places[start])) for start, end, _ in runs))


def fragments(mask: StaticMask) -> int:
    """How many ranges of keys the runs of a mask see, together: never fewer than its rectangles."""
    array = mask.array[[0, *_changes(mask.array)]]
    return int(array[:, 0].sum() + (array[:, 1:] & ~array[:, :-1]).sum())


def _ranges(seen, changes=()):
    """Ranges (start, end) of what is True, cut at ``changes``, too."""
    cuts = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]]).astype(np.int8)))
    pairs = cuts.reshape(-1, 2)
    out = []
    for start, end in pairs.tolist():
        inside = [c for c in changes if start < c < end]
        out += list(zip([start, *inside], [*inside, end], strict=True))
    return out


def _changes(array):
    """Rows that differ from the one before."""
    return (1 + np.flatnonzero(np.any(array[1:] != array[:-1], axis=1))).tolist()


def _side_by_side(rectangles):
    """Neighbours on a diagonal, equal in size and each of one range of rows, become one of several squares."""
    out, ends = [], {}  # where a further square would have to begin -> the rectangle that it would join
    for new in rectangles:
        (start, end), (low, high) = new.rows[0], new.keys
        if len(new.rows) > 1:
            out.append(new)
            continue
        here, size = (new.part, start, low), (end - start, high - low)
        number = ends.pop((here, size), len(out))
        if number == len(out):
            out.append(new)
        else:
            old = out[number]
            out[number] = Rectangle(((old.rows[0][0], end),), old.part, (old.keys[0], high), old.squares + 1)
        ends[(new.part, end, high), size] = number
    return out
