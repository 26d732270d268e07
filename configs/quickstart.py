"""Real handwritten digits in motion, learned and streamed on two CPU cores.

Command:   python train.py --config=configs/quickstart.py --workdir=runs/quickstart
Method:    teacher forcing (ACDiT, arXiv 2412.07720) with noise augmentation of the context (GameNGen, arXiv
           2408.14837).
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (seconds, for tests: the same system, smaller)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="moving_digits", frames=12, height=16, width=16, channels=1)
    c.model = dict(width=192, depth=5, heads=4, mlp=512, patch=(1, 8, 8), channels=1, classes=10)
    c.layout = dict(kind="teacher_forcing", block=1, window=11)
    c.process = dict(path="linear", predict="x0", loss="x0")
    c.levels = dict(kind="independent", density="uniform", context=0.3)
    c.schedule = dict(steps=4, offset="autoregressive")
    c.train = dict(steps=1600, batch=24, lr=1e-3, warmup=100, ema=0.995)
    c.evaluate = dict(clips=64, context=4, frames=48)
    c.log = dict(every=20, evaluate=400, checkpoint=200)
    if variant == "tiny":
        c.data.update(frames=6)
        c.model.update(width=32, depth=2, heads=2, mlp=64)
        c.layout.update(window=4)
        c.train.update(steps=20, batch=8, warmup=5)
        c.evaluate.update(clips=4, context=2, frames=12)
        c.log.update(every=5, evaluate=10, checkpoint=5)
    elif variant:
        raise ValueError(f"quickstart has no variant {variant!r}; there is 'tiny'")
    return c
