"""A streaming TSDiff: a forecast of a time series that is refined, step by step, as the present moves on.

Papers:    Kollovieh et al. 2023, arXiv 2307.11494 (TSDiff: an unconditional diffusion model of a series, 336 steps of
           context and 24 of forecast); Duan et al. 2025, arXiv 2508.05396 (RTI-DP: real-time iteration).
Command:   cd.train(cd.load_config("streaming_tsdiff"), workdir="runs/streaming_tsdiff", source=series)
Hardware:  one CPU or GPU. 'tiny': two CPU cores, four minutes (on moving digits, as all of the family).
Expected:  'tiny': docs/family.md.

The six values:
  layout     full, over one value (or a few channels) per step of time.
  process    100 steps of linear betas up to 0.1, noise prediction.
  levels     the context independent, the forecast at one level: uniform_future with 336 known steps.
  schedule   real_time: 24 steps in flight; the shifted last forecast is taken for one at step 10 and denoised again.
  guidance   none here: guidance by observed values belongs to the guidance room.
  cache      none: the window is recomputed. The past is labelled with step 0, the cleanest that training knows.
Differs from the papers: a transformer instead of the S4 network (its sizes are ours), fed without lags and without
division by the mean; the past is given as clean context, not by guidance. The guess of 10 steps in 100 is ours.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=360, height=1, width=1, channels=1)
    c.model = dict(width=128, depth=4, heads=4, mlp=512, patch=(1, 1, 1), channels=1, qk_norm="head")
    c.layout = dict(kind="full", block=1)
    c.process = dict(path="vp_linear", predict="noise", steps=100, betas=(1e-4, 0.1), labels="published")
    c.levels = dict(kind="uniform_future", known=336, grid=100)
    c.schedule = dict(steps=100, offset="real_time", in_flight=24, guess=10, grid="discrete", grid_steps=100)
    c.solver = dict(kind="ddpm")
    c.cache = dict(kind="none", commit_label="fixed", commit_label_at=0.0)
    c.train = dict(steps=12_800, batch=64, lr=1e-3, warmup=100, clip=0.5)
    c.evaluate = dict(clips=64, context=336, frames=48)
    c.log = dict(every=100, evaluate=2_000, checkpoint=1_000)
    if variant == "tiny":
        tiny_on_digits(c)
        c.levels.update(known=8)
        c.schedule.update(steps=20, in_flight=4, guess=4)
    elif variant:
        raise ValueError(f"streaming_tsdiff has no variant {variant!r}; there is 'tiny'")
    return c
