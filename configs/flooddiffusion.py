"""FloodDiffusion: a window of latents that see each other, denoised in a staircase that rolls along the stream.

Paper:     arXiv 2512.03520.
Command:   cd.train(cd.load_config("flooddiffusion"), workdir="runs/flooddiffusion", source=clips)
           with clips of 263 normalised numbers per frame at 20 frames a second and the tokens of UMT5-XXL; 'tiny': the
           commands of docs/motion.md, after setting PATH below.
Hardware:  one accelerator; 'tiny': two CPU cores.
Expected:  'tiny': docs/motion.md. Paper: FID .057 on HumanML3D.

The six values:
  layout     bidirectional_window, one latent per block: finished latents never change, those in flight see each other.
  process    linear path, velocity.
  levels     staircase of five latents, the levels that the sampler has, nothing else.
  schedule   rolling, five in flight, ten steps from noise to clean.
  guidance   text, weight 5.
  cache      keys and values of finished latents.
Differs from the paper: finished latents are computed once, without seeing those in flight, so that they can be kept;
the release computes all that is in sight again at every step. The autoencoder is the causal one of CMDM: four frames
per latent from the first on, with the paper's four numbers each. The squared error is a mean, not a sum.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_motion

PATH = "motion"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (data and budget of cmdm:tiny)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=200, height=0, width=0, channels=263)
    c.vae = dict(form="motion", motion=dict(channels=263, latent=4, width=512, depth=3, stages=2, align=0))
    c.model = dict(width=1024, depth=8, heads=8, mlp=2048, patch=(1,), channels=4, text=4096, text_layers=2)
    c.model.update(modulation="table", head="table")
    c.layout = dict(kind="bidirectional_window", block=1)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="staircase", in_flight=5)
    c.schedule = dict(steps=10, offset="rolling", in_flight=5)
    c.guidance = dict(kind="cfg", scale=5.0, drop=("text",))
    c.cache = dict(kind="kv")
    c.train = dict(steps=100_000, batch=64, lr=2e-4, warmup=1_000, drop=0.1)
    c.evaluate = dict(clips=64, context=5, frames=40)
    c.log = dict(every=100, evaluate=10_000, checkpoint=5_000)
    if variant == "tiny":
        tiny_on_motion(c, PATH)
        c.guidance.update(scale=2.0)
    elif variant:
        raise ValueError(f"flooddiffusion has no variant {variant!r}; there is 'tiny'")
    return c
