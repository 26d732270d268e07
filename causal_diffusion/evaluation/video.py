"""Video metrics, reported by frame so that drift shows as a curve.

Pixel metrics compare two videos of one shape [B, T, H, W, C] and return [B, T]:

* `psnr`   10 log10(data_range^2 / mse)
* `ssim`   Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
  similarity", IEEE TIP 2004
* `lpips`  Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018

Distribution metrics compare two sets of clips by the Frechet distance between their features (`distributions`), for
video Unterthiner et al., "Towards accurate generative models of video", 2018.

A number from a network means nothing without the network and the protocol: those functions take the network
as a required argument `embed` and return a `Measurement` that names both. Everything is computed on the
host in numpy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from causal_diffusion.evaluation.distributions import frechet_distance


@dataclass(frozen=True, eq=False)
class Measurement:
    """A number, or a curve, and how it was measured.

    `value`: a float, or an array whose axes the function that made it documents.
    `protocol`: one line naming metric, network, clips, frames and resolution. Report it with the value.
    """

    value: float | np.ndarray
    protocol: str

    def __str__(self):
        values = np.array2string(np.asarray(self.value), precision=4, separator=", ")
        return f"{values} ({self.protocol})"


def psnr(a, b, data_range: float = 2.0) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each frame: videos [B, T, H, W, C] -> [B, T].

    `data_range` is the distance between the darkest and the brightest value (2 for [-1, 1]).
    The mean squared error is taken over H, W and C. Equal frames give +inf.
    """
    a, b = _pair(a, b)
    _positive(data_range, "data_range")
    mse_BT = np.mean(np.square(a - b), axis=(2, 3, 4))
    with np.errstate(divide="ignore"):
        return 20.0 * np.log10(data_range) - 10.0 * np.log10(mse_BT)


def ssim(a, b, data_range: float = 2.0, window: int = 11, sigma: float = 1.5, k1: float = 0.01,
         k2: float = 0.03) -> np.ndarray:
    """Structural similarity of each frame: videos [B, T, H, W, C] -> [B, T], 1 for equal frames.

    Wang et al. 2004, equation 13, with their Gaussian window (11 pixels, sigma 1.5). Windows lie wholly
    inside the frame; the map is averaged over positions, then over channels. For frames smaller than the
    window, the window shrinks to the largest odd size that fits, sigma stays.
    """
    a, b = _pair(a, b)
    _positive(data_range, "data_range")
    _positive(sigma, "sigma")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; it must be odd and at least 1")
    smallest = min(a.shape[2:4])
    window = min(window, smallest - (smallest + 1) % 2)
    offsets = np.arange(window) - window // 2
    kernel = np.exp(-0.5 * np.square(offsets / sigma))
    kernel /= kernel.sum()
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2

    def similarity(x_THWC, y_THWC):
        mx, my = _blur(x_THWC, kernel), _blur(y_THWC, kernel)
        # Central moments under the window's weights: E[x^2] - E[x]^2 (Wang et al., equation 15).
        vx = _blur(x_THWC * x_THWC, kernel) - mx * mx
        vy = _blur(y_THWC * y_THWC, kernel) - my * my
        cov = _blur(x_THWC * y_THWC, kernel) - mx * my
        index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        return index.mean(axis=(1, 2, 3))

    return np.stack([similarity(x, y) for x, y in zip(a, b, strict=True)])   # clip by clip: memory


def lpips(a, b, embed: Callable, weights: Sequence | None = None, network: str | None = None,
          batch: int = 16) -> Measurement:
    """Learned perceptual distance of each frame: videos [B, T, H, W, C] -> Measurement of [B, T].

    Zhang et al. 2018, equation 1: the feature maps are normalised to unit length over channels, their squared
    difference is weighted by channel, averaged over positions and summed over layers.

    `embed(frames[N, H, W, C]) -> list of maps [N, h, w, c]`, one per layer. It gets the frames as they are
    and does its own input scaling. `weights`: one array [c] per layer (the published "lin" weights);
    without them every channel weighs 1. `network` names the network in the protocol (default: the
    function's name). `embed` is called on at most `batch` frames at a time.
    """
    a, b = _pair(a, b, dtype=np.float32)
    clips, frames = a.shape[:2]
    a_NHWC, b_NHWC = (x.reshape(-1, *x.shape[2:]) for x in (a, b))
    distances, layers = [], 0
    for part in _slices(len(a_NHWC), batch):
        maps_a, maps_b = _feature_maps(embed, a_NHWC[part]), _feature_maps(embed, b_NHWC[part])
        layers = len(maps_a)
        if weights is not None and len(weights) != layers:
            raise ValueError(f"{len(weights)} weights were given for the {layers} layers that embed returns")
        total = 0.0
        for layer, (x, y) in enumerate(zip(maps_a, maps_b, strict=True)):
            square = np.square(_unit_length(x) - _unit_length(y))
            if weights is not None:
                weight = np.asarray(weights[layer], np.float32).reshape(-1)
                if weight.shape[0] != x.shape[-1]:
                    raise ValueError(f"weights[{layer}] has {weight.shape[0]} entries; layer {layer} has "
                                     f"{x.shape[-1]} channels")
                square = square * weight
            total = total + square.sum(axis=-1, dtype=np.float64).mean(axis=(1, 2))
        distances.append(total)
    how = f"{layers} layers, {'unweighted' if weights is None else 'linear weights'}"
    protocol = f"LPIPS, network {_name(embed, network)} ({how}), {clips} clips of {_size(a)}"
    return Measurement(np.concatenate(distances).reshape(clips, frames), protocol)


