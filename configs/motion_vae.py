"""MAC-VAE: the causal temporal autoencoder of CMDM, 64 numbers for four frames of motion, streamed exactly.

Paper:     Causal Motion Diffusion Models, arXiv 2602.22594 (76,312,199 parameters with its projection onto the
           features).
Command:   cd.train(cd.load_config("motion_vae"), workdir="runs/motion_vae", source=clips)
           with clips of 263 normalised numbers per frame at 20 frames a second, as HumanML3D has them; 'tiny' from a
           shell: python train.py --config=configs/motion_vae.py:tiny --workdir=runs/motion_vae after setting PATH below
           to a folder of .npz files of joint positions (data/motion_clips.py).
Method:    Gaussian likelihood of the best sigma, the root once more with weight 7, KL with warm-up, and latents aligned
           with frozen features of motion, weighed by gradient norms. The paper's features come from a part-wise model
           of motion and text; these are kinematics (motion/features.py). It does not tell the weights of KL and
           alignment.
           'text' also takes --config.reconstruction.features=runs/motion_text, a run of configs/motion_text.py:tiny.
Hardware:  the full size: one accelerator. 'tiny': two CPU cores, five minutes.
Expected:  'tiny': docs/vae.md.
"""

import ml_collections

PATH = "motion"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (the paper's size), 'tiny' (21 joints, two CPU cores) and 'text' (the autoencoder of cmdm:tiny)."""
    c = ml_collections.ConfigDict()
    c.trains = "vae"
    c.data = dict(source="own", frames=64, height=0, width=0, channels=263)
    c.vae = dict(form="motion", motion=dict(channels=263, latent=64, width=1024, depth=3, stages=2, align=256))
    c.reconstruction = dict(fit="likelihood", root=4, root_weight=7.0, kl=1e-4, kl_warmup=20_000, align=0.1)
    c.train = dict(steps=2_000_000, batch=128, lr=5e-5, warmup=1000, betas=(0.9, 0.99), ema=0.999)
    c.evaluate = dict(clips=256)
    c.log = dict(every=100, evaluate=20_000, checkpoint=5_000)
    if variant == "tiny":
        c.data.update(source="motion_clips", path=PATH, channels=65, stride=4)
        c.vae.motion.update(channels=65, latent=8, width=256)
        c.reconstruction.update(root=2, kl_warmup=200)
        c.train.update(steps=2000, batch=16, lr=5e-4, warmup=100, ema=0.995)
        c.log.update(every=50, evaluate=500, checkpoint=500)
    elif variant == "text":
        c.data.update(source="motion_clips", path=PATH, representation="essential", fps=20.0, frames=64, channels=64)
        c.data.update(stride=4, mirror=True, unseen=0.15)
        c.vae.motion.update(channels=64, latent=16, width=256, align=64)
        c.reconstruction.update(root=3, kl_warmup=400, velocity=1.0)
        c.train.update(steps=4000, batch=16, lr=5e-4, warmup=100, ema=0.995)
        c.log.update(every=50, evaluate=1000, checkpoint=1000)
    elif variant:
        raise ValueError(f"motion_vae has no variant {variant!r}; there are 'tiny' and 'text'")
    return c
