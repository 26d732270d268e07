"""CDT: a causal tokenizer whose decoder is a diffusion model, here of a single step.

Paper:     Yang et al. 2025, arXiv 2503.03708 (no weights were released, and no weights of the losses).
Command:   python train.py --config=configs/cdt.py --workdir=runs/cdt
           after setting PATH below (or adding --config.data.path=/where/your/videos/are).
Method:    a causal U-Net predicts the clip from a noised one and the latent's features, at a random step of 8,192; MSE,
           KL and a perceptual distance (LPIPS where reconstruction.lpips names a file of its weights); no GAN. Decoding
           takes vae.cdt.steps passes, 1 as in the paper's fast form; a stream keeps a cache for each.
Hardware:  the full size, 192,592,755 parameters: a node of accelerators. 'tiny': two CPU cores, fifteen minutes.
Expected:  'tiny', on 64 x 64 crops of real footage: docs/vae.md.
"""

import ml_collections

PATH = "videos"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (64 x 64, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.trains = "vae"
    c.data = dict(source="video_folder", path=PATH, frames=17, height=256, width=256, channels=3, fps=16.0)
    c.vae = dict(form="cdt", cdt=dict(base=128, latent=16, unet=64, steps=1))
    c.reconstruction = dict(fit="mse", kl=1e-5, perceptual=1.0)
    c.train = dict(steps=500_000, batch=32, lr=1e-4, warmup=1000, weight_decay=0.0, ema=0.9999)
    c.evaluate = dict(clips=64)
    c.log = dict(every=50, evaluate=10_000, checkpoint=2000)
    if variant == "tiny":
        c.data.update(frames=9, height=64, width=64)
        c.vae.cdt.update(base=24, unet=24, multipliers=(1, 2, 3), unet_multipliers=(1, 2, 4), patch=2, wide=3, up=3)
        c.vae.cdt.update(blocks=1, space_down=(True, True, False), train_from=0.9)  # minutes suffice for one step only
        c.reconstruction.update(fit="mse", kl=1e-3, perceptual=0.0)
        c.train.update(steps=1800, batch=4, lr=2e-3, warmup=50, ema=0.99, crop=32)
        c.evaluate.update(clips=24)
        c.log.update(every=50, evaluate=300, checkpoint=300)
    elif variant:
        raise ValueError(f"cdt has no variant {variant!r}; there is 'tiny'")
    return c
