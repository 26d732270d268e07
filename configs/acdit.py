"""ACDiT: blocks are denoised one after the other, each seeing a clean copy of the past.

Paper:     Hu et al. 2024, arXiv 2412.07720 (its UCF-101 setting, size XL).
Command:   cd.train(cd.load_config("acdit"), workdir="runs/acdit", source=latents)
Hardware:  96 H100 in the paper (400,000 steps of batch 96); with dense attention a clip asks for 3.5 GiB of scores per
           layer, so set model.remat = 'full'. 'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. Paper: UCF-101 FVD 111 (XL), 104 (H). XL has 677 M parameters by the paper.

The six values:
  layout     teacher_forcing (skip-causal), blocks of 4 frames.
  process    linear betas, noise prediction.
  levels     independent per block, uniform over 1000 steps. Clean blocks are not modulated, so their keys and values
             depend on neither level nor class.
  schedule   block by block, 25 steps of DPM-Solver++(2M).
  guidance   class, weight 2.5.
  cache      keys and values of clean blocks; all of a clip's past is seen.
Differs from the paper: rotary positions turn each axis (2:3:3) by itself, with frequencies theta^(-2i/d); the released
code mixes up the axes and spaces its exponents from 0 to 1 inclusive. LayerNorm without gains instead of RMSNorm, a
bias where patches come in. The learning rate falls on a cosine; the paper holds it, and halves it again and again over
the last 15 % of the steps. A stream remembers the last 12 frames, the paper's ends with its clip of 16.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=16, height=32, width=32, channels=4, classes=101)
    c.model = dict(width=1152, depth=28, heads=18, mlp=4608, patch=(1, 2, 2), channels=4, classes=101)
    c.model.update(rope_split=(2, 3, 3), theta=100.0, qk_norm="head", modulate_clean=False)
    c.layout = dict(kind="teacher_forcing", block=4)
    c.process = dict(path="vp_linear", predict="noise", labels="published")
    c.levels = dict(kind="independent", grid=1000)
    c.schedule = dict(steps=25, offset="autoregressive", grid="discrete")
    c.solver = dict(kind="dpmpp_2m")
    c.guidance = dict(kind="cfg", scale=2.5)
    c.cache = dict(kind="kv")
    c.train = dict(steps=400_000, batch=96, lr=3e-4, warmup=10_000, betas=(0.9, 0.95), weight_decay=0.0, ema=0.9999)
    c.evaluate = dict(clips=64, context=4, frames=48)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.layout.update(block=2)
        c.schedule.update(steps=10)
    elif variant:
        raise ValueError(f"acdit has no variant {variant!r}; there is 'tiny'")
    return c
