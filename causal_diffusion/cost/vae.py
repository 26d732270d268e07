"""What an autoencoder costs for a piece of a clip that is neither its beginning nor waits for anything.

A convolution of k taps from C to F channels costs 2 k C F per position that it makes, zeros at the borders counted; in
a stream a piece brings its own frames and reads the last ones of the piece before (``nn.causal_conv``): these are the
bytes read and written, beside the weights. Each form is walked as its network goes (``nn.video_vae``, ``motion_vae``,
``causal_tokenizer``, ``diffusion_decoder``): ``x`` below is the shape of what flows, (frames, height, width, channels).
Norms and activations do not count, see ``count``; *other* are depth-wise convolutions and the nearest code of 'vq'.
"""

import math

import numpy as np

from causal_diffusion.cost.count import Cost


def vae_decode_cost(vae, latents_shape: tuple[int, ...]) -> Cost:
    """Of decoding latents [B, L, *space', Z], a later piece of a clip, with a ``nn.vae.VAE``."""
    return _of(vae, "decode", latents_shape)


def vae_encode_cost(vae, shape: tuple[int, ...]) -> Cost:
    """Of encoding frames [B, T, *space, C], a later piece of a clip, with a ``nn.vae.VAE``."""
    return _of(vae, "encode", shape)


def _of(vae, way, shape):
    c = vae.config.sizes
    walk = Walk(shape[0], np.dtype(c.compute_dtype).itemsize)
    FORMS[vae.config.form][way](walk, c, tuple(shape[1:]))
    return walk.cost


