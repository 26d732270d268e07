"""ViD-GPT: a clean prefix of any length as the prompt, causal attention along time, a key-value cache.

Paper:     Gao et al. 2024, arXiv 2406.10981 (no code was released; what it leaves open is taken from its successor,
           Ca2-VDM).
Command:   cd.train(cd.load_config("vid_gpt"), workdir="runs/vid_gpt", source=latents)
Hardware:  as Ca2-VDM's: batch 64 is eight GPUs of 4 clips, accumulated twice (train.accumulate = 2).
           'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md.

The six values:
  layout     frame_causal: attention inside each frame, then causal along time, also inside a block of 8 frames. The
             first block is the given frame.
  process    linear betas, noise prediction, learned variance.
  levels     a clean prefix of 1, 9, 17 or 25 frames; the 8 frames behind it share one level.
  schedule   block by block, 100 ancestral steps.
  guidance   none.
  cache      keys and values of clean blocks, written by a pass of their own at step 0; 24 frames are kept.
Positions along time repeat after 33 frames, as a stream goes on for longer than any table. Differs from Ca2-VDM as
configs/ca2_vdm.py says; the number of steps, warm-up and AdamW's betas and decay are ours.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=33, height=32, width=32, channels=4)
    c.model = dict(width=1152, depth=28, heads=16, mlp=4608, patch=(1, 2, 2), channels=4, qk_norm="none")
    c.model.update(attention="factorised", positions="additive", period=33, modulation="table", head="table")
    c.layout = dict(kind="frame_causal", block=8, first=1, window=24)
    c.process = dict(path="vp_linear", predict="noise", variance="learned", labels="published")
    c.levels = dict(kind="prefix", known=1, chunk=1, grid=1000, context_label="fixed", context_label_at=0.0)
    c.schedule = dict(steps=100, offset="autoregressive", grid="discrete")
    c.solver = dict(kind="ddpm")
    c.cache = dict(kind="kv", commit_label="fixed", commit_label_at=0.0)
    c.train = dict(steps=100_000, batch=64, lr=2e-5, warmup=1_000, clip=1.0, ema=0.9999)
    c.evaluate = dict(clips=64, context=9, frames=64)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=13)
        c.model.update(period=13)
        c.layout.update(block=3, window=9)
        c.schedule.update(steps=10)
    elif variant:
        raise ValueError(f"vid_gpt has no variant {variant!r}; there is 'tiny'")
    return c
