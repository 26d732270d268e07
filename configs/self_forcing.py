"""Self Forcing: a few-step student that streams blocks from a cache, trained on what it streams itself.

Paper:     Huang et al. 2025, arXiv 2506.08009 (chunk-wise, on Wan 2.1 1.3B).
Command:   cd.train(cd.load_config("self_forcing"), workdir="runs/self_forcing", source=latents)
Hardware:  64 H100 for two hours in the paper; mesh.fsdp >= 8. Not with dense attention, the only one so far: 60,840
           tokens (clean and noisy) ask for 165 GiB of scores per layer and clip. 'tiny': two CPU cores, minutes.
Expected:  Paper, distilled: 17 frames per second and 0.69 s of latency on one H100, VBench 84.31. The network has Wan
           2.1's 1,418,996,800 parameters.

The six values:
  layout     teacher_forcing, three latent frames per block, 18 frames of the past.
  process    linear path, velocity.
  levels     independent per block, shifted by 5.
  schedule   block by block, 4 steps at t = 1, 0.938, 0.833, 0.625 (1000, 750, 500, 250 shifted by 5), each to an
             estimate of x0 that is noised anew.
  guidance   none; the student has learned it.
  cache      keys and values of finished blocks, where they stand: a rolling one of 18 frames.
Differs from the paper: trained by teacher forcing; its own rollouts under DMD, SiD or a GAN are not here, so that 4
steps are rough. Weights are meant to start from Wan 2.1's (train.init_from). Batch, steps and rate are ours.
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
    c.layout = dict(kind="teacher_forcing", block=3, window=18)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", shift=5.0)
    c.schedule = dict(steps=4, offset="autoregressive", step_times=warp((1000, 750, 500, 250), shift=5.0))
    c.solver = dict(kind="x0_noise")
    c.cache = dict(kind="kv")
    c.train = dict(steps=2_000, batch=64, lr=1e-5, warmup=200, betas=(0.9, 0.999), ema=0.99)
    c.evaluate = dict(clips=16, context=3, frames=60)
    c.log = dict(every=100, evaluate=1_000, checkpoint=500)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=14)
        c.layout.update(block=2, window=12)
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"self_forcing has no variant {variant!r}; there is 'tiny'")
    return c
