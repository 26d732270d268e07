"""Positions: rotary ones on up to three axes, or additive sines and cosines.

Rotary (Su et al. 2021, arXiv 2104.09864): channels (2i, 2i + 1) of a head are a point in the plane, turned by
position x frequency_i, frequency_i = theta^(-2i / d). Dot products of queries and keys then depend on the
difference of positions alone. With several axes the head width K is split between them; with (time, height, width)
as Wan 2.1 does, K = 128 gives 44 / 42 / 42 channels:

    time   K - 4 (K // 6)        height, width   2 (K // 6) each

or in given shares, (2, 3, 3) of K = 64 being 16 / 24 / 24 (ACDiT, arXiv 2412.07720; FAR, 2503.19325). Every axis turns
a segment of its own: only then are norms kept and is the product relative, whatever the shares.

Factorised attention turns the whole head: by space inside a frame (``space_table``), by time along a cell
(``rotary_table`` of the empty grid).

Additive (DiT, Peebles & Xie 2023): sines and cosines of the position are added to the tokens after embedding, an
equal share of the width per axis.
"""

import jax.numpy as jnp
import numpy as np


def axis_widths(width: int, axes: int, split: tuple[int, ...] = ()) -> tuple[int, ...]:
    """How many channels of ``width`` turn with each axis; every share is even. Sums to ``width``.

    ``split``: relative shares, one per axis; () for about equal ones.
    """
    if width % 2:
        raise ValueError(f"rotary positions need an even width, not {width}")
    if split:
        shares = tuple(width * part // sum(split) for part in split)
        if min(split) < 1 or sum(shares) != width or any(share % 2 for share in shares):
            raise ValueError(f"the shares {split} of {width} channels are not whole even numbers")
        return shares
    share = 2 * (width // (2 * axes))
    return (width - (axes - 1) * share, *(share,) * (axes - 1))


def _angles(position, width, theta):
    frequency = theta ** (-np.arange(0, width, 2) / width)
    return position[..., None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)


def _grid_angles(frame_BT, grid, widths, theta, stride=1):
    """Angles of every token, float32 [B, T, N, sum(widths) / 2], N row-major over ``grid``."""
    B, T = frame_BT.shape
    axes = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij") if grid else []
    tokens = int(np.prod(grid)) if grid else 1
    parts = [jnp.broadcast_to(_angles(frame_BT, widths[0], theta)[:, :, None], (B, T, tokens, widths[0] // 2))]
    for axis, width in zip(axes, widths[1:], strict=True):
        angle_NK = _angles(jnp.asarray(stride * axis.reshape(-1)), width, theta)
        parts.append(jnp.broadcast_to(angle_NK, (B, T, tokens, width // 2)))
    return jnp.concatenate(parts, axis=-1)


def rotary_table(
    frame_BT, grid: tuple[int, ...], width: int, theta: float = 10000.0, split: tuple[int, ...] = (), stride: int = 1
):
    """Cosine and sine for ``rotate``.

    Args:
        frame_BT: int, index in time of every frame, [B, T].
        grid: tokens along each spatial axis, () for one token a frame.
        width: head width K, even.
        theta: base of the frequencies.
        split: shares of the axes, as in ``axis_widths``.
        stride: cells between the tokens of a frame; 1 but for coarse patches.

    Returns:
        (cos, sin), each float32 [B, T, N, K / 2].
    """
    angle = _grid_angles(frame_BT, grid, axis_widths(width, 1 + len(grid), split), theta, stride)
    return jnp.cos(angle), jnp.sin(angle)


def space_table(grid: tuple[int, ...], width: int, theta: float = 10000.0):
    """As ``rotary_table`` by the spatial axes alone, which share the whole head: float32 [1, 1, N, K / 2] each."""
    widths = axis_widths(width, len(grid))
    angle = _grid_angles(jnp.zeros((1, 1), jnp.int32), grid, (0, *widths), theta)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNHK, table):
    """Turns the channel pairs of every head; norms are kept. Computed in float32, returned in x's dtype."""
    cos, sin = (part[:, :, :, None] for part in table)
    pair = x_BTNHK.astype(jnp.float32).reshape(*x_BTNHK.shape[:-1], -1, 2)
    even, odd = pair[..., 0], pair[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x_BTNHK.shape).astype(x_BTNHK.dtype)


def additive_table(frame_BT, grid: tuple[int, ...], width: int, theta: float = 10000.0, stride: int = 1):
    """Sines and cosines to add to the tokens, float32 [B, T, N, D]. Arguments as ``rotary_table``."""
    angle = _grid_angles(frame_BT, grid, axis_widths(width, 1 + len(grid)), theta, stride)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def sinusoid(t, width: int, theta: float = 10000.0):
    """Embedding of a scalar, cosine half first as in Wan 2.1: [...] -> float32 [..., width]."""
    half = width // 2
    frequency = theta ** (-np.arange(half) / half)
    angle = jnp.asarray(t, jnp.float32)[..., None] * jnp.asarray(frequency, jnp.float32)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
