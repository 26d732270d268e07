"""Rolling Forcing: five blocks in flight that all see each other, beside the first frames and the last ones.

Paper:     Liu et al. 2025, arXiv 2509.25161 (on Wan 2.1 1.3B).
Command:   cd.train(cd.load_config("rolling_forcing"), workdir="runs/rolling_forcing", source=latents)
Hardware:  mesh.fsdp >= 8. Not with dense attention, the only one so far: 32,760 tokens ask for 48 GiB of scores per
           layer and clip. 'tiny': two CPU cores, minutes.
Expected:  Paper, distilled: 16 frames per second and 0.76 s of latency on one GPU. The network has Wan 2.1's
           1,418,996,800 parameters.

The six values:
  layout     bidirectional_window, three latent frames per block; 3 first frames and the last 3 beside the window of 15.
  process    linear path, velocity.
  levels     staircase of 5 blocks, shifted by 5.
  schedule   rolling: one row per block, 5 steps at t = 1, 0.952, 0.882, 0.769, 0.556 (1000, 800, .. 200 shifted by 5),
             each to an estimate of x0 that is noised anew. One block leaves per row.
  guidance   none; the student has learned it.
  cache      keys and values; the first frames stand right before the window, a block being committed does not see them
             once they have left its own.
Differs from the paper: trained by diffusion forcing on the mixes of level that a stream meets; its rollouts under DMD,
half of them rolling, are not here, so that 5 steps are rough. A block being committed sees the last 3 frames, in the
paper up to 18. Weights are meant to start from Wan 2.1's (train.init_from). Batch, steps and rate are ours.
"""

import ml_collections

from causal_diffusion.diffusion.schedule import warp
from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=21, height=60, width=104, channels=16)
    c.model = dict(width=1536, depth=30, heads=12, mlp=8960, patch=(1, 2, 2), channels=16, text=4096, text_layers=2)
    c.model.update(modulation="table", head="table", layers="scan", remat="full")
    c.layout = dict(kind="bidirectional_window", block=3, window=3, sinks=3)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="staircase", in_flight=5, shift=5.0)
    c.schedule = dict(steps=5, offset="rolling", in_flight=5)
    c.schedule.update(step_times=warp((1000, 800, 600, 400, 200), shift=5.0))
    c.solver = dict(kind="x0_noise")
    c.cache = dict(kind="kv", positions="adjacent", commit_sinks=False)
    c.train = dict(steps=3_000, batch=64, lr=1e-5, warmup=300, betas=(0.9, 0.999), ema=0.99)
    c.evaluate = dict(clips=16, context=3, frames=60)
    c.log = dict(every=100, evaluate=1_000, checkpoint=500)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=14)
        c.layout.update(block=2, window=2, sinks=2)
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"rolling_forcing has no variant {variant!r}; there is 'tiny'")
    return c
