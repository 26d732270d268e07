"""Where clips come from: the table of sources, and what an element of each looks like.

A source is a random-access object: `len(source)`, `source[i]`, and a `repr` that says what is in it and is
the same in every run. An element is a dict of numpy arrays:

    video   float32 [T, H, W, C] in [-1, 1]; of latents any numbers; of a series [T, C]
    label   int32 []             class, where the source has classes
    action  float32 [T, A]       row f is what leads from frame f-1 to frame f, where the source has actions
    text    float32 [M, E]       condition tokens, where the source has them, with text_mask bool [M]; or int32 [M],
                                 ids of words (captioned.py)
    length  int32 []             with data.shortest: how many of the T frames count, the others are padding

Captions are not arrays: a source that has them offers `source.captions`, one string per element.

To add a source, write a class `Name(config, split)` with these methods and `condition_sizes(config)`, and
enter it in `SOURCES`. Arrays already in memory (array_source.py), and any other object of the kind, are handed
to `train` as they are, under `data.source = 'own'`; the config then states their shapes.
"""

import difflib

import jax
import numpy as np

from causal_diffusion.data.config import DataConfig, check_split
from causal_diffusion.data.humanml3d import HumanML3D
from causal_diffusion.data.latents import Latents
from causal_diffusion.data.motion_clips import MotionClips
from causal_diffusion.data.moving_digits import MovingDigits
from causal_diffusion.data.snapmogen import SnapMoGen
from causal_diffusion.data.video_folder import VideoFolder
from causal_diffusion.errors import UserError


class _Own:
    """The place of a source that the caller brings."""

    def __init__(self, config: DataConfig, split: str):
        raise UserError("data.source is 'own': hand the clips over, train(config, workdir, source=..., held_out=...)")

    @staticmethod
    def condition_sizes(config: DataConfig) -> tuple[int, int]:
        return config.classes, config.action_dim


SOURCES = {
    "moving_digits": MovingDigits,
    "video_folder": VideoFolder,
    "motion_clips": MotionClips,
    "humanml3d": HumanML3D,
    "snapmogen": SnapMoGen,
    "latents": Latents,
    "own": _Own,
}


def make_source(config: DataConfig, split: str):
    """Opens the configured source.

    Args:
        config: the data of the experiment.
        split: 'train' or 'test'; the two share no digit and no video file (of a single file, no frame).

    Raises:
        UserError: an unknown source, or data that is missing or unusable.
    """
    check_split(config, split)
    return _source_class(config)(config, split)


def condition_sizes(config: DataConfig) -> tuple[int, int]:
    """(number of classes, numbers per action) of the source, 0 where it has none. Reads no data."""
    return _source_class(config).condition_sizes(config)


def element_spec(config: DataConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array in an element of the configured source. Reads no data."""
    classes, action_dim = condition_sizes(config)
    spec = {"video": jax.ShapeDtypeStruct((config.frames, *config.frame_shape), np.float32)}
    if classes:
        spec["label"] = jax.ShapeDtypeStruct((), np.int32)
    if action_dim:
        spec["action"] = jax.ShapeDtypeStruct((config.frames, action_dim), np.float32)
    if config.shortest:
        spec["length"] = jax.ShapeDtypeStruct((), np.int32)
    return spec


def spec_of(source, config: DataConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array in an element of an opened source.

    Raises:
        UserError: they are not what the config states.
    """
    spec = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in source[0].items()}
    for key, stated in element_spec(config).items():
        if key not in spec or spec[key].shape != stated.shape:
            found = spec[key].shape if key in spec else "missing"
            raise UserError(f"{key} of a clip is {found}; by the data section of the config it is {stated.shape}")
    return spec


def _source_class(config: DataConfig):
    if config.source not in SOURCES:
        nearest = difflib.get_close_matches(config.source, SOURCES, n=1, cutoff=0.0)[0]
        raise UserError(f"data.source {config.source!r} is unknown: did you mean {nearest!r}? "
                        f"There are {', '.join(SOURCES)}")
    return SOURCES[config.source]
