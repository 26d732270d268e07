"""MotionStreamer: one latent after the other, each drawn by a small diffusion network that a transformer instructs.

Paper:     Xiao et al., ICCV 2025, arXiv 2503.15451.
Command:   cd.train(cd.load_config("motionstreamer"), workdir="runs/motionstreamer", source=clips)
           with clips of 272 normalised numbers per frame at 30 frames a second and the tokens of a sentence encoder;
           'tiny': the commands of docs/motion.md, after setting PATH below.
Hardware:  one accelerator; 'tiny': two CPU cores.
Expected:  'tiny': docs/motion.md. Paper: FID 11.79, R-precision@1 .631 under an evaluator of its own.

The six values:
  layout     teacher_forcing, one latent per block.
  process    cosine VP path, noise prediction.
  levels     independent.
  schedule   autoregressive, 50 steps of the head.
  guidance   text, weight 4.
  cache      keys and values of finished latents.
Training in two passes: the first guesses every latent from the data's own past, a share of that past is replaced by the
guesses for the second, which is scored; the share falls from 1 to 0 on a half cosine, as in the release.
Differs from the paper: text is attended to by every latent instead of being the first token. The place of the latent to
come holds a query of its own, where the release reads the output at the latent before. A stream ends when its user
says so, not at a learned end latent. 'tiny' predicts the velocity of the linear path, in ten steps, and its share of
guesses rises from 0 to a half: of so short a training the first guesses are no past.
"""

import ml_collections

from causal_diffusion.tiny import tiny_on_motion

PATH = "motion"  # <- the only line to edit


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: '' (above) and 'tiny' (data and budget of cmdm:tiny)."""
    c = ml_collections.ConfigDict()
    c.data = dict(source="own", frames=312, height=0, width=0, channels=272)
    c.vae = dict(form="motion", motion=dict(channels=272, latent=16, width=1024, depth=3, stages=2, align=0))
    c.model = dict(width=768, depth=12, heads=12, mlp=3072, patch=(1,), channels=16, text=768)
    c.model.update(head="diffusion", head_width=1792, head_depth=9)
    c.layout = dict(kind="teacher_forcing", block=1, copies=1)
    c.process = dict(path="vp_cosine", predict="noise", clip=6.0)
    c.levels = dict(kind="independent")
    c.schedule = dict(steps=50, offset="autoregressive", t_max=0.99)
    c.guidance = dict(kind="cfg", scale=4.0, drop=("text",))
    c.cache = dict(kind="kv")
    c.train = dict(steps=100_000, batch=256, lr=1e-4, warmup=10_000, weight_decay=1e-6, own_past=(1.0, 0.0))
    c.evaluate = dict(clips=64, context=4, frames=48)
    c.log = dict(every=100, evaluate=10_000, checkpoint=5_000)
    if variant == "tiny":
        tiny_on_motion(c, PATH)
        c.model.update(head_width=384, head_depth=3)
        c.process = dict(path="linear", predict="velocity")
        c.schedule.update(steps=10)
        c.guidance.update(scale=1.5)  # no look-ahead: more makes changes of the prompt abrupt
        c.train.update(own_past=(0.0, 0.5))
    elif variant:
        raise ValueError(f"motionstreamer has no variant {variant!r}; there is 'tiny'")
    return c
