"""Training an NFD-310M-shaped system by teacher forcing: the share of the peak that visible operations reach.

Sixteen frames of 336 tokens and their clean copies, AdamW, bfloat16, blocks recomputed in the backward pass: what is
computed again does not count.
"""

import time

import jax
import numpy as np

from benchmarks import costs
from benchmarks.cpu.training import Ours
from benchmarks.gpu.streams import on_device, time_figure
from benchmarks.paired import median
from benchmarks.rows import Figure
from benchmarks.systems import config_hash
from causal_diffusion.config import freeze, load_config
from causal_diffusion.cost import training_cost
from causal_diffusion.parallel.mesh import AXES
from causal_diffusion.recipe import build
from causal_diffusion.training.step import lower_step

BASE = {
    "data.source": "own", "data.frames": 16, "layout.kind": "teacher_forcing", "model.remat": "full",
    "model.layers": "scan", "train.batch": 8, "cache.commit_level": 0.0,
}  # fmt: skip
TINY = {"data.height": 2, "data.width": 2, "model.width": 16, "model.depth": 2, "model.heads": 2, "model.mlp": 32}
SIZES = {
    "full": freeze(load_config("nfd", BASE)),
    "tiny": freeze(load_config("nfd", BASE | TINY | {"data.frames": 4, "train.batch": 2})),
}
WARM = 3


def run(pairs: int, size: str) -> dict:
    """Seconds per step, and MFU."""
    config = on_device(SIZES[size], size)
    ours = Ours(config)
    seconds = np.zeros(pairs)
    for i in range(-WARM, pairs):
        begun = time.perf_counter()
        ours.step()
        if i >= 0:
            seconds[i] = time.perf_counter() - begun
    cost = training_cost(build(config))
    figures = [time_figure("a step", seconds, costs.least_seconds(cost))]
    if rate := costs.share_of_peak(cost.flops, median(seconds)[0]):
        figures.insert(0, Figure("MFU on visible FLOPs", 100 * rate, "%", asked=("value", ">=", 40.0), limit=80.0,
                                 share=rate / 0.8))  # fmt: skip
    return {"figures": figures, "config": config_hash(config), "flops": cost.flops}


def abstract() -> list:
    """The step at full size, lowered for a GPU without an array."""
    mesh = jax.sharding.AbstractMesh((1,) * len(AXES), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
    lowered = lower_step(build(SIZES["full"]), mesh, platforms=("cuda",))
    return jax.tree.leaves(lowered.out_info[1])
