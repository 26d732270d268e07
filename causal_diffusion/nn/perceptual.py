"""How different two pictures, or two movements, look: a learned distance, and one that needs no weights.

Both take a reconstruction ``a`` and its target ``b`` and give one number per frame, the smaller the nearer.

``lpips`` (Zhang et al. 2018, arXiv 1801.03924) needs the weights of a trained VGG16 (Simonyan & Zisserman 2015, arXiv
1409.1556) and of LPIPS itself, which are the user's to supply. With u_l the features of layer l (relu1_2, 2_2, 3_3, 4_3
and 5_3), scaled to length 1 over channels, and w_l a weight per channel,

    lpips(a, b) = sum_l mean over positions of  sum_c w_l,c (u_l,c(a) - u_l,c(b))^2                       (1)

``feature_distance`` stands in where there are none. Let e = a - b, |.| the smooth absolute value (2), and F_k the eight
filters (d/du)^n G, n = 1, 2, of a Gaussian of deviation 1 pixel along u = 0, 45, 90 and 135 degrees, each of length 1.
At scale s the frames are averaged s times over 2 x 2 pixels, channels apart, and c is the local contrast of the target:

    |x| = sqrt(x^2 + r^2) - r                                                  r = 1e-3                   (2)
    c^2 = G * (b - G * b)^2 + c0^2                                             c0 = 0.1                   (3)
    d(a, b) = mean |e|  +  mean over s, k, channels and positions of  |F_k * e| / c                       (4)

The first term is zero for equal frames only. The second does not see a shift of brightness, weighs an error less where
the target is busy (masking), and sees structure that is lost or made up, at three scales (at fewer in frames too small
for a side of 4 pixels there). It is weaker than LPIPS: it compares edges and bars pixel by pixel and knows no textures
or things, so what a good model invents plausibly still costs what it costs in pixels.

A series has no space, so what is compared is how it moves: over spans of s = 1, 2, 4 frames, the first frame standing
before itself,

    D_s(x)_t = (2 s)^-1/2 sum over i < s of  x_(t-i) - x_(t-i-s)                                          (5)
    c^2 = mean over i < 2s of  D_s(b)_(t-i)^2  + c0^2                                                     (6)
    d(a, b)_t = mean |e_t|  +  mean over s and channels of  |D_s(e)_t| / c                                (7)

No frame's number depends on later frames, so that a padded tail can be left out. r and c0 are in units of the data:
frames in [-1, 1], series of deviation about 1.
"""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint.foreign import open_weights
from causal_diffusion.errors import UserError

Array = Any

LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's numbers of VGG16's convolutions
WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS' own scaling of frames in [-1, 1]
UNUSED = ("classifier.", "scaling_layer.", "lins.")  # in torchvision's and lpips' files, and not needed here
CONVERT = (
    'python -c "import sys, numpy, torch; numpy.savez(sys.argv[1], **{k: v.detach().numpy() for f in sys.argv[2:] '
    'for k, v in torch.load(f, weights_only=True).items()})" lpips.npz'
)
ROUND, FLOOR = 1e-3, 0.1  # r and c0
SPANS = (1, 2, 4)
SCALES, SMALLEST = 3, 4


class LPIPSWeights(NamedTuple):
    """Of VGG16 up to relu5_3, and of LPIPS; float32. 59 MB: hand them to a compiled function as an argument."""

    kernels: tuple[Array, ...]  # 13 of [3, 3, in, out]
    biases: tuple[Array, ...]  # 13 of [out]
    lins: tuple[Array, ...]  # 5 of [channels]


