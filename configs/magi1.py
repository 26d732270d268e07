"""MAGI-1: four chunks in flight, each seeing the farther back the noisier it is, guided three ways.

Paper:     Sand AI 2025, arXiv 2505.13211 (4.5 B form, 64 steps).
Command:   cd.train(cd.load_config("magi1"), workdir="runs/magi1", source=latents)
Hardware:  a pod, mesh.fsdp >= 8. Not with dense attention, the only one so far: 74,880 tokens ask for 501 GiB of scores
           per layer and clip. 'tiny': two CPU cores, minutes.
Expected:  Paper: Physics-IQ 56.0 (24 B, from a video). The network has 5,215,898,688 parameters; the paper's is
           smaller, see below.

The six values:
  layout     block_causal, six latent frames per block. A block sees 5, 4, 3 or 2 blocks, its own included, in the four
             quarters of its 64 steps, and itself alone when it is clean.
  process    linear path, velocity.
  levels     staircase of 4 blocks, shifted by 9; what is behind it is clean, up to level 0.05.
  schedule   rolling: 4 blocks in flight, 16 rows per block, 64 Euler steps at t = f(1 - (i/64)^2), shifted by 3.
  guidance   three_way, 7.5 for text and 1.5 for the past, at levels above 0.7; below, the past alone and no text.
  cache      keys and values without text, at level 0.0001, computed in the first pass of the next 16 rows (fused).
Latents of 480p, 8x8x4 compression. The paper's t runs from noise to data: its 0.9999 and 0.3 are 0.0001 and 0.7 here.
Differs from the paper: no grouped queries (24 heads of keys and values, not 8), tables of modulation for its gates and
plain rotary positions for learned bands: more parameters than 4.5 B. In training clean blocks do see the text, but for
the tenth of the clips that lose it. The staircase's shift is ours: by it the quarters of the window end at 0.96, 0.9
and 0.75, near those of the steps. So are clip, batch, steps and rate of training.
"""

import ml_collections

from causal_diffusion.diffusion.schedule import warp
from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=48, height=60, width=104, channels=16)
    c.model = dict(width=3072, depth=34, heads=24, mlp=12288, patch=(1, 2, 2), channels=16, text=4096)
    c.model.update(qk_norm="head", modulation="table", head="table", layers="scan", remat="full")
    # Quarters of the steps end at t = 0.978, 0.9 and 0.7. Each border lies above that level and below the one before
    # it, so that no rounding moves a step to the other side.
    c.layout = dict(kind="block_causal", block=6, window=24, ranges=(5, 4, 3, 2, 1))
    c.layout.update(range_levels=(0.98, 0.905, 0.71, 0.05))
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="staircase", in_flight=4, shift=9.0, context=0.05)
    c.schedule = dict(steps=64, offset="rolling", in_flight=4, step_times=step_times(64))
    c.solver = dict(kind="euler")
    c.guidance = dict(kind="three_way", scale=7.5, history_scale=1.5, interval=(0.71, 1.0))
    c.cache = dict(kind="kv", commit="fused", commit_level=0.0001, commit_drop=("label", "text"))
    c.train = dict(steps=100_000, batch=64, lr=1e-4, warmup=1_000, betas=(0.9, 0.95), ema=0.9999)
    c.evaluate = dict(clips=16, context=6, frames=60)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=16)
        c.layout.update(block=2, window=8)
        c.schedule.update(steps=8, step_times=step_times(8))
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"magi1 has no variant {variant!r}; there is 'tiny'")
    return c


def step_times(steps):
    """In the paper's time (i/N)^2, shifted by 1/3; in ours 1 - (i/N)^2, shifted by 3."""
    return warp([steps**2 - i**2 for i in range(steps)], shift=3.0, count=steps**2)
