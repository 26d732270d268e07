"""A cache against computing the whole context anew in every pass, and whether the time of a frame stays what it is.

Three sides hold the same network in Wan 2.1's form, with the same weights: our stream with its cache (4 passes and the
commit, of one frame each); our network on all frames at once, nothing hidden, 4 passes; diffusers' the same. The last
two must agree before anything is timed. Context is counted in frames before the own one.

What is compared with the ratio of times is the ratio of operations, that of 4 passes over all frames to those of the
stream, so a share of 100 % means that the cache saves as much time as work.

Whether it stays what it is, two streams say that take turns, one of which is 2,000 frames older: a slope over one long
stream would be that of the machine, which is faster in one minute than in the next.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import costs, paired
from benchmarks.rows import Figure
from benchmarks.systems import STREAM, config_hash, network, random_params, random_pipeline, squares, system
from causal_diffusion.config import override
from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream
from causal_diffusion.recipe import build

WAN = STREAM | {
    "model.modulation": "table", "model.head": "table", "model.text": 64, "model.text_layers": 2, "text.tokens": 8,
    "schedule.steps": 4,
}  # fmt: skip
SIZES = {
    "full": system(WAN, squares(8, 4), network(256, 4, 4)),
    "tiny": system(WAN, squares(1, 2), network(16, 2, 2)),
}
CONTEXTS = {"full": (16, 32, 64), "tiny": (2, 3)}
LONG = {"full": (16, 2000, 60), "tiny": (2, 20, 3)}  # frames of context, blocks, and then turns
AT_ONCE = 8  # frames of the stream in one time


def with_window(config, frames: int):
    """The system with a context of so many frames."""
    return override(config, {"layout.window": frames, "data.frames": frames + 1})


class Recompute:
    """Our network on all frames at once in every pass."""

    def __init__(self, recipe, params, text, times):
        model = recipe.model
        condition = Condition(text=jnp.asarray(text)[None, None], text_mask=jnp.ones((1, 1, len(text)), bool))
        self.encoded = model.apply({"params": params}, condition, method=model.encode_condition)
        self.params = params

        def denoise(params, encoded, frames):
            T = frames.shape[1]
            everything = StaticMask(np.ones((T, T), bool))
            place = jnp.arange(T, dtype=jnp.int32)[None]
            for t, s in zip(times, times[1:], strict=False):
                stream = Stream(x=frames, t=jnp.full((1, T), t), frame=place)
                out, _ = model.apply({"params": params}, {"own": stream}, encoded, everything)
                frames = frames.at[:, -1].add((s - t) * out["own"][:, -1])
            return frames[:, -1:]

        self.denoise = jax.jit(denoise)

    def next(self, frames):
        """The last frame of ``frames`` [1, T, *space, C], which is noise, denoised."""
        return np.asarray(self.denoise(self.params, self.encoded, frames))


def full_stream(pipe, text, rng):
    """A stream that begins with as many given frames as it remembers."""
    context = rng.standard_normal((pipe.recipe.slots, *pipe.recipe.frame_shape), np.float32)
    stream = pipe.stream(seed=0, cond={"text": text}, context=context)
    stream.take(AT_ONCE)
    return stream


def compared(config, frames: int, pairs: int) -> tuple[list[Figure], float]:
    """Figures at one length of the context, and the largest difference of outputs."""
    from benchmarks.peers.wan import Recompute as Theirs

    config, rng = with_window(config, frames), np.random.default_rng(0)
    recipe, pipe = build(config), random_pipeline(config)
    params = random_params(recipe)
    text = rng.standard_normal((config.text.tokens, config.model.text), np.float32)
    times = np.asarray(recipe.schedule.times(), np.float32)[::-1].tolist()
    given = rng.standard_normal((1, frames + 1, *recipe.frame_shape), np.float32)
    ours, theirs = Recompute(recipe, params, text, times), Theirs(recipe.model.config, params, text, times)
    apart = paired.difference(ours.next(given), theirs.next(given), f"{frames} frames, ours and diffusers'")
    stream = full_stream(pipe, text, rng)
    sides = {
        "ours": lambda: [stream.next() for _ in range(AT_ONCE)],
        "ours, recomputed": lambda: ours.next(given),
        "diffusers' Wan, recomputed": lambda: theirs.next(given),
    }
    seconds = paired.interleave(sides, pairs, lead_in=0)
    seconds["ours"] /= AT_ONCE
    changes = {"cache.kind": "none", "layout.kind": "block_causal"}
    none = build(override(config, changes))
    saved = costs.dense_ratio(none, recipe)
    figures = []
    for name in list(sides)[1:]:
        ratio = paired.ratio(seconds, name)
        more = {"limit": saved, "share": ratio.value / saved, "asked": ("value", ">=", round(0.8 * saved, 3))}
        figures.append(Figure.of(f"{frames} frames: {name} / cached", ratio, **more))
    figures.append(Figure(f"{frames} frames: cached, per frame", 1e3 * float(np.median(seconds["ours"])), "ms"))
    return figures, apart


def run(pairs: int, size: str) -> dict:
    """Every context, then a long stream."""
    config, figures, differences = SIZES[size], [], []
    for frames in CONTEXTS[size]:
        more, apart = compared(config, frames, pairs)
        figures += more
        differences.append(apart)
    window, blocks, turns = LONG[size]
    pipe, rng = random_pipeline(with_window(config, window)), np.random.default_rng(0)
    text = rng.standard_normal((config.text.tokens, config.model.text), np.float32)
    young = full_stream(pipe, text, rng)
    old = young.fork()
    for _ in range(blocks):
        old.next()
    sides = {"young": young, "old": old}
    frames = {name: lambda stream=stream: [stream.next() for _ in range(AT_ONCE)] for name, stream in sides.items()}
    rise = paired.ratio(paired.interleave(frames, turns), "old", "young")
    value, low, high = (100 * (x - 1) for x in rise[:3])
    name = f"time of a frame {blocks:,} frames later, {window} of context: rise"
    figures.append(Figure(name, value, "%", (low, high), rise.pairs, asked=("value", "<=", 2.0)))
    return {"figures": figures, "config": config_hash(config), "difference": max(differences)}
