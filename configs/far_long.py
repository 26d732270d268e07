"""FAR-Long: frame autoregression whose far past is kept in few, large tokens.

Paper:     Gu et al. 2025, arXiv 2503.19325 (size B, long contexts: its DMLab setting; `far` is the short one).
Command:   cd.train(cd.load_config("far_long"), workdir="runs/far_long", source=latents)
Hardware:  not told for size B (9 to 22 GB per GPU, 17.5 H100-days for DMLab in size L). A clip of 300 frames is 2,160
           tokens, which ask for 0.2 GiB of scores per layer. 'tiny': two CPU cores, minutes.
Expected:  Paper: PSNR 22.3, FVD 64 on DMLab (156 frames from 144). The network has 158,900,000 parameters; 150 M by the
           paper's table.

The six values:
  layout     block_causal, one frame per block; the first 284 frames of a clip are coarse, 4 tokens instead of 64.
  process    linear path, velocity.
  levels     independent per frame, logit-normal; a tenth of the fine frames is clean, carries a label of its own (-1)
             and is not scored. Coarse frames are clean and carry that label, too.
  schedule   frame by frame, 50 Euler steps.
  guidance   none.
  cache      two_level: the last 15 frames themselves, run through the network anew for every frame, and keys and values
             of coarse tokens of the 284 frames before.
Data are latents of a deep compression autoencoder, 8x8x32 per frame, with 4 numbers of action per frame.
Differs from the paper: coarse frames carry the label of clean ones (-1), not one of their own (-2). Clips have one
length, 300 frames, and 284 coarse ones of them; there it is drawn from 16 to 300, the last 16 always fine. A stream
forgets the coarse frame 300 frames ago, the paper's ends there. No guidance. The learning rate falls on a cosine.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=300, height=8, width=8, channels=32, action_dim=4)
    c.model = dict(width=768, depth=12, heads=12, mlp=3072, patch=(1, 1, 1), channels=32, action=4)
    c.model.update(rope_split=(2, 3, 3), qk_norm="head", coarse=4)
    c.layout = dict(kind="block_causal", block=1, window=15, coarse=284)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent", density="logit_normal", clean=0.1)
    c.levels.update(context_data="clean", context_label="fixed", context_label_at=-0.001)
    c.schedule = dict(steps=50, offset="autoregressive")
    c.solver = dict(kind="euler")
    c.cache = dict(kind="two_level", commit_data="clean", commit_label="fixed", commit_label_at=-0.001)
    c.train = dict(steps=1_000_000, batch=32, lr=1e-4, warmup=10_000, betas=(0.9, 0.999), weight_decay=0.0, ema=0.9999)
    c.evaluate = dict(clips=64, context=144, frames=160)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.data.update(frames=16)
        c.model.update(patch=(1, 4, 4))  # 16 tokens per frame, and 1 per coarse frame
        c.layout.update(window=7, coarse=8)
        c.schedule.update(steps=10)
    elif variant:
        raise ValueError(f"far_long has no variant {variant!r}; there is 'tiny'")
    return c
