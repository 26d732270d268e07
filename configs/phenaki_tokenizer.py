"""C-ViViT, Phenaki's causal tokenizer: a transformer whose latents see the past along time and their own frame in
space.

Paper:     Phenaki, Villegas et al. 2022, arXiv 2210.02399.
Command:   python train.py --config=configs/phenaki_tokenizer.py --workdir=runs/phenaki_tokenizer
           after setting PATH below (or adding --config.data.path=/where/your/videos/are).
Method:    vector-quantised latents of 2 x 8 x 8 pixels, the first frame apart; MSE, a perceptual distance (LPIPS where
           reconstruction.lpips names a file of its weights) and the hinge loss of a causal patch discriminator.
           A latent sees the eight latest along time, so that a stream's memory is constant; the paper's sees all.
Hardware:  the full size, 51,884,144 parameters: one accelerator with 80 GB. 'tiny', with Gaussian latents of 4 x 8 x 8
           pixels: two CPU cores, six minutes.
Expected:  'tiny', on 64 x 64 crops of real footage: docs/vae.md.
"""

import ml_collections

PATH = "videos"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (64 x 64, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.trains = "vae"
    c.data = dict(source="video_folder", path=PATH, frames=11, height=128, width=128, channels=3, fps=8.0)
    c.vae = dict(form="tokenizer", tokenizer=dict(latent=32, width=512, depth=4, heads=8, patch=(2, 8, 8),
                                                  size=(128, 128), quantise="vq", codes=8192))  # fmt: skip
    c.reconstruction = dict(fit="mse", kl=1e-5, perceptual=0.1, gan=0.1, gan_start=50_000)
    c.train = dict(steps=1_000_000, batch=128, lr=1e-4, warmup=1000, weight_decay=0.0, ema=0.9999)
    c.evaluate = dict(clips=64)
    c.log = dict(every=50, evaluate=10_000, checkpoint=2000)
    if variant == "tiny":
        c.data.update(frames=9, height=64, width=64)
        c.vae.tokenizer.update(latent=16, width=256, depth=3, patch=(4, 8, 8), size=(64, 64), quantise="none")
        c.reconstruction.update(fit="mse", kl=1e-3, perceptual=0.0, gan=0.0, gan_start=0)
        c.train.update(steps=1200, batch=4, lr=1e-3, warmup=100, ema=0.995)
        c.evaluate.update(clips=24)
        c.log.update(every=10, evaluate=300, checkpoint=300)
    elif variant:
        raise ValueError(f"phenaki_tokenizer has no variant {variant!r}; there is 'tiny'")
    return c
