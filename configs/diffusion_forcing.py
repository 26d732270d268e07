"""Diffusion Forcing: every frame at a noise level of its own, a causal network, any order of denoising.

Paper:     Chen et al. 2024, arXiv 2407.01392 (values of its released version 1.5, DMLab setting).
Command:   python train.py --config=configs/diffusion_forcing.py --workdir=runs/diffusion_forcing --config.data.path=DIR
Hardware:  one GPU of 80 GB with --config.model.remat=full (dense attention: 0.5 GiB of scores per layer and clip);
           200,000 steps of batch 8. 'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. The paper reports no single figure for video; its claim is stable rollouts far beyond
           the training length.

The six values:
  layout     block_causal, one frame per block.
  process    sigmoid betas, v-prediction, fused-SNR weights (decay 0.96 per frame).
  levels     independent per frame, uniform over 1000 steps.
  schedule   frame by frame, 100 DDIM steps.
  guidance   none.
  cache      none: the window is recomputed. Past frames are dimmed to step 14 without noise, and labelled so
             (stabilisation); training has no such frames.
Differs from the paper: a transformer instead of the causal U-Net (its sizes are ours); frames of DMLab size from your
own folder, without its actions (set data.action_dim and model.action for them). The bound of 6 is put on estimates of
the data, not on the noise. The learning rate falls on a cosine.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="video_folder", path="", frames=16, height=64, width=64, channels=3)
    c.model = dict(width=512, depth=12, heads=8, mlp=2048, patch=(1, 4, 4), channels=3, qk_norm="head")
    c.layout = dict(kind="block_causal", block=1)
    c.process = dict(path="vp_sigmoid", predict="v", weight="fused_snr", decay=0.96, labels="published", clip=6.0)
    c.levels = dict(kind="independent", grid=1000)
    c.schedule = dict(steps=100, offset="autoregressive", grid="discrete")
    c.solver = dict(kind="ddim", eta=0.0)
    c.cache = dict(kind="none", commit_level=0.015, commit_data="scaled")
    c.train = dict(steps=200_000, batch=8, lr=8e-5, warmup=10_000, betas=(0.9, 0.99), weight_decay=2e-3)
    c.evaluate = dict(clips=64, context=4, frames=48)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.schedule.update(steps=10)
    elif variant:
        raise ValueError(f"diffusion_forcing has no variant {variant!r}; there is 'tiny'")
    return c