def fvd(real, fake, embed: Callable, network: str | None = None, window: int | None = None,
        stride: int | None = None, batch: int = 16) -> Measurement:
    """Frechet video distance between two sets of clips [N, T, H, W, C] and [M, T, H, W, C].

    `embed(video[B, T, H, W, C]) -> [B, F]` (for the published FVD: an I3D network and its own resizing).
    Without `window` the whole clips are embedded and the value is a float. With `window` = w the value is a
    curve: entry k compares frames k * stride ... k * stride + w - 1 of both sets, so drift shows; `stride`
    is w unless given.
    """
    real, fake = _two_sets(real, fake)
    frames = real.shape[1]
    width = frames if window is None else window
    step = width if stride is None else stride
    if not 1 <= width <= frames:
        raise ValueError(f"window is {width}; the clips have {frames} frames")
    _positive(step, "stride")
    curve = []
    for start in range(0, frames - width + 1, step):
        part = np.s_[:, start:start + width]
        feats_real, feats_fake = _embed_all(embed, real[part], batch), _embed_all(embed, fake[part], batch)
        curve.append(frechet_distance(feats_real, feats_fake))
    protocol = (f"FVD, network {_name(embed, network)}, {len(real)} real and {len(fake)} fake clips "
                f"of {_size(real)}")
    if window is None:
        return Measurement(curve[0], protocol)
    return Measurement(np.array(curve), f"{protocol}, windows of {width} frames every {step}")


def frechet_by_frame(real, fake, embed: Callable, network: str | None = None, batch: int = 64) -> Measurement:
    """Frechet distance between the sets of t-th frames, for each t: [N, T, H, W, C], [M, T, H, W, C] -> [T].

    `embed(frames[B, H, W, C]) -> [B, F]` (with Inception features each entry is an FID).
    """
    real, fake = _two_sets(real, fake)
    curve = [frechet_distance(_embed_all(embed, real[:, t], batch), _embed_all(embed, fake[:, t], batch))
             for t in range(real.shape[1])]
    return Measurement(np.array(curve), f"Frechet distance by frame, network {_name(embed, network)}, "
                                        f"{len(real)} real and {len(fake)} fake clips of {_size(real)}")


def _pair(a, b, dtype=np.float64):
    a, b = np.asarray(a, dtype), np.asarray(b, dtype)
    if a.ndim != 5 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"two videos of one shape [B, T, H, W, C] are needed; got {a.shape} and {b.shape}")
    return a, b


def _two_sets(real, fake):
    real, fake = np.asarray(real), np.asarray(fake)
    if real.ndim != 5 or fake.ndim != 5 or real.shape[1:] != fake.shape[1:] or 0 in real.shape:
        raise ValueError("two sets of clips [N, T, H, W, C] and [M, T, H, W, C] are needed; got "
                         f"{real.shape} and {fake.shape}")
    return real, fake


def _positive(number, name):
    if not number > 0:
        raise ValueError(f"{name} is {number}; it must be above 0")


def _blur(x_THWC, kernel):
    """Separable correlation over H and W, valid positions only."""
    height, width = (size - len(kernel) + 1 for size in x_THWC.shape[1:3])
    x_THWC = sum(weight * x_THWC[:, i:i + height] for i, weight in enumerate(kernel))
    return sum(weight * x_THWC[:, :, i:i + width] for i, weight in enumerate(kernel))


def _slices(count, size):
    _positive(size, "batch")
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _embed_all(embed, inputs, batch):
    parts = []
    for part in _slices(len(inputs), batch):
        features = np.asarray(embed(inputs[part]), np.float64)
        if features.ndim != 2 or len(features) != part.stop - part.start:
            raise ValueError(f"embed must return [B, F]; for an input of {inputs[part].shape} it returned "
                             f"{features.shape}")
        parts.append(features)
    return np.concatenate(parts)


def _feature_maps(embed, frames_NHWC):
    maps = [np.asarray(m, np.float32) for m in embed(frames_NHWC)]
    if not maps or any(m.ndim != 4 or len(m) != len(frames_NHWC) for m in maps):
        raise ValueError("embed must return a list of maps [N, h, w, c]; for an input of "
                         f"{frames_NHWC.shape} it returned {[m.shape for m in maps]}")
    return maps


def _unit_length(maps_NHWC, eps=1e-10):
    return maps_NHWC / (np.sqrt(np.square(maps_NHWC).sum(axis=-1, keepdims=True)) + eps)


def _name(embed, network):
    name = network or getattr(embed, "__name__", type(embed).__name__)
    return "without a name" if name == "<lambda>" else name


def _size(video_BTHWC):
    frames, height, width, channels = video_BTHWC.shape[1:]
    return f"{frames} frames at {height}x{width}x{channels}"
