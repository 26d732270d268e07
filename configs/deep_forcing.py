"""Deep Forcing: Self Forcing with half the cache for the first frames, and only tokens that are looked at in the rest.

Paper:     Yi et al. 2025, arXiv 2512.05081 (nothing is trained: the weights are Self Forcing's).
Command:   cd.train(cd.load_config("deep_forcing"), workdir="runs/deep_forcing", source=latents)
Hardware:  as `self_forcing`, whose weights fit: cd.Pipeline(cd.load_config("deep_forcing"), params). 'tiny': two CPU
           cores, minutes.
Expected:  Paper, on Self Forcing's student, 30 s: 15.75 frames per second on one H100, dynamic degree 57.6 (Self
           Forcing 36.6), imaging quality 69.3 (68.6). The network has Wan 2.1's 1,418,996,800 parameters.

The six values:
  layout     teacher_forcing, three latent frames per block, 12 first frames and the last 6: of a clip of 21 that is
             all.
  process    linear path, velocity.
  levels     independent per block, shifted by 5.
  schedule   block by block, 4 steps at t = 1, 0.938, 0.833, 0.625 (1000, 750, 500, 250 shifted by 5), each to an
             estimate of x0 that is noised anew.
  guidance   none; the student has learned it.
  cache      keys and values. A full one (21 frames at first, later 24, the own block included) is compressed: 12 first
             frames, the best tokens of 3 frames, the last 3 (budget 18) and the block. All of it closes up to the
             block.
Differs from the paper: whole blocks are kept, 12 first frames, 3 of best tokens and 6 recent ones with the block being
denoised, instead of 10, 2 and 4. So the cache is full again after every block. Moved first frames end where the next
ones begin; the paper's formula overlaps them by a frame (cache.sink_overlap = 1). Scores add up over heads, which it
does not say. Trained by teacher forcing, as `self_forcing`; without its distillation 4 steps are rough.
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
    c.layout = dict(kind="teacher_forcing", block=3, window=6, sinks=12)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", shift=5.0)
    c.schedule = dict(steps=4, offset="autoregressive", step_times=warp((1000, 750, 500, 250), shift=5.0))
    c.solver = dict(kind="x0_noise")
    c.cache = dict(kind="kv", positions="adjacent", budget=18, recent=3)
    c.train = dict(steps=2_000, batch=64, lr=1e-5, warmup=200, betas=(0.9, 0.999), ema=0.99)
    c.evaluate = dict(clips=16, context=3, frames=60)
    c.log = dict(every=100, evaluate=1_000, checkpoint=500)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=14)
        c.layout.update(block=2, window=4, sinks=8)
        c.cache.update(budget=12, recent=2)
        c.mesh.update(fsdp=1)
    elif variant:
        raise ValueError(f"deep_forcing has no variant {variant!r}; there is 'tiny'")
    return c
