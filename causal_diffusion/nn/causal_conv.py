"""Causal convolutions whose past is a value: exact on a whole clip and on its pieces alike.

Output frame t of a causal convolution with kernel k and dilation d sees the input frames t - (k-1) d .. t. With stride
s, output i sees none after s i + s - 1, the last one of its own group of s. So a clip may be cut anywhere between
groups, if each piece is given the last frames of the one before::

    whole     [0 0 | a b c d e f g h]              k = 3: two frames of zeros stand before a clip
    piece 1   [0 0 | a b c]                        state after it: b c
    piece 2         [b c | d e f g h]              the same numbers, so the same outputs

How many frames are kept, the *history*, and how many zeros stand at the *start* of a clip:

    history = (k - 1) d + 1 - s                                                                           (1)
    start   = history               groups of s frames; a clip has s n frames                             (2)
    start   = (k - 1) d             the first frame is a group by itself; a clip has 1 + s n frames       (3)

(3) is what makes an image a video of one frame: it pads s - 1 zeros more, which only the first group sees.

Every module here maps ``(x, state)`` to ``(y, state)``. ``state=None`` is the start of a clip; what comes back is a
pytree of arrays whose shapes never change again, each with the batch in front, and ``()`` where nothing is kept.
``Carry`` threads the states of a network's modules by their names.

On CPU XLA runs a 3-D convolution two to four times faster as a sum of 2-D ones, one per time tap, forward and
backward; elsewhere it stays whole (``volume``). The two agree to rounding.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = Any
State = Any  # a pytree of arrays [B, ...]; None at the start of a clip


class Carry:
    """Threads streaming states through the modules of a network.

    ``x = carry(module, x)`` calls ``module(x, its state)`` and keeps the state that comes back; afterwards
    ``carry.state`` is the network's own, a dict by module name.
    """

    def __init__(self, state: State):
        self._past, self.state = state, {}

    def __call__(self, module: nn.Module, x, *arguments):
        past = None if self._past is None else self._past[module.name]
        x, self.state[module.name] = module(x, past, *arguments)
        return x


class CausalConv(nn.Module):
    """A convolution over time, or over time and space: [B, T, C] or [B, T, *space, C]; causal in time.

    kernel: taps along (time, *space). stride, dilation: in time. apart: whether the first frame of a clip is a group
    by itself (equation 3). groups: of channels. edge: what stands outside a clip and its frames, zeros or copies of
    the nearest frame and pixel. Space is padded to keep its size; an even kernel is refused there.
    """

    features: int
    kernel: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    apart: bool = False
    groups: int = 1
    edge: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @property
    def history(self) -> int:
        """Frames of the past that a later piece needs, equation (1)."""
        return (self.kernel[0] - 1) * self.dilation + 1 - self.stride

    @nn.compact
    def __call__(self, x, state: State = None):
        """[B, T, *space, C] -> ([B, T / stride, *space, features], state): T is a multiple of the stride, or one more
        at the start of a clip whose first frame is apart."""
        if self.history < 0:
            raise ValueError(
                f"a kernel of {self.kernel[0]} taps with dilation {self.dilation} misses frames between strides of "
                f"{self.stride}: {self.stride} taps would do"
            )
        shape = (*self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        x = x.astype(self.dtype)
        if state is None:
            start = (self.kernel[0] - 1) * self.dilation if self.apart else self.history
            mode = dict(mode="edge") if self.edge else {}
            x = jnp.pad(x, ((0, 0), (start, 0), *((0, 0),) * (x.ndim - 2)), **mode)
        elif self.history:
            x = jnp.concatenate([state, x], axis=1)
        state = x[:, x.shape[1] - self.history :] if self.history else ()
        y = causal_conv(x, kernel, self.stride, self.dilation, self.groups, edge=self.edge)
        return y + bias.astype(self.dtype), state


def causal_conv(x, kernel, stride: int = 1, dilation: int = 1, groups: int = 1, edge: bool = False, form: str = "auto"):
    """The convolution itself: valid in time, size-keeping in space; [B, T, *space, C] with kernel [k, *space, C, F].

    ``form``: 'volume', one convolution over all axes; 'taps', a sum over the time taps of convolutions over space;
    'auto', taps on CPU and volume elsewhere. Depth-wise kernels are summed tap by tap on CPU, in space as well.
    """
    space = kernel.shape[1:-2]
    if any(size % 2 == 0 for size in space):
        raise ValueError(f"a kernel keeps the size of a frame if it is odd in space, not {space}")
    extent = (kernel.shape[0] - 1) * dilation + 1
    if x.shape[1] < extent or (x.shape[1] - extent) % stride:
        raise ValueError(
            f"{x.shape[1]} frames, history included, are not a whole number of groups for a kernel of "
            f"{kernel.shape[0]} taps with stride {stride} and dilation {dilation}"
        )
    pads = [(size // 2, size // 2) for size in space]
    if edge and any(size > 1 for size in space):
        x, pads = jnp.pad(x, ((0, 0), (0, 0), *pads, (0, 0)), mode="edge"), [(0, 0)] * len(space)
    if form == "auto":
        form = "taps" if space and jax.default_backend() == "cpu" else "volume"
    if form == "volume":
        return _convolve(x, kernel, (stride, *(1,) * len(space)), [(0, 0), *pads], dilation, groups)
    frames = (x.shape[1] - extent) // stride + 1
    out = 0.0
    for tap in range(kernel.shape[0]):
        first = tap * dilation
        seen = x[:, first : first + (frames - 1) * stride + 1 : stride]
        out = out + frame_conv(seen, kernel[tap], pads=pads, groups=groups)
    return out


def frame_conv(x, kernel, stride: int = 1, pads: Sequence[tuple[int, int]] = ((1, 1), (1, 1)), groups: int = 1):
    """A convolution inside each frame: [B, T, *space, C] with kernel [*space, C / groups, F]."""
    if groups == x.shape[-1] == kernel.shape[-1] and stride == 1:
        return _depthwise(x, kernel, pads)
    folded = x.reshape(-1, *x.shape[2:])
    out = _convolve(folded, kernel, (stride,) * (x.ndim - 3), pads, 1, groups)
    return out.reshape(*x.shape[:2], *out.shape[1:])


def _depthwise(x, kernel, pads):
    """A sum of shifted copies: XLA's grouped convolution is hundreds of times slower on CPU."""
    x = jnp.pad(x, ((0, 0), (0, 0), *pads, (0, 0)))
    size = [n - k + 1 for n, k in zip(x.shape[2:-1], kernel.shape[:-2], strict=True)]
    out = 0.0
    for at in np.ndindex(*kernel.shape[:-2]):
        window = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
        out = out + x[(slice(None), slice(None), *window)] * kernel[at][0]
    return out


