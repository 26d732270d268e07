"""What a text-to-motion system makes of held-out captions, drawn."""

from pathlib import Path

import numpy as np

from causal_diffusion.render.files import write_png
from causal_diffusion.render.motion import sheet, write_clip

SHOWN = 4  # captions


def draw_prompts(pipeline, captions, folder: Path) -> np.ndarray:
    """Motions for a few different captions as strips below each other, ``prompts.png`` in ``folder``; the first moves
    in ``prompts.mp4``. Returns the picture."""
    chosen = list(dict.fromkeys(captions))[:SHOWN]
    body, recipe = pipeline.body, pipeline.recipe
    frames = recipe.frames * (1 if pipeline.codec is None else pipeline.codec.geometry.time)
    clips = pipeline.positions(pipeline.generate(0, frames, len(chosen), {"text": chosen}))
    options = dict(names=body.names, fps=body.fps)
    picture = sheet(list(zip(chosen, clips, strict=True)), body.parents, **options)
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / "prompts.png", picture)
    write_clip(folder / "prompts.mp4", clips[0], body.parents, captions=chosen[0], **options)
    return picture
