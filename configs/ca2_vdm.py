"""Ca2-VDM: causal generation and cache sharing, with a prefix that is also seen in space.

Paper:     Gao et al. 2024, arXiv 2411.16375 (values of its released SkyTimelapse setting).
Command:   cd.train(cd.load_config("ca2_vdm"), workdir="runs/ca2_vdm", source=latents)
Hardware:  batch 64 is eight GPUs of 4 clips, accumulated twice (train.accumulate = 2). The prefix attention is dense:
           4.4 GiB of scores per layer and clip, so such GPUs need model.remat = 'full' and fewer clips each.
           'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. Paper: 80 frames of 256x256 in 52 s on one A100 against 130 s without the cache;
           UCF-101 FVD 184.5 after fine-tuning.

The six values:
  layout     frame_causal, blocks of 8 behind a first frame; in space noisy frames also see the last 3 clean ones.
  process    linear betas, noise prediction, learned variance.
  levels     a clean prefix of 1, 9, 17 or 25 frames, in truth noised to step 100 and labelled clean; the 8 frames
             behind it share one level.
  schedule   block by block, 100 ancestral steps.
  guidance   none.
  cache      one for all steps: clean blocks noised to step 50 and labelled clean; 24 frames are kept.
Differs from the paper: the window is 24 frames, three whole blocks, instead of 25. Training starts from scratch, not
from Open-Sora's weights; the number of steps, warm-up and AdamW's betas and decay are ours. Positions along time are
added to the tokens, not before the first attention along time, and every clip begins anywhere in their cycle.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=33, height=32, width=32, channels=4)
    c.model = dict(width=1152, depth=28, heads=16, mlp=4608, patch=(1, 2, 2), channels=4, qk_norm="none")
    c.model.update(attention="factorised", positions="additive", period=33, modulation="table", head="table")
    c.model.update(prefix=3, mask_channel=True)
    c.layout = dict(kind="frame_causal", block=8, first=1, window=24)
    c.process = dict(path="vp_linear", predict="noise", variance="learned", labels="published")
    c.levels = dict(kind="prefix", known=1, chunk=1, grid=1000)
    c.levels.update(context=0.101, context_draw="fixed", context_label="fixed", context_label_at=0.0)
    c.schedule = dict(steps=100, offset="autoregressive", grid="discrete")
    c.solver = dict(kind="ddpm")
    c.cache = dict(kind="kv", commit_level=0.051, commit_label="fixed", commit_label_at=0.0)
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
        raise ValueError(f"ca2_vdm has no variant {variant!r}; there is 'tiny'")
    return c