def _convolve(x, kernel, strides, pads, dilation, groups):
    """Channels last; ``dilation`` is that of the first axis."""
    axes = "TUV"[: kernel.ndim - 2]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=(dilation, *(1,) * (len(axes) - 1)),
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
    )


class FrameConv(nn.Module):
    """A convolution inside each frame, without state: [B, T, H, W, C] -> [B, T, H', W', features].

    pads: pixels of zeros before and after each axis, or None: the size stays.
    """

    features: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    pads: tuple[tuple[int, int], ...] | None = None
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros_init()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        pads = self.pads or tuple((size // 2, size // 2) for size in self.kernel)
        return frame_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, pads) + bias.astype(self.dtype)


class ChannelNorm(nn.Module):
    """x / rms(x) * scale over the channels of each position: no statistics across time, so pieces equal the whole.

    Wan 2.1's norm: x sqrt(C) / max(|x|, 1e-12), in float32, but at zero, where its derivative is none worth following:
    there it is 0, and not 1e12, which compounds from layer to layer.
    """

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        square = jnp.sum(y * y, axis=-1, keepdims=True)
        inverse = jnp.where(square > 1e-24, jax.lax.rsqrt(jnp.maximum(square, 1e-24)), 0.0)
        return (y * (scale * x.shape[-1] ** 0.5 * inverse)).astype(x.dtype)


class TimeDownsample(nn.Module):
    """Wan 2.1's: the first frame of a clip passes as it is, the others in pairs through a convolution of three taps.

    [B, 1 + 2n, H, W, C] at the start of a clip, [B, 2n, H, W, C] later -> half as many frames. The history is the
    last frame (Wan et al. 2025, arXiv 2503.20314).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, state: State = None):
        x = x.astype(self.dtype)
        conv = CausalConv(x.shape[-1], (3, 1, 1), stride=2, dtype=self.dtype, name="conv")
        if state is not None:
            return conv(x, state)
        first, rest = x[:, :1], x[:, 1:]
        if not rest.shape[1] and not self.is_initializing():
            return first, first
        if not rest.shape[1]:
            conv(jnp.repeat(first, 2, axis=1), first)  # makes the parameters
            return first, first
        rest, state = conv(rest, first)
        return jnp.concatenate([first, rest], axis=1), state


class TimeUpsample(nn.Module):
    """Wan 2.1's: the first frame of a clip passes as it is, every other one becomes two.

    [B, 1 + n, H, W, C] at the start of a clip -> [B, 1 + 2n, ...]; [B, n, ...] later -> [B, 2n, ...]. A causal
    convolution of three taps makes 2C channels, the two frames one after the other; it does not see the first frame.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, state: State = None):
        x = x.astype(self.dtype)
        conv = CausalConv(2 * x.shape[-1], (3, 1, 1), dtype=self.dtype, name="conv")
        if state is not None:
            y, state = conv(x, state)
            return interleave(y, 2), state
        first, rest = x[:, :1], x[:, 1:]
        nothing = jnp.zeros((x.shape[0], conv.history, *x.shape[2:]), self.dtype)
        if not rest.shape[1] and not self.is_initializing():
            return first, nothing
        if not rest.shape[1]:
            conv(first, nothing)  # makes the parameters
            return first, nothing
        rest, state = conv(rest, nothing)
        return jnp.concatenate([first, interleave(rest, 2)], axis=1), state


def interleave(x, factor: int):
    """Channels into frames: [B, T, *space, factor C] -> [B, factor T, *space, C], the first C channels first."""
    B, T, *space, C = x.shape
    x = jnp.moveaxis(x.reshape(B, T, *space, factor, C // factor), -2, 2)
    return x.reshape(B, factor * T, *space, C // factor)


def enlarge(x, factor: int = 2):
    """Nearest-neighbour upsampling of every spatial axis: [B, T, H, W, C] -> [B, T, factor H, factor W, C]."""
    for axis in range(2, x.ndim - 1):
        x = jnp.repeat(x, factor, axis=axis)
    return x
