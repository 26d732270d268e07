"""Streams of single frames against PyTorch with a ring cache in place, and with a concatenating one.

What is timed is what a user calls, ``next(stream)``, up to a NumPy array. Noise is drawn on both sides inside of it.
"""

import jax
import numpy as np

from benchmarks import paired
from benchmarks.rows import Figure
from benchmarks.systems import STREAM, config_hash, network, random_params, random_pipeline, squares, system
from causal_diffusion.config import override
from causal_diffusion.cost import step_cost
from causal_diffusion.nn.embedders import patchify
from causal_diffusion.recipe import build
from causal_diffusion.streaming.passes import ENTER
from causal_diffusion.streaming.state import sample_keys

SMALL = {
    "full": system(STREAM, squares(8, 4), network(384, 8, 6), {"layout.window": 16, "data.frames": 17}),
    "tiny": system(STREAM, squares(2, 2), network(16, 2, 2), {"layout.window": 3, "data.frames": 4}),
}
MOTION = {
    "full": system(STREAM, squares(2, 4), network(256, 6, 4), {"layout.window": 50, "data.frames": 51}),
    "tiny": system(STREAM, squares(1, 2), network(16, 2, 2), {"layout.window": 3, "data.frames": 4}),
}
PASSES = {"4 + 1": 4, "1 + 1": 1}
CHECKED = 3  # frames that are compared after the ring is full


def compare(config, pairs: int, caches=("ring", "concatenating")) -> tuple[dict, float, float]:
    """Times a stream and its peers once the ring is full.

    Returns:
        (seconds per frame of 'ours' and of each of ``caches``, largest difference of outputs, FLOPs of a frame).
    """
    from benchmarks.peers.streaming import Stream

    pipe, params = random_pipeline(config), random_params(build(config))
    recipe, rollout, stream = pipe.recipe, pipe.rollout, pipe.stream(seed=0)
    count = recipe.slots + CHECKED

    def tokens(x):
        return np.asarray(patchify(x, recipe.model.config.patch))

    draw = jax.jit(lambda frame: rollout.noise(sample_keys(0, 1), frame, ENTER, 1))
    noises = [tokens(draw(np.full(1, frame, np.int32))) for frame in range(count)]
    ours = tokens(np.concatenate([stream.next() for _ in range(count)], axis=1))
    peers = {cache: Stream(recipe, params, cache) for cache in caches}
    differences = [
        paired.difference(ours, np.concatenate([peer.next(noise) for noise in noises], axis=1), cache)
        for cache, peer in peers.items()
    ]
    sides = {"ours": stream.next} | {cache: peer.next for cache, peer in peers.items()}
    return paired.interleave(sides, pairs), max(differences), step_cost(recipe).flops


def small(pairs: int, size: str) -> dict:
    """d = 384, 8 layers, 64 tokens a frame, 16 frames of the past, 4 passes and the commit."""
    config = override(SMALL[size], {"schedule.steps": 4})
    seconds, difference, flops = compare(config, pairs)
    figures = [
        Figure.of("PyTorch, ring in place / ours", paired.ratio(seconds, "ring"), asked=("low", ">=", 1.0)),
        Figure.of("PyTorch, concatenating / ours", paired.ratio(seconds, "concatenating"), asked=("value", ">=", 1.25)),
        *(Figure(f"{name}, per frame", 1e3 * float(np.median(times)), "ms") for name, times in seconds.items()),
    ]
    return {"figures": figures, "config": config_hash(config), "flops": flops, "difference": difference}


def motion(pairs: int, size: str) -> dict:
    """d = 256, 6 layers, 4 tokens a frame, 50 frames of the past."""
    figures, hashes, flops, differences = [], [], [], []
    for name, steps in PASSES.items():
        config = override(MOTION[size], {"schedule.steps": steps})
        seconds, difference, count = compare(config, pairs)
        for cache in ("ring", "concatenating"):
            asked = ("value", ">=", 1.2) if cache == "ring" else None
            ratio = paired.ratio(seconds, cache)
            figures.append(Figure.of(f"{name} passes: PyTorch, {cache} / ours", ratio, asked=asked))
        figures.append(Figure(f"{name} passes: ours, per frame", 1e3 * float(np.median(seconds["ours"])), "ms"))
        hashes.append(config_hash(config))
        flops.append(count)
        differences.append(difference)
    return {"figures": figures, "config": " ".join(hashes), "flops": flops, "difference": max(differences)}