class Walk:
    """Adds up what a piece of ``batch`` clips meets on its way.

    wide: bytes of the dtype that is computed in. step: width of a diffusion step's embedding, 0 without.
    """

    def __init__(self, batch: int, wide: int):
        self.batch, self.wide, self.step, self.cost = batch, wide, 0, Cost()

    def conv(self, x, features: int, kernel=(), stride=1, time_stride=1, dilation=1, single=False):
        """A convolution of (time, *space) taps, or a Linear layer; causal in time. Returns the shape behind it."""
        T, *space, C = x
        taps, size = math.prod(kernel), 4 if single else self.wide
        out = (T // time_stride, *(-(-n // stride) for n in space), features)
        history = (kernel[0] - 1) * dilation + 1 - time_stride if kernel else 0
        kept = self.batch * history * math.prod(space) * C * size
        self.cost += Cost(
            linear=2 * self.batch * math.prod(out[:-1]) * taps * C * features,
            weights=(taps * C + 1) * features * size, read=kept, written=kept,
        )  # fmt: skip
        return out

    def depthwise(self, x, kernel):
        """A convolution of every channel by itself, of the same size."""
        taps, kept = math.prod(kernel), self.batch * (kernel[0] - 1) * math.prod(x[1:]) * self.wide
        self.cost += Cost(other=2 * self.batch * math.prod(x) * taps, weights=(taps + 1) * x[-1] * self.wide,
                          read=kept, written=kept)  # fmt: skip
        return x

    def attention(self, queries: int, keys: int, width: int):
        """Scores and sums of values, in every sample."""
        self.cost += Cost(attention=4 * self.batch * queries * keys * width)


def _video_taps(c, space=3):
    return (c.time_kernel, space, space)


def _res(walk, c, x, features):
    h = walk.conv(walk.conv(x, features, _video_taps(c)), features, _video_taps(c))
    if x[-1] != features:
        walk.conv(x, features)
    return h


def _video_middle(walk, c, x):
    x = _res(walk, c, x, x[-1])
    frames, *space, C = x
    walk.conv(x, 3 * C)
    walk.attention(frames * math.prod(space), math.prod(space), C)
    return _res(walk, c, walk.conv(x, C), C)


def _video_encode(walk, c, x):
    x = walk.conv((x[0], *(n // c.patch for n in x[1:3]), x[3] * c.patch**2), c.base, _video_taps(c))
    for i, multiplier in enumerate(c.multipliers):
        for _ in range(c.blocks):
            x = _res(walk, c, x, c.base * multiplier)
        if i < len(c.time_down):
            x = walk.conv(x, x[-1], (1, 3, 3), stride=2)
            if c.time_down[i]:
                x = walk.conv(x, x[-1], (3, 1, 1), time_stride=2)
    x = walk.conv(_video_middle(walk, c, x), 2 * c.latent, _video_taps(c), single=True)
    return walk.conv(x, 2 * c.latent, single=True)


def _video_decode(walk, c, x):
    widths = [m * (c.decoder_base or c.base) for m in reversed(c.multipliers)]
    x = walk.conv(walk.conv(x, c.latent, single=True), widths[0], _video_taps(c))
    x = _video_middle(walk, c, x)
    for i, width in enumerate(widths):
        for _ in range(c.decoder_blocks or c.blocks + 1):
            x = _res(walk, c, x, width)
        if i < len(c.time_down):
            if c.time_down[-1 - i]:
                walk.conv(x, 2 * width, (3, 1, 1))
                x = (2 * x[0], *x[1:])
            x = walk.conv((x[0], 2 * x[1], 2 * x[2], width), width // 2, (1, 3, 3))
    return walk.conv(x, c.channels * c.patch**2, _video_taps(c), single=True)


def _motion_blocks(walk, c, x):
    for i in range(c.depth):
        x = walk.conv(walk.conv(x, c.width, (3,), dilation=c.dilation_growth**i), c.width)
    return x


def _motion_encode(walk, c, x):
    x = walk.conv(x, c.width, (3,))
    for _ in range(c.stages):
        x = _motion_blocks(walk, c, walk.conv(x, c.width, (4,), time_stride=2))
    return walk.conv(walk.conv(x, c.width, (3,)), 2 * c.latent)


def _motion_decode(walk, c, x):
    x = walk.conv(walk.conv(x, c.width), c.width, (3,))
    for _ in range(c.stages):
        x = _motion_blocks(walk, c, x)
        x = walk.conv((2 * x[0], c.width), c.width, (3,))
    return walk.conv(walk.conv(x, c.width, (3,)), c.channels, (3,))


def _mlp(walk, c, x):
    hidden = 8 * c.width // 3
    walk.conv(x, 2 * hidden)
    return walk.conv((*x[:-1], hidden), c.width)


def _projections(walk, c, x):
    for features in (c.width, 2 * c.width, c.width):
        walk.conv(x, features)


def _in_space(walk, c, x):
    frames, h, w, _ = x
    alone = Walk(1, 4)  # the bias of positions is made once, in float32
    offsets = ((2 * h - 1) * (2 * w - 1),)
    for inputs, outputs in ((2, c.width), (c.width, c.width), (c.width, c.heads)):
        alone.conv((*offsets, inputs), outputs)
    walk.cost += alone.cost
    for _ in range(c.depth):
        _projections(walk, c, x)
        walk.attention(frames * h * w, h * w, c.width)
        _mlp(walk, c, x)
    return x


def _in_time(walk, c, x):
    frames, h, w, _ = x
    kept = 2 * walk.batch * (c.window - 1) * h * w * c.width * walk.wide
    for _ in range(c.depth):
        walk.depthwise(x, (3, 3, 3))
        _projections(walk, c, x)
        walk.attention(frames * h * w, c.window - 1 + frames, c.width)
        walk.cost += Cost(read=kept, written=kept)
        _mlp(walk, c, x)
    return x


def _tokenizer_encode(walk, c, x):
    t, p, _ = c.patch
    x = walk.conv((x[0] // t, x[1] // p, x[2] // p, t * p * p * x[3]), c.width)
    x = _in_time(walk, c, _in_space(walk, c, x))
    x = walk.conv(x, (1 + (c.quantise == "none")) * c.latent, single=True)
    if c.quantise == "vq":
        walk.cost += Cost(other=2 * walk.batch * math.prod(x[:-1]) * c.latent * c.codes)


def _tokenizer_decode(walk, c, x):
    x = _in_space(walk, c, _in_time(walk, c, walk.conv(x, c.width)))
    return walk.conv(x, math.prod(c.patch) * c.channels, single=True)


def _resnet(walk, x, features, size=3):
    h = walk.conv(x, features, (3, size, size))
    if walk.step:
        walk.conv((1, walk.step), features)
    h = walk.conv(h, features, (3, 3, 3))
    if x[-1] != features:
        walk.conv(x, features)
    return h


def _shrunk(walk, x, space, time):
    if space:
        x = walk.conv(x, x[-1], (1, 3, 3), stride=2)
    return walk.conv(x, x[-1], (3, 1, 1), time_stride=2) if time else x


def _grown(walk, x, features, size, space, time):
    if space:
        x = walk.conv((x[0], 2 * x[1], 2 * x[2], x[3]), features, (1, size, size))
    if time:
        walk.conv(x, 2 * x[-1])
        x = (2 * x[0], *x[1:])
    return x


def _cdt_encode(walk, c, x):
    x = (x[0], *(n // c.patch for n in x[1:3]), x[3] * c.patch**2)
    for i, (times, *halves) in enumerate(zip(c.multipliers, *c.halves, strict=True)):
        x = _shrunk(walk, _resnet(walk, x, c.base * times, 3 if i else c.wide), *halves)
    walk.conv(x, 2 * c.latent, single=True)
    for times in reversed(c.multipliers[:-1]):
        x = _resnet(walk, x, c.base * times)
    return walk.conv(x, 2 * c.latent, single=True)


def _cdt_decode(walk, c, z):
    walk.conv(z, c.base * c.multipliers[-1])
    x, features = walk.conv(z, c.base * c.multipliers[0]), []
    for times in c.multipliers[1:]:
        x = _resnet(walk, x, c.base * times)
    for i in reversed(range(len(c.multipliers))):
        space, time = (flags[i] for flags in c.halves)
        out = c.base * c.multipliers[i - 1] if i else c.finest
        x = _resnet(walk, x, out if i else x[-1])
        if not space and not i:
            x = _resnet(walk, x, out)
        x = _grown(walk, x, out, c.up, space, time)
        features.append(x)
    features = features[::-1]
    for _ in range(c.steps):
        _unet(walk, c, (*features[0][:-1], c.channels * c.patch**2), [each[-1] for each in features])


def _level(walk, c, x, features, size=3, blocks=0):
    for i in range(blocks or c.blocks):
        x = _resnet(walk, x, features, 3 if i else size)
    frames, h, w, C = x
    walk.conv(x, 3 * C)
    walk.attention(frames * h * w, C, C)  # linear: keys with values, then queries with these
    return walk.conv(x, C)


def _unet(walk, c, x, context):
    levels = c.levels
    widths = [width for width, _, _ in levels]
    outputs, whole, skips = x[-1], x, []
    walk.step = widths[0]
    walk.conv(walk.conv((1, 1), 4 * widths[0]), widths[0])
    for i, (features, space, time) in enumerate(levels):
        if i < len(context):
            x = (*x[:-1], x[-1] + context[i])
        x = _level(walk, c, x, features, 3 if i else c.wide)
        skips.append(x)
        x = _shrunk(walk, x, space, time)
    x = _level(walk, c, x, widths[-1], blocks=1)
    x = _resnet(walk, x, widths[-1])
    for i in reversed(range(1, len(levels))):
        skip, (features, space, time) = skips[i], levels[i - 1]
        x = _level(walk, c, (x[0], *skip[1:3], x[-1] + skip[-1]), features)
        x = _grown(walk, x, features, c.up, space, time)
    walk.conv((*whole[:-1], x[-1]), outputs, (3, c.wide, c.wide))


FORMS = {  # form -> {way: walks a piece [T, *space, C] through the network with its sizes}
    "video": {"encode": _video_encode, "decode": _video_decode},
    "motion": {"encode": _motion_encode, "decode": _motion_decode},
    "tokenizer": {"encode": _tokenizer_encode, "decode": _tokenizer_decode},
    "cdt": {"encode": _cdt_encode, "decode": _cdt_decode},
}
