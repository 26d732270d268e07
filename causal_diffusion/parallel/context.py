"""The order in which frames lie over the axis `context`.

Under a causal mask late frames see more than early ones: cut into equal pieces, the last piece of a clip has nearly
twice the work of the mean. So frames are dealt out in units of whole blocks, the most expensive first and in snakes, as
children choose teams. For 8 blocks of a causal clip over 4 devices, which see 1 .. 8 blocks::

    device    0      1      2      3
    blocks    0 7    1 6    2 5    3 4          each sees 9

A network that takes frames in any order, with masks and positions by frame, gives the same numbers for each frame, so
`Order` is exact: what goes in is picked by `frames`, what comes out is put back by `back`. Where the blocks do not
divide, some are shown twice, to fill up: the second copies are seen by nobody, and thrown away.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Order:
    """Numbers of the frames in a new order.

    frames: int [T'], T' >= T, which frame stands where; real: bool [T'], False where it is there to fill up;
    back: int [T], where each frame stands.
    """

    frames: np.ndarray
    real: np.ndarray
    back: np.ndarray

    @classmethod
    def of(cls, frames, real) -> "Order":
        """With ``back`` from the others."""
        back = np.empty(int(np.sum(real)), int)
        back[frames[real]] = np.flatnonzero(real)
        return cls(frames, real, back)

    def take(self, x):
        """[B, T, ...] -> [B, T', ...]; an axis of 1 holds for all frames, and stays."""
        return x if x is None or x.shape[1] == 1 < len(self.back) else x[:, self.frames]

    def restore(self, x):
        """[B, T', ...] -> [B, T, ...]."""
        return x[:, self.back]

    def mask(self, mask):
        """Of queries and keys [..., Q + T, S + T] -> [..., Q + T', S + T']: the last T are frames that were moved."""
        if mask is None:
            return None
        T = len(self.back)
        rows, columns = mask.shape[-2] - T, mask.shape[-1] - T
        seen = np.append(np.ones(columns, bool), self.real)
        rows, columns = (np.append(np.arange(n), n + self.frames) for n in (rows, columns))
        return mask[..., rows, :][..., columns] & seen


def balanced(work: np.ndarray, group: np.ndarray, shards: int) -> Order:
    """Frames dealt out so that every one of ``shards`` equal pieces has about as much work.

    Args:
        work: [T], what each frame costs, as how many keys it sees.
        group: int [T], equal for consecutive frames that had better stay together: those of a block. They do where all
            groups are multiples of some length; that is the length of what is dealt out.
        shards: how many pieces.

    Returns:
        Order; within a piece frames keep the order that they had.
    """
    _, sizes = np.unique(group, return_counts=True)
    unit = math.gcd(*map(int, sizes))
    units = np.arange(len(group)).reshape(-1, unit)
    cost = np.asarray(work, float).reshape(-1, unit).sum(axis=1)
    fill = -len(units) % shards
    number = np.append(np.argsort(-cost, kind="stable"), np.full(fill, np.argmin(cost)))
    real = np.arange(len(number)) < len(units)
    deal = np.arange(len(number)).reshape(-1, shards)
    deal[1::2] = deal[1::2, ::-1]
    places = [piece[np.argsort(number[piece], kind="stable")] for piece in deal.T]
    places = np.concatenate(places)
    return Order.of(units[number[places]].reshape(-1), np.repeat(real[places], unit))
