"""Knot Forcing: blocks that share a frame with the next one, and a reference frame that runs ahead of the stream.

Paper:     Xiao et al. 2025, arXiv 2512.21734 (portraits, on Wan 2.1 1.3B; no code was released).
Command:   cd.train(cd.load_config("knot_forcing"), workdir="runs/knot_forcing", source=latents)
Hardware:  not told; mesh.fsdp >= 8. Not with dense attention, the only one so far: 71,760 tokens (clean,
           noisy, knots and reference) ask for 230 GiB of scores per layer and clip. 'tiny': two CPU cores, minutes.
           Sample from Python: pipe.stream(cond={"reference": frame}); the command line gives no reference.
Expected:  Paper: real time on a GPU for consumers; no figure of it has been verified. The network has Wan 2.1's
           1,418,996,800 parameters.

The six values:
  layout     teacher_forcing, three latent frames per block, denoised with the first one of the next block (the knot);
             the last 6 frames, and a reference frame that all see.
  process    linear path, velocity.
  levels     independent per block, shifted by 5.
  schedule   block by block, 4 steps at t = 1, 0.938, 0.833, 0.625 (1000, 750, 500, 250 shifted by 5), each to an
             estimate of x0 that is noised anew. The knot holds the next block's first frame at every step, at the end
             both are averaged.
  guidance   none; the student has learned it.
  cache      keys and values of finished blocks, without knots. The reference always stands in the future: at frame 8,
             and 4 further whenever the stream would reach it.
In training the reference is the last frame of the clip. A stream takes it as cond["reference"].
Differs from the paper: trained by teacher forcing; rollouts under DMD are not here, so that 4 steps are rough. The knot
comes noised like the frames beside it, without channels that mark it as given. No audio or pose (model.action would
carry them). The paper does not say how far it looks back, nor all steps: 6 frames and Self Forcing's steps are ours, as
are batch, steps and rate of training.
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
    c.layout = dict(kind="teacher_forcing", block=3, window=6, knot=1, reference=1)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", shift=5.0)
    c.schedule = dict(steps=4, offset="autoregressive", step_times=warp((1000, 750, 500, 250), shift=5.0))
    c.solver = dict(kind="x0_noise")
    c.cache = dict(kind="kv", positions="ahead", ahead=8, ahead_step=4)
    c.train = dict(steps=2_000, batch=64, lr=1e-5, warmup=200, betas=(0.9, 0.999), ema=0.99)
    c.evaluate = dict(clips=16, context=3, frames=60)
    c.log = dict(every=100, evaluate=1_000, checkpoint=500)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=14)
        c.layout.update(block=2, window=4)
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"knot_forcing has no variant {variant!r}; there is 'tiny'")
    return c
