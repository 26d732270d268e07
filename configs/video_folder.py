"""Your own videos: learn from a folder of files, and stream on from where a clip ends.

Command:   python train.py --config=configs/video_folder.py --workdir=runs/video
           after setting PATH below (or adding --config.data.path=/where/your/videos/are).
Data:      any files in which FFmpeg finds a video, searched recursively, resampled to data.fps (at time t the last
           frame that has begun), shown as they declare, cut around damage, cropped to the centre and resized. An
           optional clips.jsonl in the folder chooses files and adds captions, labels and actions; then set
           data.classes with model.classes, or data.action_dim with model.action.
Method:    teacher forcing with a noised clean copy, one frame per block, x0 predicted and scored as velocity; see
           quickstart.py for the reasons.
Hardware:  two CPU cores: 64 x 64 pixels, 8 frames a second, about 1.5 s a step. The variant 'gpu' is for one
           accelerator with 40 GB.
Expected:  next-frame PSNR above that of copying the last frame wherever something moves. Scenes that stand still are
           hard to beat by copying; the table printed at the end shows both, frame by frame.
"""

import ml_collections

PATH = "videos"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (two CPU cores), 'gpu' (128 x 128, larger), 'tiny' (seconds, for tests)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="video_folder", path=PATH, frames=8, height=64, width=64, channels=3, fps=8.0)
    c.model = dict(width=256, depth=6, heads=4, mlp=1024, patch=(1, 8, 8), channels=3)
    c.layout = dict(kind="teacher_forcing", block=1)
    c.process = dict(path="linear", predict="x0", loss="velocity", floor=0.1)
    c.levels = dict(kind="independent", density="logit_normal", mean=0.0, std=1.0, context=0.3)
    c.schedule = dict(steps=8, offset="autoregressive")
    c.cache = dict(commit_level=0.05)
    c.train = dict(steps=4000, batch=8, lr=6e-4, warmup=200, ema=0.999)
    c.evaluate = dict(clips=16, context=4, frames=32)
    c.log = dict(every=20, evaluate=500, checkpoint=250)
    if variant == "gpu":
        c.data.update(frames=16, height=128, width=128, fps=12.0)
        c.model.update(width=1024, depth=16, heads=16, mlp=4096, layers="scan", remat="full")
        c.train.update(steps=100_000, batch=32, lr=2e-4, warmup=2000, ema=0.9999)
        c.evaluate.update(frames=64)
    elif variant == "tiny":
        c.data.update(frames=4, height=16, width=16)
        c.model.update(width=32, depth=2, heads=2, mlp=64)
        c.train.update(steps=10, batch=4, warmup=2)
        c.evaluate.update(clips=2, context=2, frames=6)
        c.log.update(every=5, evaluate=5, checkpoint=5)
    elif variant:
        raise ValueError(f"video_folder has no variant {variant!r}; there are 'gpu' and 'tiny'")
    return c
