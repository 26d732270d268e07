"""Real handwritten digits in motion, learned and streamed on two CPU cores.

Command:   python train.py --config=configs/quickstart.py --workdir=runs/quickstart
Hardware:  two CPU cores, about nine minutes, 1.4 GB.
Expected:  printed at the end, for 64 held-out clips continued from four frames: next-frame PSNR 24.1 dB, copying the
           last frame 17.7 dB; the given digit recognised in 97 / 91 / 88 / 83 / 75 % of the frames 1 / 4 / 8 / 16 / 48
           (100 % of the true ones).

Method:    teacher forcing (ACDiT, arXiv 2412.07720): every noisy frame sees the clean past. With independent noise
           levels a first experiment lost the digit within a frame: most of the past they show is noise.
Why these values (what was tried, with figures: docs/quickstart.md):
  predict x0           A digit lies on a thin manifold, its noise does not: a token of 192 numbers holds the one and
                       cannot pass on the other.
  levels uniform       The easy low levels teach the patches; skewed towards high noise it was 1.7 dB worse.
  context 0.5, commit 0.2, window 4
                       Against drift. Past frames are noised in training, and a little in the stream, so that their
                       flaws are not copied on; a short window forgets them soon.
  sinks 4, gap 64      The given frames stay in sight for ever, undamaged, however far the stream has come.
  guidance 3           The class pulls every frame back to its digit. 2 is 0.5 dB closer to the truth, and loses more.
  2 steps              More steps sharpen one frame and spoil the next: the motion leaves little to choose.
  theta 100, positions both
                       Two by two tokens and a dozen frames need faster angles than a film, and corners need a place.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (seconds, for tests: the same system, smaller)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="moving_digits", frames=12, height=16, width=16, channels=1)
    c.model = dict(width=192, depth=4, heads=4, mlp=768, patch=(1, 8, 8), channels=1, classes=10)
    c.model.update(positions="both", theta=100.0, modulation="table")
    c.layout = dict(kind="teacher_forcing", block=1, window=4, sinks=4, gap=64)
    c.process = dict(path="linear", predict="x0")
    c.levels = dict(kind="independent", density="uniform", context=0.5)
    c.schedule = dict(steps=2, offset="autoregressive")
    c.guidance = dict(kind="cfg", scale=3.0)
    c.cache = dict(commit_level=0.2)
    c.train = dict(steps=4600, batch=6, lr=3e-3, warmup=150, ema=0.998, drop=0.1)
    c.evaluate = dict(clips=64, context=4, frames=48)
    c.log = dict(every=20, evaluate=2000, checkpoint=500)
    if variant == "tiny":
        c.data.update(frames=8)
        c.model.update(width=32, depth=2, heads=2, mlp=64)
        c.train.update(steps=20, batch=8, warmup=5)
        c.evaluate.update(clips=4, frames=12)
        c.log.update(every=5, evaluate=10, checkpoint=5)
    elif variant:
        raise ValueError(f"quickstart has no variant {variant!r}; there is 'tiny'")
    return c
