"""Positions: rotary ones on up to three axes, or additive sines and cosines.

Rotary (Su et al. 2021, arXiv 2104.09864): channels (2i, 2i + 1) of a head are a point in the plane, turned by
position x frequency_i, frequency_i = theta^(-2i / d). Dot products of queries and keys then depend on the
difference of positions alone. With several axes the head width K is split between them; with (time, height, width)
as Wan 2.1 does, K = 128 gives 44 / 42 / 42 channels:

    time   K - 4 (K // 6)        height, width   2 (K // 6) each

Additive (DiT, Peebles & Xie 2023): sines and cosines of the position are added to the tokens after embedding, an
equal share of the width per axis.
"""

import jax.numpy as jnp
import numpy as np


def axis_widths(width: int, axes: int) -> tuple[int, ...]:
    """How many channels of ``width`` turn with each axis; every share is even. Sums to ``width``."""
    if width % 2:
        raise ValueError(f"rotary positions need an even width, not {width}")
    share = 2 * (width // (2 * axes))
    return (width - (axes - 1) * share, *(share,) * (axes - 1))


def _angles(position, width, theta):
    frequency = theta ** (-np.arange(0, width, 2) / width)
    return position[..., None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)


def _grid_angles(frame_BT, grid, widths, theta):
    """Angles of every token, float32 [B, T, N, sum(widths) / 2], N row-major over ``grid``."""
    B, T = frame_BT.shape
    axes = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij") if grid else []
    tokens = int(np.prod(grid)) if grid else 1
    parts = [jnp.broadcast_to(_angles(frame_BT, widths[0], theta)[:, :, None], (B, T, tokens, widths[0] // 2))]
    for axis, width in zip(axes, widths[1:], strict=True):
        angle_NK = _angles(jnp.asarray(axis.reshape(-1)), width, theta)
        parts.append(jnp.broadcast_to(angle_NK, (B, T, tokens, width // 2)))
    return jnp.concatenate(parts, axis=-1)


def rotary_table(frame_BT, grid: tuple[int, ...], width: int, theta: float = 10000.0):
    """Cosine and sine for ``rotate``.

    Args:
        frame_BT: int, index in time of every frame, [B, T].
        grid: tokens along each spatial axis, () for one token a frame.
        width: head width K, even.
        theta: base of the frequencies.

    Returns:
        (cos, sin), each float32 [B, T, N, K / 2].
    """
    angle = _grid_angles(frame_BT, grid, axis_widths(width, 1 + len(grid)), theta)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNHK, table):
    """Turns the channel pairs of every head; norms are kept. Computed in float32, returned in x's dtype."""
    cos, sin = (part[:, :, :, None] for part in table)
    pair = x_BTNHK.astype(jnp.float32).reshape(*x_BTNHK.shape[:-1], -1, 2)
    even, odd = pair[..., 0], pair[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x_BTNHK.shape).astype(x_BTNHK.dtype)


def additive_table(frame_BT, grid: tuple[int, ...], width: int, theta: float = 10000.0):
    """Sines and cosines to add to the tokens, float32 [B, T, N, D]. Arguments as ``rotary_table``."""
    angle = _grid_angles(frame_BT, grid, axis_widths(width, 1 + len(grid)), theta)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def sinusoid(t, width: int, theta: float = 10000.0):
    """Embedding of a scalar, cosine half first as in Wan 2.1: [...] -> float32 [..., width]."""
    half = width // 2
    frequency = theta ** (-np.arange(half) / half)
    angle = jnp.asarray(t, jnp.float32)[..., None] * jnp.asarray(frequency, jnp.float32)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
