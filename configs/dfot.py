"""DFoT: a diffusion forcing transformer that sees all of its window, past and future.

Paper:     Song et al. 2025, arXiv 2502.06764 (its Minecraft setting).
Command:   cd.train(cd.load_config("dfot"), workdir="runs/dfot", source=latents)
Hardware:  twelve H100 for about five days in the paper (200,000 steps of batch 96). With dense attention a clip asks
           for 7.3 GiB of scores per layer: one clip per GPU at a time (train.accumulate = 8), model.remat = 'full'.
           'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. Paper: FVD 97.6 on Minecraft, 79.2 with temporal history guidance.

The six values:
  layout     full. Nothing can be cached; every frame is denoised seeing all others.
  process    cosine (its signal ends at nothing), v-prediction, fused-SNR weights in both directions (decay 0.9).
  levels     independent per frame, uniform over 1000 steps.
  schedule   half a window at once, 50 DDIM steps, after the other half, which is clean.
  guidance   none here: history guidance mixes predictions under noised histories.
  cache      none; clean frames are labelled with step 0.
Data are latents of an image autoencoder, 32x32x4 per 256x256 frame, with one action per frame (25 numbers here).
Differs from the paper: levels are independent, as in its other settings; for clips as long as Minecraft's it trains
with levels.kind = 'uniform_future' and levels.known = 25. No history guidance, no keyframes. The learning rate falls
on a cosine.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=50, height=32, width=32, channels=4, action_dim=25)
    c.model = dict(width=768, depth=12, heads=12, mlp=3072, patch=(1, 2, 2), channels=4, action=25, qk_norm="head")
    c.layout = dict(kind="full", block=1)
    c.process = dict(path="vp_cosine", zero_snr=True, predict="v", labels="published")
    c.process.update(weight="fused_snr_bidirectional", decay=0.9)
    c.levels = dict(kind="independent", grid=1000)
    c.schedule = dict(steps=50, offset="full", chunk=25, grid="discrete")
    c.solver = dict(kind="ddim", eta=0.0)
    c.cache = dict(kind="none", commit_label="fixed", commit_label_at=0.0)
    c.train = dict(steps=200_000, batch=96, lr=1e-4, warmup=10_000, weight_decay=1e-3, ema=0.9999)
    c.evaluate = dict(clips=64, context=25, frames=100)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.schedule.update(steps=10, chunk=6)
    elif variant:
        raise ValueError(f"dfot has no variant {variant!r}; there is 'tiny'")
    return c
