"""Next-Frame Diffusion: an action-conditioned world, one frame at a time, from a cache.

Paper:     Cheng et al. 2025, arXiv 2506.01380 (310 M parameters; no code was released).
Command:   cd.train(cd.load_config("nfd"), workdir="runs/nfd", source=latents)
Hardware:  not told. With dense attention a clip asks for 6.9 GiB of scores per layer, so model.remat = 'full'.
           'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. Paper: FVD 212, PSNR 16.46, 6 frames per second on one A100; distilled to four steps
           31 frames per second.

The six values:
  layout     block_causal, one frame per block.
  process    linear path, velocity.
  levels     independent per frame, logit-normal.
  schedule   frame by frame, 20 Euler steps (a student takes 4).
  guidance   none.
  cache      keys and values of finished frames, which get a little noise (0.05) first; 32 frames with the own one.
Data are latents of a 16x autoencoder, 14x24 per 224x384 frame, with 25 numbers of keyboard and mouse per frame.
Not told by the paper, and ours: depth, width, channels of the latents, kind of positions, batch, steps and rate of
training, steps of sampling, how little noise the past gets. Training gives the past none beyond its own levels.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=32, height=14, width=24, channels=16, action_dim=25)
    c.model = dict(width=1024, depth=16, heads=16, mlp=4096, patch=(1, 1, 1), channels=16, action=25, qk_norm="head")
    c.layout = dict(kind="block_causal", block=1)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", density="logit_normal")
    c.schedule = dict(steps=20, offset="autoregressive")
    c.solver = dict(kind="euler")
    c.cache = dict(kind="kv", commit_level=0.05)
    c.train = dict(steps=400_000, batch=96, lr=1e-4, warmup=5_000, ema=0.9999)
    c.evaluate = dict(clips=64, context=4, frames=60)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.schedule.update(steps=10)
    elif variant:
        raise ValueError(f"nfd has no variant {variant!r}; there is 'tiny'")
    return c
