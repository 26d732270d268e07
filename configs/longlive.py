"""LongLive: first frames and a short window, at places that never leave the training clip; new prompts mid-stream.

Paper:     Yang et al. 2025, arXiv 2509.22622 (version 1 on Wan 2.1 1.3B, in its endless variant).
Command:   cd.train(cd.load_config("longlive"), workdir="runs/longlive", source=latents)
Hardware:  32 H100-days in the paper; mesh.fsdp >= 8. Not with dense attention, the only one so far: 60,840 tokens
           (clean and noisy) ask for 165 GiB of scores per layer and clip. 'tiny': two CPU cores, minutes.
Expected:  Paper, distilled: 20.7 frames per second on one H100, videos of up to 240 s. The network has Wan 2.1's
           1,418,996,800 parameters.

The six values:
  layout     teacher_forcing, three latent frames per block; 3 first frames and the last 6.
  process    linear path, velocity.
  levels     independent per block, shifted by 5.
  schedule   block by block, 4 steps at t = 1, 0.938, 0.833, 0.625 (1000, 750, 500, 250 shifted by 5), each to an
             estimate of x0 that is noised anew.
  guidance   none; the student has learned it.
  cache      keys and values at the places of their slots, 0 to 8, the block at 9 to 11, however long the stream. The
             frames themselves are kept: stream.update(cond=..., recache=True) encodes the last 6 anew under a new
             prompt and leaves the first 3.
Differs from the paper: trained by teacher forcing; rollouts under DMD, short and then long with LoRA, are not here, so
that 4 steps are rough. Frames that are encoded anew see block by block; the release's see all of each other. Weights
are meant to start from Wan 2.1's (train.init_from). Batch, steps and rate are ours.
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
    c.layout = dict(kind="teacher_forcing", block=3, window=6, sinks=3)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", shift=5.0)
    c.schedule = dict(steps=4, offset="autoregressive", step_times=warp((1000, 750, 500, 250), shift=5.0))
    c.solver = dict(kind="x0_noise")
    c.cache = dict(kind="kv", positions="slot", latents=True, recache_sinks=False)
    c.train = dict(steps=2_000, batch=64, lr=1e-5, warmup=200, betas=(0.9, 0.999), ema=0.99)
    c.evaluate = dict(clips=16, context=3, frames=60)
    c.log = dict(every=100, evaluate=1_000, checkpoint=500)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=14)
        c.layout.update(block=2, window=4, sinks=2)
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"longlive has no variant {variant!r}; there is 'tiny'")
    return c
