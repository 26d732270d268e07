"""Data, network and budget of the ``tiny`` variants: what a config of a kind shares with the others."""

import ml_collections


def tiny_on_digits(config: ml_collections.ConfigDict) -> None:
    """Gives a config, in place, the data and the budget that the ``tiny`` variants of the family share.

    Clips of moving digits with their class and no other condition, one small network, minutes on two CPU cores. A
    variant then sets what its system needs beside it. ``benchmarks/family.py`` compares systems by this budget.
    """
    config.data.update(source="moving_digits", path="", frames=12, height=16, width=16, channels=1)
    config.data.update(classes=0, action_dim=0)  # of a folder or of own clips; digits know their class
    config.model.update(width=192, depth=4, heads=6, mlp=768, patch=(1, 8, 8), channels=1)
    config.model.update(classes=10, action=0, text=0)
    config.process.update(clip=1.0)  # the data lie in [-1, 1]
    config.train.update(steps=1500, batch=6, lr=3e-3, warmup=150, ema=0.998)
    config.evaluate.update(clips=64, context=4, frames=48)
    config.log.update(every=50, evaluate=0, checkpoint=1000)


def tiny_on_motion(config: ml_collections.ConfigDict, path: str) -> None:
    """Gives a config, in place, the data and the budget that the ``tiny`` text-to-motion systems share.

    Latents of ``motion_vae:text`` (16 numbers for four frames of 21 joints at 20 frames a second), clips of 1.2 to 6.4
    seconds from the folder ``path``, words embedded as they are trained, one small network.
    """
    config.data = dict(source="motion_clips", path=path, representation="essential", fps=20.0, frames=128, shortest=24)
    config.data.update(stride=32, height=0, width=0, channels=64, mirror=True, unseen=0.15)
    config.vae = dict(form="motion", motion=dict(channels=64, latent=16, width=256, depth=3, stages=2, align=64))
    config.text = dict(encoder="words", tokens=12)
    config.model.update(width=192, depth=6, heads=4, mlp=768, channels=16, text=96, vocabulary=128)
    config.train.update(steps=3000, batch=32, lr=1e-3, warmup=300, weight_decay=1e-3, ema=0.999, compose=0.3)
    config.evaluate.update(clips=64, context=4, frames=28)
    config.log.update(every=50, evaluate=1000, checkpoint=500)
