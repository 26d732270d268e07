"""A plain VAE of single frames, as action-conditioned worlds use: no frame sees another.

Paper:     Next-Frame Diffusion, Cheng et al. 2025, arXiv 2506.01380, works on such latents (16 x, one frame each).
Command:   python train.py --config=configs/frame_vae.py --workdir=runs/frame_vae
           after setting PATH below (or adding --config.data.path=/where/your/videos/are).
Method:    the video VAE with one tap along time: its latents keep the rate of the frames, so an action belongs to each.
           Losses as in video_vae.py.
Hardware:  the full size, 48,271,795 parameters: one accelerator with 80 GB. 'tiny': two CPU cores, ten minutes.
Expected:  'tiny', on 64 x 64 crops of real footage: docs/vae.md.
"""

import ml_collections

PATH = "videos"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (64 x 64, two CPU cores)."""
    c = ml_collections.ConfigDict()
    c.trains = "vae"
    c.data = dict(source="video_folder", path=PATH, frames=4, height=224, width=384, channels=3, fps=16.0)
    c.vae = dict(form="video", video=dict(base=96, latent=16, multipliers=(1, 2, 2, 4, 4), blocks=2, time_kernel=1,
                                          time_down=(False, False, False, False)))  # fmt: skip
    c.reconstruction = dict(fit="l1", kl=1e-5, perceptual=1.0, gan=0.1, gan_start=50_000)
    c.train = dict(steps=200_000, batch=16, lr=1e-4, warmup=1000, weight_decay=0.0, ema=0.9999)
    c.evaluate = dict(clips=64)
    c.log = dict(every=50, evaluate=5000, checkpoint=1000)
    if variant == "tiny":
        c.data.update(frames=2, height=64, width=64)
        c.vae.video.update(base=32, latent=4, multipliers=(1, 2, 4), blocks=1, decoder_blocks=1)
        c.vae.video.update(time_down=(False, False), patch=2, shortcuts=True)  # learns in minutes
        c.reconstruction.update(fit="mse", kl=1e-3, perceptual=0.0, gan=0.0, gan_start=0)
        c.train.update(steps=2000, batch=12, lr=2e-3, warmup=50, ema=0.99, crop=32)
        c.evaluate.update(clips=24)
        c.log.update(every=50, evaluate=500, checkpoint=500)
    elif variant:
        raise ValueError(f"frame_vae has no variant {variant!r}; there is 'tiny'")
    return c
