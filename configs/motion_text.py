"""A model of motions and captions in one space: the judge of the metrics, and what CMDM's latents are aligned with.

Paper:     Part-TMR in Causal Motion Diffusion Models, arXiv 2602.22594; TMR, Petrovich et al. 2023, arXiv 2305.00976.
Command:   python train.py --config=configs/motion_text.py --workdir=runs/motion_text --config.data.path=HumanML3D
               --config.text.path=distilbert/distilbert-base-uncased
           'tiny': python train.py --config=configs/motion_text.py:tiny --workdir=runs/motion_text after setting PATH.
Hardware:  one accelerator; 'tiny': two CPU cores, ten minutes.
Expected:  'tiny': docs/motion.md.
Method:    every part of the body is encoded by itself (motion/humanml.py says which numbers are whose), captions by a
           layer over their words; the contrastive loss knows equal captions (training/objectives/contrastive.py).
Part-TMR's weights, layers and training are not published: sizes of the space and of its inputs are, the rest is ours.
"""

import ml_collections

PATH = "motion"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (HumanML3D) and 'tiny' (21 joints in 64 numbers at 20 frames a second, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.trains = "motion_text"
    c.data = dict(source="humanml3d", path="", frames=196, shortest=40, height=0, width=0, channels=263)
    c.text = dict(encoder="distilbert", path="distilbert/distilbert-base-uncased", tokens=64)
    c.motion_text = dict(channels=263, width=512, depth=2, latent=256, text=768, tokens=64, heads=8)
    c.train = dict(steps=50_000, batch=256, lr=2e-4, warmup=1_000, weight_decay=0.05, ema=0.999, drop=0.1)
    c.evaluate = dict(clips=1024)
    c.log = dict(every=100, evaluate=5_000, checkpoint=5_000)
    if variant == "tiny":
        c.data.update(source="motion_clips", path=PATH, representation="essential", fps=20.0, frames=128, shortest=24)
        c.data.update(channels=64, mirror=True, stride=32)
        c.text = dict(encoder="words", tokens=12)
        c.motion_text.update(channels=64, width=96, depth=1, latent=64, text=0, vocabulary=128, tokens=12, heads=4)
        c.train.update(steps=2_000, batch=64, lr=1e-3, warmup=100, ema=0.995)
        c.log.update(every=50, evaluate=500, checkpoint=500)
    elif variant:
        raise ValueError(f"motion_text has no variant {variant!r}; there is 'tiny'")
    return c