def lpips_weights(path) -> LPIPSWeights:
    """Reads the weights of LPIPS with VGG16 from one .npz or .safetensors file; nothing is unpickled.

    Keys are torchvision's (``features.0.weight`` ...) with ``lin0.model.1.weight`` ... beside them, or the package
    lpips' own (``net.slice1.0.weight`` ...).

    Raises:
        UserError: no such file, another kind of file, or, by name, the first key that is missing, of another shape,
            other numbers than finite floating-point ones, or unknown.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"no weights of LPIPS at {path}: give a .npz or .safetensors file")
    weights = open_weights(path, convert=f"try {CONVERT} {path}")
    path, weights = weights.path, weights.within("features.0.weight", "net.slice1.0.weight")
    given = {re.sub(r"^net\.slice\d\.", "features.", key): key for key in weights.shapes}
    wanted, arrays = _wanted(), {}
    for key, shape in wanted.items():
        if key not in given:
            raise UserError(f"{path} has no {key!r}: it must hold VGG16's convolutions and LPIPS' lin0 .. lin4")
        if weights.shapes[given[key]] != shape:
            there = weights.shapes[given[key]]
            raise UserError(f"{path}: {key!r} has the shape {there}, in LPIPS with VGG16 it is {shape}")
        arrays[key] = weights[given[key]]
    for key in given:
        if key not in wanted and not key.startswith(UNUSED):
            raise UserError(f"{path} has {key!r}, which LPIPS with VGG16 has not: give weights of that network")

    convs = [f"features.{n}" for stage in LAYERS for n in stage]
    return LPIPSWeights(
        tuple(jnp.asarray(arrays[f"{name}.weight"].transpose(2, 3, 1, 0)) for name in convs),
        tuple(jnp.asarray(arrays[f"{name}.bias"]) for name in convs),
        tuple(jnp.asarray(arrays[f"lin{i}.model.1.weight"].reshape(-1)) for i in range(len(LAYERS))),
    )


def _wanted():
    """{key: shape} as PyTorch lays them out, in the order of the network."""
    shapes, channels = {}, 3
    for stage, width in zip(LAYERS, WIDTHS, strict=True):
        for n in stage:
            shapes[f"features.{n}.weight"] = (width, channels, 3, 3)
            shapes[f"features.{n}.bias"] = (width,)
            channels = width
    return shapes | {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(WIDTHS)}


def lpips(weights: LPIPSWeights, a, b, dtype=jnp.float32):
    """Equation (1): frames [B, T, H, W, C] in [-1, 1] -> float32 [B, T], or [N, H, W, C] -> [N].

    Args:
        weights: from ``lpips_weights``.
        a, b: of one shape; C is 3, or 1 (grey, shown as three equal channels).
        dtype: of the convolutions.

    Raises:
        UserError: shapes that differ, another channel count, or frames of less than 16 x 16 pixels.
    """
    a, b = _frames(a), _frames(b)
    _same(a, b)
    total = 0.0
    fold = (-1, *a.shape[-3:])
    maps = (vgg16(weights, x.reshape(fold), dtype) for x in (a, b))
    for lin, x, y in zip(weights.lins, *maps, strict=True):
        total += jnp.mean(jnp.sum(lin * (_unit(x) - _unit(y)) ** 2, axis=-1), axis=(1, 2))
    return total.reshape(a.shape[:-3])


def vgg16(weights: LPIPSWeights, frames, dtype=jnp.float32) -> list:
    """What ``lpips`` compares: frames [N, H, W, 3] in [-1, 1] -> the five maps [N, h, w, channels], float32."""
    x = ((frames - jnp.float32(SHIFT)) / jnp.float32(SCALE)).astype(dtype)
    convs, maps = iter(zip(weights.kernels, weights.biases, strict=True)), []
    for stage in LAYERS:
        if maps:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for _ in stage:
            kernel, bias = next(convs)
            x = jax.lax.conv_general_dilated(
                x, kernel.astype(dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + bias.astype(dtype))
        maps.append(x.astype(jnp.float32))
    return maps


def _frames(x):
    x = jnp.asarray(x, jnp.float32)
    if x.ndim not in (4, 5) or x.shape[-1] not in (1, 3):
        raise UserError(f"LPIPS compares frames [B, T, H, W, C] or [N, H, W, C] with C 1 or 3, not {x.shape}")
    if min(x.shape[-3:-1]) < 16:
        raise UserError(f"frames of {x.shape[-3]} x {x.shape[-2]} pixels vanish in VGG16: LPIPS needs 16 x 16 or more")
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def _same(a, b):
    if a.shape != b.shape:
        raise UserError(f"the two sides have the shapes {a.shape} and {b.shape}: they must be equal")


def _unit(x):
    """To length 1 over channels, with a gradient where all are zero."""
    return x / (jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-20)) + 1e-10)


def feature_distance(a, b):
    """Equation (4) for frames, (7) for series; float32, differentiable everywhere, zero for equal inputs only.

    Args:
        a, b: reconstruction and target (they are not interchangeable), of one shape: frames [B, T, H, W, C] or
            [N, H, W, C] of any size, or series [B, T, C]; any channels.

    Returns:
        [B, T], or [N].
    """
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    _same(a, b)
    if a.ndim not in (3, 4, 5) or 0 in a.shape:
        raise UserError(f"a distance is of [B, T, C], [N, H, W, C] or [B, T, H, W, C], none empty, not {a.shape}")
    if a.ndim == 3:
        return _series_distance(a - b, b)
    fold = (-1, *a.shape[-3:])
    planes = [jnp.moveaxis(x.reshape(fold), -1, 1) for x in (a - b, b)]  # [N, C, H, W]: rows are what a CPU is fast at
    return _frame_distance(*planes).reshape(a.shape[:-3])


def _frame_distance(e, b):
    """[N, C, H, W] -> [N]; filters are linear, so the difference is filtered instead of both sides."""
    by_plane = (1, 2, 3)
    level, structure, scales = jnp.mean(_magnitude(e), axis=by_plane), 0.0, 0
    while not scales or (scales < SCALES and min(e.shape[2:]) >= SMALLEST):
        strength = sum(_magnitude(response) for response in _responses(e)) / 8
        structure += jnp.mean(strength / _contrast(b), axis=by_plane)
        scales, e, b = scales + 1, _halve(e), _halve(b)
    return level + structure / scales


@jax.custom_jvp
def _magnitude(x):
    """Equation (2), in a form that does not cancel for small x; its derivative by hand costs a third of JAX's own."""
    return x * x / (jnp.sqrt(x * x + ROUND**2) + ROUND)


