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

Turns add up: a key may be turned by space first and by time when it is read (``turn``), so that its frame can move.

Angles of whole positions. A float32 product of position and frequency is off by 6e-8 of itself, by 0.03 radians at
frame 10^6. Positions of an integer type are therefore multiplied as integers, 2^32 to a turn, which wrap as angles do:

    n_i = round(2^32 frequency_i / 2 pi)                                                                     (1)
    phase_i(p) = p n_i mod 2^32                 uint32                                                        (2)
    angle_i(p) = (2 pi / 2^32) phase_i(p)       float32, phase read as signed: in [-pi, pi)                    (3)

(2) is exact for every int32 p, and phase_i(p + d) - phase_i(p) = phase_i(d) to the bit, wherever p is. What remains
is the rounding of (1), which grows with the distance, and that of (3) to float32, which does not:

    |angle_i(p + d) - angle_i(p) - d frequency_i| <= |d| pi / 2^32 + 2 pi (3 / 2^24)                           (4)

that is 7.3e-10 |d| + 1.2e-6 radians, up to whole turns. Positions of a floating type take the product as it is.

Additive (DiT, Peebles & Xie 2023): sines and cosines of the position are added to the tokens after embedding, an
equal share of the width per axis.
"""

import jax.numpy as jnp
import numpy as np

from causal_diffusion.cache import HeadsFirst

TURN = 2**32  # integer phases of a whole turn


def axis_widths(width: int, axes: int, split: tuple[int, ...] = ()) -> tuple[int, ...]:
    """How many channels of ``width`` turn with each axis; every share is even. Sums to ``width``.

    ``split``: relative shares, one per axis; () for about equal ones.
    """
    if width % 2:
        raise ValueError(f"rotary positions need an even width, not {width}")
    if split:
        shares = tuple(width * part // sum(split) for part in split) if min(split) > 0 else ()
        if sum(shares) != width or any(share % 2 for share in shares):
            raise ValueError(f"the shares {split} of {width} channels are not whole even numbers")
        return shares
    share = 2 * (width // (2 * axes))
    return (width - (axes - 1) * share, *(share,) * (axes - 1))


def _angles(position, width, theta):
    """float32 [..., width / 2] of positions [...], see (1) to (3)."""
    frequency = theta ** (-np.arange(0, width, 2) / width)
    position = jnp.asarray(position)[..., None]
    if not jnp.issubdtype(position.dtype, jnp.integer):
        return position.astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)
    steps = np.round(TURN * frequency / (2 * np.pi)).astype(np.uint32)
    phase = position.astype(jnp.uint32) * jnp.asarray(steps)
    return phase.astype(jnp.int32).astype(jnp.float32) * jnp.float32(2 * np.pi / TURN)


def _grid_angles(frame_BT, grid, widths, theta, stride=1):
    """Angles of every token, float32 [B, T, N, sum(widths) / 2], N row-major over ``grid``."""
    B, T = frame_BT.shape
    axes = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij") if grid else []
    tokens = int(np.prod(grid)) if grid else 1
    parts = [jnp.broadcast_to(_angles(frame_BT, widths[0], theta)[:, :, None], (B, T, tokens, widths[0] // 2))]
    for axis, width in zip(axes, widths[1:], strict=True):
        angle_NK = _angles(stride * axis.reshape(-1), width, theta)
        parts.append(jnp.broadcast_to(angle_NK, (B, T, tokens, width // 2)))
    return jnp.concatenate(parts, axis=-1)


def rotary_table(
    frame_BT, grid: tuple[int, ...], width: int, theta: float = 10000.0, split: tuple[int, ...] = (), stride: int = 1
):
    """Cosine and sine for ``rotate``.

    Args:
        frame_BT: index in time of every frame, [B, T]; exact where it is of an integer type, see (4).
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


def time_table(position, width: int, theta: float = 10000.0, axes: int = 1, split: tuple[int, ...] = ()):
    """As ``rotary_table`` by time alone: of several ``axes`` the spatial channels stay where they are.

    Args:
        position: [B, T], or [B, T, N] where the tokens of a frame stand apart.
        axes: time and space together, 1 where time turns the whole head.

    Returns:
        (cos, sin), each float32 [B, T, 1 or N, K / 2].
    """
    position = jnp.asarray(position)
    position = position[:, :, None] if position.ndim == 2 else position
    share = axis_widths(width, axes, split)[0]
    angle = _angles(position, share, theta)
    angle = jnp.pad(angle, [(0, 0)] * 3 + [(0, (width - share) // 2)])
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNHK, table):
    """Turns the channel pairs of every head; norms are kept. Computed in float32, returned in x's dtype.

    x may be HeadsFirst. ``table`` None turns nothing. Its axes of 1 hold for all frames, or for all tokens of a frame.
    """
    if table is None:
        return x_BTNHK
    if isinstance(x_BTNHK, HeadsFirst):
        return HeadsFirst(_turned(x_BTNHK.array, *(part[:, None] for part in table)))
    return _turned(x_BTNHK, *(part[:, :, :, None] for part in table))


def _turned(x, cos, sin):
    pair = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pair[..., 0], pair[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def turn(x_BTNHK, position, theta: float = 10000.0, axes: int = 1, split: tuple[int, ...] = ()):
    """Turns along time only what was turned as if it stood at time 0; arguments as ``time_table``.

    ``rotate(x, rotary_table(frame, ...))`` is ``turn(rotate(x, rotary_table(0, ...)), frame, ...)``.
    """
    return rotate(x_BTNHK, time_table(position, x_BTNHK.shape[-1], theta, axes, split))


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
