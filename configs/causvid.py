"""CausVid: a large text-to-video model made causal, whose few-step student streams blocks from a cache.

Paper:     Yin et al. 2024, arXiv 2412.07772 (values of its release on Wan 2.1 1.3B).
Command:   cd.train(cd.load_config("causvid"), workdir="runs/causvid", source=latents)
Hardware:  64 H100 for two days in the paper; mesh.fsdp >= 8. Not with dense attention, the only one so far: 32,760
           tokens ask for 48 GiB of scores per layer and clip. 'tiny': two CPU cores, minutes.
Expected:  Paper, distilled: 9.4 frames per second on one H100, VBench-Long 84.3. The network has Wan 2.1's
           1,418,996,800 parameters.

The six values:
  layout     block_causal, three latent frames per block, 18 frames of the past.
  process    linear path, velocity.
  levels     independent per block, shifted by 8.
  schedule   block by block, 3 steps at t = 1, 0.757, 0.522, each to an estimate of x0 that is noised anew.
  guidance   none; the student has learned it.
  cache      keys and values of finished blocks, where they stand.
Differs from the paper: trained by diffusion forcing, the first half of the method; the distillation to the 3 steps
(regression to trajectories, then DMD) is not here, so that they are rough. Levels are continuous, not the 4 of the
student. A stream goes on past the clip of 21 frames by its ring, where the release starts over from the last 3 frames.
Weights are meant to start from Wan 2.1's (train.init_from). Batch, steps and rate are ours.
"""

import ml_collections

from causal_diffusion.diffusion.schedule import nearest
from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=21, height=60, width=104, channels=16)
    c.model = dict(width=1536, depth=30, heads=12, mlp=8960, patch=(1, 2, 2), channels=16, text=4096, text_layers=2)
    c.model.update(modulation="table", head="table", layers="scan", remat="full")
    c.layout = dict(kind="block_causal", block=3, window=18)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", shift=8.0)
    c.schedule = dict(steps=3, offset="autoregressive", step_times=nearest((1000, 757, 522), shift=8.0))
    c.solver = dict(kind="x0_noise")
    c.cache = dict(kind="kv")
    c.train = dict(steps=6_000, batch=64, lr=1e-5, warmup=500, betas=(0.9, 0.999), ema=0.99)
    c.evaluate = dict(clips=16, context=3, frames=60)
    c.log = dict(every=100, evaluate=1_000, checkpoint=500)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=14)
        c.layout.update(block=2, window=12)
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"causvid has no variant {variant!r}; there is 'tiny'")
    return c