@_magnitude.defjvp
def _magnitude_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _magnitude(x), dx * (x * jax.lax.rsqrt(x * x + ROUND**2))


def _bank():
    """Five taps each: G, of sum 1, and the factors of filters of length 1, of sum 0; see ``_responses``."""
    n = np.arange(-2, 3)
    g = np.exp(-0.5 * n**2)
    g /= g.sum()
    first, second = n * g, (n**2 - np.sum(n**2 * g)) * g
    one, two = np.linalg.norm(np.outer(first, g)), np.linalg.norm(np.outer(second, g))
    return {"smooth": g, "first": first / one, "second": second / two, "mixed": first / two**0.5}


BANK = _bank()


def _responses(x):
    """The eight filters on planes [N, C, H, W]: five products of a row and a column, steered to four directions
    (Freeman & Adelson 1991)."""
    smooth = _rows(x, "smooth")
    x1, x2 = _columns(_rows(x, "first"), "smooth"), _columns(_rows(x, "second"), "smooth")
    y1, y2 = _columns(smooth, "first"), _columns(smooth, "second")
    xy, half = _columns(_rows(x, "mixed"), "mixed"), 0.5 * (x2 + y2)
    return x1, y1, (x1 + y1) * 0.5**0.5, (x1 - y1) * 0.5**0.5, x2, y2, half + xy, half - xy


def _contrast(b):
    """Equation (3) on planes [N, C, H, W]."""
    detail = b - _columns(_rows(b, "smooth"), "smooth")
    return jnp.sqrt(_columns(_rows(detail**2, "smooth"), "smooth") + FLOOR**2)


def _rows(x, name):
    """Planes [N, C, H, W] filtered along their rows. On CPU a product with a band matrix is twice as fast as shifted
    sums or a convolution of one channel, and compiles sooner; at 512 pixels it costs a twentieth of what VGG16 does."""
    return jnp.matmul(x, _band(name, x.shape[3]), precision="highest")


def _columns(x, name):
    return jnp.matmul(_band(name, x.shape[2]).T, x, precision="highest")


@functools.lru_cache(maxsize=256)
def _band(name, size):
    """[size, size]: x @ band is x filtered; the nearest value stands outside."""
    band, middle = np.zeros((size, size), np.float32), np.arange(size)
    for offset, weight in enumerate(BANK[name], -2):
        np.add.at(band, (np.clip(middle + offset, 0, size - 1), middle), weight)
    return band


def _halve(x):
    """The mean of every 2 x 2 values of [N, C, H, W]; an odd last row or column is left out."""
    height, width = (size // 2 for size in x.shape[2:])
    if not height or not width:
        return x
    x = x[:, :, : 2 * height, : 2 * width]
    return jnp.mean(x.reshape(*x.shape[:2], height, 2, width, 2), axis=(3, 5))


def _series_distance(e, b):
    """[B, T, C] -> [B, T]."""
    motion, spans = 0.0, [s for s in SPANS if s < max(e.shape[1], 2)]
    for s in spans:
        contrast = jnp.sqrt(_past_sum(_change(b, s) ** 2, 2 * s) / (2 * s) + FLOOR**2)
        motion += jnp.mean(_magnitude(_change(e, s)) / contrast, axis=-1)
    return jnp.mean(_magnitude(e), axis=-1) + motion / len(spans)


def _change(x, s):
    """Equation (5)."""
    recent = _past_sum(x, s)
    return (recent - _later(recent, s)) * (2 * s) ** -0.5


def _past_sum(x, count):
    """The sum of each frame and the count - 1 before it."""
    return sum(_later(x, i) for i in range(count))


def _later(x, s):
    """x moved s frames back in time, its first frame before itself."""
    return jnp.pad(x, ((0, 0), (s, 0), (0, 0)), mode="edge")[:, : x.shape[1]] if s else x
