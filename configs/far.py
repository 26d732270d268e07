"""FAR: frame autoregression by flow matching, where some frames of the past are shown clean.

Paper:     Gu et al. 2025, arXiv 2503.19325 (its UCF-101 setting, size B; 'long' contexts are another system).
Command:   cd.train(cd.load_config("far"), workdir="runs/far", source=latents)
Hardware:  eight GPUs of 24 GB by the dry run's memory (400,000 steps of batch 32). 'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. Paper: FVD 99 on UCF-101 with classes (size L). Size B has 130 M parameters.

The six values:
  layout     block_causal, one frame per block.
  process    linear path, velocity.
  levels     independent per frame, logit-normal; a tenth of the frames is clean, carries a label of its own (-1) and
             is not scored.
  schedule   frame by frame, 50 Euler steps.
  guidance   none.
  cache      keys and values of clean frames, with that label.
Data are latents of a deep compression autoencoder, 8x8x32 per 256x256 frame.
Differs from the paper: no guidance (its sampler mixes in a branch without the class; guidance.kind = 'cfg' does, and a
tenth of the classes is dropped for it). A stream goes on past the clip by a ring of 15 frames whose keys keep what they
once saw, where the paper encodes its window anew for every frame. The learning rate falls on a cosine.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=16, height=8, width=8, channels=32, classes=101)
    c.model = dict(width=768, depth=12, heads=12, mlp=3072, patch=(1, 1, 1), channels=32, classes=101)
    c.model.update(rope_split=(2, 3, 3), qk_norm="head")
    c.layout = dict(kind="block_causal", block=1)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", density="logit_normal", clean=0.1)
    c.levels.update(context_data="clean", context_label="fixed", context_label_at=-0.001)
    c.schedule = dict(steps=50, offset="autoregressive")
    c.solver = dict(kind="euler")
    c.cache = dict(kind="kv", commit_data="clean", commit_label="fixed", commit_label_at=-0.001)
    c.train = dict(steps=400_000, batch=32, lr=1e-4, warmup=1_000, betas=(0.9, 0.999), weight_decay=0.0, ema=0.9999)
    c.evaluate = dict(clips=64, context=4, frames=48)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.schedule.update(steps=10)
    elif variant:
        raise ValueError(f"far has no variant {variant!r}; there is 'tiny'")
    return c
