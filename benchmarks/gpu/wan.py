"""Streams in the shapes of Wan 2.1 1.3B, 480 x 832 pixels: 1,560 tokens a latent frame, 4 passes and the commit.

Published anchors on one H100 (``docs/performance.md``): Self-Forcing 17.0 FPS and 0.69 s chunk-wise, 8.9 FPS and 0.45 s
frame-wise, both with the Wan VAE; FlashDreams 344 ms for 4 of the 5 passes of a chunk at full context.
"""

import time

import jax
import numpy as np

from benchmarks import costs
from benchmarks.gpu.streams import (
    condition,
    full_ring,
    least_seconds,
    on_device,
    random_pipeline,
    rate_figure,
    seconds_per_block,
    time_figure,
    traced,
)
from benchmarks.rows import Figure
from benchmarks.systems import config_hash
from causal_diffusion.config import freeze, load_config, override
from causal_diffusion.cost import step_cost, vae_decode_cost
from causal_diffusion.nn.vae import VAE, Codec, VAEConfig
from causal_diffusion.nn.video_vae import VideoVAEConfig
from causal_diffusion.recipe import build

CHUNKS = 7
CONTEXT = 21  # latent frames that the last chunk of a clip sees, its own included
BASE = {"data.source": "own", "text.tokens": 512, "model.layers": "unrolled", "model.remat": "none", "mesh.fsdp": 1}
SIZES = {
    "full": freeze(load_config("self_forcing", BASE)),
    "tiny": freeze(
        load_config("self_forcing", BASE | {
            "data.height": 4, "data.width": 4, "data.frames": 9, "model.width": 24, "model.depth": 2, "model.heads": 2,
            "model.mlp": 32, "model.text": 8, "text.tokens": 3, "layout.window": 6,
        })
    ),
}  # fmt: skip
VAES = {
    "full": VAEConfig("video", video=VideoVAEConfig()),
    "tiny": VAEConfig("video", video=VideoVAEConfig(base=4, blocks=1, decoder_blocks=1)),
}


def by_frame(config):
    """The same system with blocks of one latent frame."""
    own = config.layout.window + config.layout.block
    return override(config, {"layout.block": 1, "layout.window": own - 1})


def chunk(pairs: int, size: str) -> dict:
    """Milliseconds per chunk of three latent frames once the ring is full."""
    config = on_device(SIZES[size], size)
    pipe = random_pipeline(config)
    seconds = seconds_per_block(full_ring(pipe), pairs)
    flops = step_cost(pipe.recipe).flops
    figures = [time_figure("a chunk, 21 frames seen, 4 + 1 passes", seconds, least_seconds(pipe.recipe), 430.0)]
    figures.append(Figure("products, TFLOP/s", flops / float(np.median(seconds)) / 1e12, ""))
    return {"figures": figures, "config": config_hash(config), "flops": flops}


def end_to_end(pairs: int, size: str) -> dict:
    """Clips of 7 chunks from nothing, decoded: frames per second, the first chunk, the slowest."""
    config, vae = on_device(SIZES[size], size), VAE(VAES[size])
    codec = Codec(vae, jax.jit(vae.init)(jax.random.key(1)))
    pipe, told = random_pipeline(config, codec), condition(config)
    latents = CHUNKS * config.layout.block
    frames = vae.geometry.frames(latents)
    clips, first, each = np.zeros(pairs), np.zeros(pairs), []
    for clip in range(-1, pairs):  # the first one compiles
        begun = time.perf_counter()
        pipe.generate(seed=clip + 1, frames=frames, cond=told)
        whole = time.perf_counter() - begun
        begun = time.perf_counter()
        session = pipe.stream(seed=clip + 1, cond=told)
        session.next()
        opening = time.perf_counter() - begun
        later = seconds_per_block(session, CHUNKS - 1)
        if clip >= 0:
            clips[clip], first[clip] = whole, opening
            each += [opening, *later]
    # Attention grows evenly with what is seen, so the mean over a clip's chunks is the cost at the mean context.
    mean = build(override(config, {"layout.window": (CHUNKS // 2) * config.layout.block})).streaming()
    stream, decode = step_cost(mean), vae_decode_cost(vae, (1, config.layout.block, *mean.frame_shape))
    least = costs.least_seconds(stream, decode)
    least = least and CHUNKS * least
    figures = [
        rate_figure(f"clips of {frames} frames, decoded", frames, clips, least, 26.0),
        time_figure("the first chunk, decoded", first, None, 200.0),
        Figure("99th percentile of a chunk, decoded", 1e3 * float(np.quantile(each, 0.99)), "ms"),
    ]
    return {"figures": figures, "config": config_hash(config), "flops": CHUNKS * (stream + decode).flops}


def framewise(pairs: int, size: str) -> dict:
    """Latent frames one by one, four frames of pixels each."""
    config = by_frame(on_device(SIZES[size], size))
    pipe = random_pipeline(config)
    seconds = seconds_per_block(full_ring(pipe), pairs)
    first = np.zeros(min(pairs, 10))
    for i in range(len(first)):
        begun = time.perf_counter()
        pipe.stream(seed=i, cond=condition(config)).next()
        first[i] = time.perf_counter() - begun
    least = least_seconds(pipe.recipe)
    figures = [
        rate_figure("frames of pixels at full context, without VAE", 4, seconds, least, 30.0),
        time_figure("the first frame, condition encoded", first, None, 60.0),
    ]
    flops = step_cost(pipe.recipe).flops
    return {"figures": figures, "config": config_hash(config), "flops": flops}


def abstract() -> list:
    """Every stream at full size, and the decoder, traced without an array."""
    vae = VAE(VAES["full"])
    config = SIZES["full"]
    latents = jax.ShapeDtypeStruct((1, config.layout.block, 60, 104, 16), np.float32)
    params = jax.eval_shape(vae.init, jax.random.key(0))
    decoded = jax.eval_shape(lambda params, x: vae.decode_piece(params, x)[0], params, latents)
    return [traced(config)[1], traced(by_frame(config))[1], decoded]
