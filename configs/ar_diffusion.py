"""AR-Diffusion: noise levels that never fall from frame to frame, in training as in sampling.

Paper:     Sun et al. 2025, arXiv 2503.07418.
Command:   cd.train(cd.load_config("ar_diffusion"), workdir="runs/ar_diffusion", source=latents)
Hardware:  100,000 steps of batch 96, in the release 16 clips accumulated six times (train.accumulate = 6).
           'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. Paper: FVD of 16 frames 186.6 on UCF-101.

The six values:
  layout     block_causal, one frame per block, after 77 context tokens that carry the class and see only themselves.
  process    scaled-linear betas, x0 prediction.
  levels     FoPP: monotone over the frames, anchored at a random one, on 1000 steps.
  schedule   pyramid, the AD scheduler: 5 rows between neighbours, 50 DDIM steps, so ten frames are in flight.
  guidance   class, weight 2.
  cache      none: the window of 16 frames is recomputed. Finished frames are labelled with step 1.
Differs from the paper: context tokens never see video tokens (its own strictly causal variant). Positions along time
repeat after 16 frames, as many as are in sight, so that a stream meets none that training does not know; they are added
by frame and token, not along one axis of 512 tokens. Finished frames stay as they are; the released sampler lets them
drift. Width, depth, warm-up and AdamW's betas and decay are ours.
Data are 32 tokens of 4 numbers per frame from a one-dimensional tokeniser.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=16, height=32, width=1, channels=4, classes=101)
    c.model = dict(width=1024, depth=24, heads=16, mlp=4096, patch=(1, 1, 1), channels=4, classes=101)
    c.model.update(positions="additive", period=16, qk_norm="none", registers=77, label_tokens=True)
    c.layout = dict(kind="block_causal", block=1)
    c.process = dict(path="vp_scaled_linear", betas=(1e-4, 2e-2), predict="x0", labels="published")
    c.levels = dict(kind="fopp", grid=1000)
    c.schedule = dict(steps=50, offset="pyramid", stride=5.0, grid="discrete")
    c.solver = dict(kind="ddim", eta=0.0)
    c.guidance = dict(kind="cfg", scale=2.0)
    c.cache = dict(kind="none", commit_label="fixed", commit_label_at=0.001)
    c.train = dict(steps=100_000, batch=96, lr=2e-4, warmup=1_000, clip=1.0, ema=0.9999, drop=0.2)
    c.evaluate = dict(clips=64, context=4, frames=48)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.model.update(registers=4, period=12)
        c.schedule.update(steps=10, stride=2.0)
    elif variant:
        raise ValueError(f"ar_diffusion has no variant {variant!r}; there is 'tiny'")
    return c
