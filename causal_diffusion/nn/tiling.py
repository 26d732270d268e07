"""Frames too large to be encoded or decoded at once: in tiles that overlap, whose seams are blended.

Along an axis of n latents stand as few tiles of ``tile`` latents as share ``overlap`` or more with their neighbours,
evenly spread, the first at the beginning and the last at the end::

    n = 10, tile = 4, overlap = 1      0 1 2 3
                                             3 4 5 6
                                                   6 7 8 9       starts 0, 3, 6

A tile counts fully where it is alone. Over the L pixels that it shares with a neighbour its weight falls linearly,
(L - i - 1/2) / L for i = 0 .. L - 1, and the neighbour's rises by as much; weights at one place are divided by their
sum, which is 1 already unless more than two tiles meet there. So nothing jumps at the edge of a tile.

All tiles have one shape: one program serves them however many they are, and one tile is all of the network's inside
that is in memory at a time. The network sees the edge of a tile as it sees that of a frame, and attention inside
frames sees one tile only, so near seams the result is not the untiled one, nor anywhere as far as attention reaches.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.nn.vae import VAE

Array = Any


@dataclasses.dataclass(frozen=True)
class TiledVAE:
    """A VAE of video that takes frames apart into tiles; its methods are those of ``VAE``, and so are their errors.

    vae: the VAE of one tile. tile: its latents along height and width. overlap: latents that neighbours share at least.
    """

    vae: VAE
    tile: tuple[int, int]
    overlap: int = 2

    def __post_init__(self):
        if self.vae.geometry.axes != 2:
            raise UserError(f"vae.form is {self.vae.config.form!r}: tiles have height and width, 'video' would do")
        if len(self.tile) != 2 or min(self.tile) < 1:
            raise UserError(f"tile is {self.tile}: latents along height and width, (32, 32) would do")
        if self.overlap < 0:
            raise UserError(f"overlap is {self.overlap}: latents that neighbours share at least, 0 would do")

    def encode(self, params, video, piece: int = 0):
        """The latents of whole clips, [B, T, H, W, C] -> mean [B, L, h, w, Z]; ``piece`` as for ``VAE.encode``."""
        space = self.vae.geometry.space
        return self._tiled(lambda x, _: (self.vae.encode(params, x, piece), ()), self.vae.checked(video), space, 1)[0]

    def decode(self, params, latents, piece: int = 0):
        """The clips of latents, [B, L, h, w, Z] -> float32 [B, T, H, W, C]."""
        space = self.vae.geometry.space
        return self._tiled(lambda z, _: (self.vae.decode(params, z, piece), ()), latents, 1, space)[0]

    def encode_piece(self, params, video, state=None):
        """One piece of a clip: (mean [B, L, h, w, Z], state), a tuple of the tiles'. ``state`` None: the first one."""
        video, space = self.vae.checked(video, start=state is None), self.vae.geometry.space
        return self._tiled(functools.partial(self.vae.encode_piece, params), video, space, 1, state)

    def decode_piece(self, params, latents, state=None):
        """One piece of a clip: (video [B, T, H, W, C], state), a tuple of the tiles'. ``state`` None: the first one."""
        space = self.vae.geometry.space
        return self._tiled(functools.partial(self.vae.decode_piece, params), latents, 1, space, state)

    def _tiled(self, function, x, scale_in, scale_out, state=None):
        """(y, states) of function(tile of x, its state) -> (tile of y, state), blended.

        scale_in, scale_out: pixels of x and of y per latent, along each axis.
        """
        sizes = [size // scale_in for size in x.shape[2:4]]
        rows, columns = (tile_starts(n, t, self.overlap) for n, t in zip(sizes, self.tile, strict=True))
        down = tile_weights(rows, self.tile[0], scale_out)
        across = tile_weights(columns, self.tile[1], scale_out)
        places = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
        out, states = None, []
        for (i, j), past in zip(places, [None] * len(places) if state is None else state, strict=True):
            top, left = rows[i] * scale_in, columns[j] * scale_in
            height, width = (n * scale_in for n in self.tile)
            y, after = function(x[:, :, top : top + height, left : left + width], past)
            states.append(after)
            if out is None:
                out = jnp.zeros((*y.shape[:2], *(n * scale_out for n in sizes), y.shape[-1]), y.dtype)
            weight = down[i][:, None, None] * across[j][:, None]
            out = _add(out, y, weight, rows[i] * scale_out, columns[j] * scale_out)
        return out, tuple(states)


def tile_starts(n: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along an axis of n latents begin. UserError: a tile is larger than that, or all overlap."""
    if tile > n:
        raise UserError(f"a tile has {tile} latents where the frame has {n}: tile = {n} would do there")
    if tile == n:
        return [0]
    if overlap >= tile:
        raise UserError(
            f"overlap is {overlap} and a tile has {tile} latents where the frame has {n}: neighbours share fewer than "
            f"they have, overlap = {tile // 4} would do"
        )
    count = 1 + -(-(n - tile) // (tile - overlap))
    return [i * (n - tile) // (count - 1) for i in range(count)]


def tile_weights(starts: list[int], tile: int, scale: int) -> list[np.ndarray]:
    """The weight of every tile along an axis, float32 [scale * tile]; at every place they add up to 1."""
    shared = [scale * (a + tile - b) for a, b in zip(starts, starts[1:], strict=False)]
    weights = []
    for before, after in zip([0, *shared], [*shared, 0], strict=True):
        weight = np.ones(scale * tile)
        weight[:before] *= (np.arange(before) + 0.5) / max(1, before)
        weight[len(weight) - after :] *= (np.arange(after)[::-1] + 0.5) / max(1, after)
        weights.append(weight)
    total = np.zeros(scale * (starts[-1] + tile))
    for start, weight in zip(starts, weights, strict=True):
        total[scale * start : scale * (start + tile)] += weight
    return [
        (weight / total[scale * start : scale * (start + tile)]).astype(np.float32)
        for start, weight in zip(starts, weights, strict=True)
    ]


@functools.partial(jax.jit, donate_argnums=0)
def _add(whole, part, weight, top, left):
    """``whole`` plus a weighed tile whose corner is at (top, left)."""
    at = (0, 0, top, left, 0)
    seen = jax.lax.dynamic_slice(whole, at, part.shape)
    return jax.lax.dynamic_update_slice(whole, seen + part * weight.astype(whole.dtype), at)
