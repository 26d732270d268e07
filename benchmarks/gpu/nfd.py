"""A stream in the shape of Next-Frame Diffusion's 310 M parameters: one compiled program per frame is the whole game.

Assumed (the paper does not tell them): width 1,024, 16 layers, 336 tokens a frame, 16 frames seen, 4 passes and the
commit. Published: NFD+ 31.1 FPS on one A100, without its autoencoder 12.7 % of that card's limit.
"""

from benchmarks.gpu.streams import (
    full_ring,
    least_seconds,
    on_device,
    random_pipeline,
    rate_figure,
    seconds_per_block,
    time_figure,
    traced,
)
from benchmarks.systems import config_hash
from causal_diffusion.config import freeze, load_config
from causal_diffusion.cost import step_cost

BASE = {"data.source": "own", "schedule.steps": 4, "layout.window": 15, "cache.commit_level": 0.0, "data.frames": 16}
TINY = {"data.height": 2, "data.width": 2, "model.width": 16, "model.depth": 2, "model.heads": 2, "model.mlp": 32}
SIZES = {
    "full": freeze(load_config("nfd", BASE)),
    "tiny": freeze(load_config("nfd", BASE | TINY | {"layout.window": 3, "data.frames": 4})),
}


def run(pairs: int, size: str) -> dict:
    """Frames per second once the ring is full, an action with each."""
    config = on_device(SIZES[size], size)
    pipe = random_pipeline(config)
    seconds = seconds_per_block(full_ring(pipe), pairs)
    least = least_seconds(pipe.recipe)
    passes = config.schedule.steps + 1
    figures = [
        rate_figure("frames, without autoencoder", 1, seconds, least, 200.0),
        time_figure("a pass", seconds / passes, least and least / passes),
    ]
    return {"figures": figures, "config": config_hash(config), "flops": step_cost(pipe.recipe).flops}


def abstract() -> list:
    """The stream at full size, traced without an array."""
    return [traced(SIZES["full"])[1]]
