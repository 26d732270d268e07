"""CMDM: text to motion, latent frames at noise levels of their own, in a stream that can be steered while it runs.

Paper:     Causal Motion Diffusion Models, CVPR 2026, arXiv 2602.22594.
Command:   python train.py --config=configs/cmdm.py --workdir=runs/cmdm --config.data.path=HumanML3D
               --config.vae.checkpoint=runs/motion_vae --config.text.path=distilbert/distilbert-base-uncased
           'tiny': the three commands of docs/motion.md, after setting PATH below.
Hardware:  one accelerator. 'tiny' and 'stream_tiny': two CPU cores, an hour with autoencoder and evaluator.
Expected:  'tiny': docs/motion.md. Paper, HumanML3D test: R-precision .588/.778/.860, FID .068, MM-distance 2.620.

The six values:
  layout     block_causal, three latents (0.6 s at 20 frames a second) per block.
  process    linear path, velocity.
  levels     independent per block, uniform.
  schedule   pyramid: K = 50 steps, the next block U = 2 rows behind (FSS, causal uncertainty). 17 blocks, the longest
             clip, take K + 16 U = 82 sweeps.
  guidance   text, weight 3.
  cache      keys and values of finished blocks.
Sizes: 38,697,024 parameters over latents of the 76,312,199 of configs/motion_vae.py (with its projection).
Variants:  'stream': at most three blocks in flight (K = 12, U = 4), one latent each, so that a prompt shows at once.
           'tiny': 21 joints at 20 frames a second in 64 numbers, words embedded as they are trained, one latent per
           block. 'stream_tiny': the same network, sampled as 'stream'.
Differs from the paper: time is embedded as 1000 t (it embeds t itself, whose sinusoids hardly change). A block that is
finished is told so; in the released sampler finished latents of later segments are told that they are noise. Epochs
and the learning rate of the paper's lineage (MARDM), warm-up 2000 steps.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_motion

PATH = "motion"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '', 'stream', 'tiny' and 'stream_tiny'; see above."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="humanml3d", path="", frames=204, shortest=40, height=0, width=0, channels=263)
    c.vae = dict(form="motion", motion=dict(channels=263, latent=64, width=1024, depth=3, stages=2, align=256))
    c.text = dict(encoder="distilbert", path="distilbert/distilbert-base-uncased", tokens=64)
    c.model = dict(width=512, depth=8, heads=4, mlp=1024, patch=(1,), channels=64, text=768, head="none")
    c.layout = dict(kind="block_causal", block=3)
    c.process = dict(path="linear", predict="velocity")
    c.levels = dict(kind="independent")
    c.schedule = dict(steps=50, offset="pyramid", stride=2.0)
    c.guidance = dict(kind="cfg", scale=3.0, drop=("text",))
    c.cache = dict(kind="kv")
    c.train = dict(steps=180_000, batch=64, lr=2e-4, warmup=2_000, betas=(0.9, 0.99), weight_decay=1e-5, ema=0.9999)
    c.evaluate = dict(clips=0, context=3, frames=48)  # no clip of HumanML3D has all of 204 frames
    c.stream = dict(capacity=8)
    c.log = dict(every=100, evaluate=10_000, checkpoint=5_000)
    if variant not in ("", "stream", "tiny", "stream_tiny"):
        raise ValueError(f"cmdm has no variant {variant!r}; there are 'stream', 'tiny' and 'stream_tiny'")
    if variant.endswith("tiny"):
        tiny_on_motion(c, PATH)
        c.layout.update(block=1)
        c.guidance.update(scale=2.0)  # prompts are obeyed; more makes changes of the prompt abrupt
    if variant.startswith("stream"):
        c.layout.update(block=1)
        c.schedule.update(steps=12, stride=4.0)
        c.stream.update(capacity=4)
    return c
