"""Causal Forcing: Self Forcing that starts from a teacher which is causal itself, here frame by frame.

Paper:     Zhu et al. 2026, arXiv 2602.02214 (frame-wise, on Wan 2.1 1.3B; its first stage).
Command:   cd.train(cd.load_config("causal_forcing"), workdir="runs/causal_forcing", source=latents)
Hardware:  mesh.fsdp >= 8. Not with dense attention, the only one so far: 63,960 tokens (clean and noisy) ask for 183
           GiB of scores per layer and clip. 'tiny': two CPU cores, minutes.
Expected:  Paper, distilled: dynamic degree 68, VisionReward 6.3 (Self Forcing 57, 5.8). The network has Wan 2.1's
           1,418,996,800 parameters.

The six values:
  layout     teacher_forcing, one latent frame per block, 20 frames of the past.
  process    linear path, velocity, bell weights (more in the middle of the levels).
  levels     independent per frame, shifted by 5.
  schedule   frame by frame, 4 steps at t = 1, 0.938, 0.833, 0.625 (1000, 750, 500, 250 shifted by 5), each to an
             estimate of x0 that is noised anew.
  guidance   none; the student has learned it.
  cache      keys and values of finished frames, where they stand: a rolling one of 20 frames.
This is the paper's causal teacher as it trains it. Differs from the paper: the stages after it (causal ODE or
consistency distillation, then DMD) are not here, so that 4 steps are rough. Its students of 1 or 2 steps keep 4 steps
for the first frame of a stream, which schedule.first_steps has for evenly spaced steps only. Levels are continuous, not
1000. Weights are meant to start from Wan 2.1's (train.init_from). The batch is ours, and the learning rate falls on a
cosine.
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
    c.layout = dict(kind="teacher_forcing", block=1, window=20)
    c.process = dict(path="linear", predict="velocity", weight="bell")
    c.levels = dict(kind="independent", shift=5.0)
    c.schedule = dict(steps=4, offset="autoregressive", step_times=warp((1000, 750, 500, 250), shift=5.0))
    c.solver = dict(kind="x0_noise")
    c.cache = dict(kind="kv")
    c.train = dict(steps=2_000, batch=64, lr=2e-6, warmup=100, betas=(0.9, 0.999), ema=0.99)
    c.evaluate = dict(clips=16, context=3, frames=60)
    c.log = dict(every=100, evaluate=1_000, checkpoint=500)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.layout.update(window=11)
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"causal_forcing has no variant {variant!r}; there is 'tiny'")
    return c
