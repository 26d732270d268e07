"""What a frame carries besides its data: its role, its place in time, and which block it is denoised with."""

from typing import Any, NamedTuple

import numpy as np

NOISY, CLEAN, CONTEXT, REFERENCE, COARSE = range(5)

Array = Any


class Ids(NamedTuple):
    """Ids of the frames of one or more streams; every array broadcasts to ``[..., T]``.

    ``role`` is NOISY, CLEAN, CONTEXT, REFERENCE or COARSE. ``frame`` is the index in time, from 0; negative ones are
    never visible. ``copy`` numbers the noisy copies of a clip. ``stage`` numbers the ranges of level, noisiest first.
    ``lead`` says how many blocks earlier than its index in time a frame counts: 1 for the frames of a knot.
    """

    role: Array
    frame: Array
    copy: Array
    stage: Array
    lead: Array = 0

    @classmethod
    def of(cls, role, frame, copy=0, stage=0, lead=0):
        """The same for all of ``frame`` [..., T], or arrays that broadcast against it."""
        zero = frame * 0
        return cls(zero + role, frame, zero + copy, zero + stage, zero + lead)

    def beside(self, axis: int) -> "Ids":
        """With a new axis: -1 for queries, -2 for keys, whose ids then broadcast to [..., Tq, Tk]."""
        at = (..., slice(None), None) if axis == -1 else (..., None, slice(None))
        return Ids(*(x if np.ndim(x) == 0 else x[at] for x in self))


def concatenate(*ids: Ids) -> Ids:
    """Ids of streams laid one after the other along the frame axis."""
    return Ids(*(np.concatenate(parts, axis=-1) for parts in zip(*(np.broadcast_arrays(*i) for i in ids), strict=True)))
