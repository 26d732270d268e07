"""SkyReels-V2 diffusion forcing: a large text-to-video model whose blocks are denoised in a staggered window.

Paper:     Chen et al. 2025, arXiv 2504.13074 (1.3 B parameters, 540P, asynchronous mode).
Command:   cd.train(cd.load_config("skyreels_v2"), workdir="runs/skyreels_v2", source=latents)
Hardware:  a pod, mesh.fsdp >= 8. Not with dense attention, the only one so far: 61,200 tokens ask for 167 GiB of scores
           per layer and clip. 'tiny': two CPU cores, four minutes.
Expected:  'tiny': docs/family.md. Paper: VBench 83.9 (14 B, variant '14b'). The network has Wan 2.1's 1,418,996,800
           parameters, that of '14b' 14.3 billion.

The six values:
  layout     block_causal, five latent frames per block.
  process    linear path, velocity.
  levels     FoPP over the blocks, shifted by 8.
  schedule   pyramid: 6 rows between neighbours, 30 steps shifted by 8, so five blocks are in flight. UniPC, with a
             history for every frame.
  guidance   text, weight 6.
  cache      none: the window is recomputed. Finished frames get noise of 0.02 and are labelled so.
Differs from the paper: 30 latent frames instead of 25 or 31, so that a block of the past is in sight, and 6 rows
between neighbours instead of 5, so that five blocks are in flight rather than six; no embedding of the frame rate. Its
training code is not public: batch, steps, rate and the shift of the levels are ours.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_digits


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above), '14b' (the sizes of Wan 2.1 14B, for a pod) and 'tiny' (moving digits, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=30, height=68, width=120, channels=16)
    c.model = dict(width=1536, depth=30, heads=12, mlp=8960, patch=(1, 2, 2), channels=16, text=4096, text_layers=2)
    c.model.update(modulation="table", head="table", layers="scan", remat="full")
    c.layout = dict(kind="block_causal", block=5)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="fopp", shift=8.0)
    c.schedule = dict(steps=30, offset="pyramid", stride=6.0, shift=8.0)
    c.solver = dict(kind="unipc")
    c.guidance = dict(kind="cfg", scale=6.0)
    c.cache = dict(kind="none", commit_level=0.02)
    c.train = dict(steps=100_000, batch=64, lr=1e-5, warmup=1_000, ema=0.9999)
    c.evaluate = dict(clips=16, context=5, frames=60)
    c.log = dict(every=100, evaluate=10_000, checkpoint=2_000)
    c.mesh = dict(fsdp=8)
    if variant == "tiny":
        tiny_on_digits(c)
        c.layout.update(block=2)
        c.schedule.update(steps=8, stride=2.0)
        c.mesh.update(fsdp=1)
    elif variant == "14b":
        c.model.update(width=5120, depth=40, heads=40, mlp=13824)
        c.train.update(batch=512)
        c.mesh.update(data=-1, fsdp=8, context=2, tensor=4)
    elif variant:
        raise ValueError(f"skyreels_v2 has no variant {variant!r}; there are '14b' and 'tiny'")
    return c
