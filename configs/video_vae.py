"""The causal video VAE of Wan 2.1: 16 numbers for 8 x 8 pixels of 4 frames, streamed exactly.

Paper:     Wan et al. 2025, arXiv 2503.20314 (126,892,531 parameters).
Command:   python train.py --config=configs/video_vae.py --workdir=runs/video_vae
           after setting PATH below (or adding --config.data.path=/where/your/videos/are).
Method:    L1, LPIPS where reconstruction.lpips names a file of its weights (else a multi-scale feature distance), KL,
           and from step 50,000 on the hinge loss of a causal patch discriminator, weighed by gradient norms. The paper
           trains images first, then small and short videos; it does not tell the weights of its losses, which are ours.
Hardware:  the full size: a node of accelerators with 80 GB. 'tiny': two CPU cores, 12 minutes.
Expected:  'tiny', on 64 x 64 crops of real footage: docs/vae.md.
"""

import ml_collections

PATH = "videos"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above), 'tiny' (64 x 64, two CPU cores) and 'fast' (a small decoder for a tiny run's latents)."""
    c = ml_collections.ConfigDict()
    c.trains = "vae"
    c.data = dict(source="video_folder", path=PATH, frames=17, height=256, width=256, channels=3, fps=16.0)
    c.vae = dict(form="video", video=dict(base=96, latent=16, multipliers=(1, 2, 4, 4), blocks=2, remat=True))
    c.reconstruction = dict(fit="l1", kl=1e-5, perceptual=1.0, gan=0.1, gan_start=50_000)
    c.train = dict(steps=200_000, batch=32, lr=1e-4, warmup=1000, weight_decay=0.0, ema=0.9999)
    c.evaluate = dict(clips=64)
    c.log = dict(every=50, evaluate=5000, checkpoint=1000)
    if variant in ("tiny", "fast"):
        c.data.update(frames=9, height=64, width=64)
        c.vae.video.update(base=32, multipliers=(1, 2, 4), time_down=(True, True), blocks=1, decoder_blocks=1)
        c.vae.video.update(patch=2, shortcuts=True, remat=False)  # not Wan 2.1's: it learns in minutes
        c.reconstruction.update(fit="mse", kl=1e-3, perceptual=0.0, gan=0.0, gan_start=0)
        c.train.update(steps=4200, batch=4, lr=2e-3, warmup=50, ema=0.99, crop=32)
        c.evaluate.update(clips=24)
        c.log.update(every=50, evaluate=300, checkpoint=300)
    if variant == "fast":
        c.vae.video.update(decoder_base=16)
        c.reconstruction.update(teacher="runs/video_vae")
        c.train.update(steps=1200, lr=3e-3)
    if variant not in ("", "tiny", "fast"):
        raise ValueError(f"video_vae has no variant {variant!r}; there are 'tiny' and 'fast'")
    return c
