"""Left and right exchanged: of a clip, of its numbers, and of what is said about it.

The mirror is the plane x = 0. Joint j of the mirrored clip is the mirror image of the joint on the other side, so the
body is a body of the same skeleton that does with its left what the first did with its right.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import humanml
from causal_diffusion.motion.skeleton import Skeleton

Array = Any
_POINT = (-1, 1, 1)  # x changes its sign
_SIX = (1, -1, -1, -1, 1, 1)  # entry i, j of a mirrored matrix changes its sign if one of i, j is x

_OTHER = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b(left|right)(?=(?:s|y|ward|wards|most|hand|handed|foot|footed|side)?\b)", re.IGNORECASE)
_CLOCK = re.compile(r"\b(counter|anti)?([- ]?)(clockwise)\b", re.IGNORECASE)


def mirror_positions(positions: Array, skeleton: Skeleton) -> Array:
    """[..., J, 3] in the world -> the same of the mirrored body, numpy or jax."""
    if positions.ndim < 2 or positions.shape[-2:] != (skeleton.joints, 3):
        raise UserError(f"positions {positions.shape} are not of {skeleton.joints} joints: [..., {skeleton.joints}, 3] "
                        "would do")  # fmt: skip
    sign = np.array(_POINT, positions.dtype)
    return positions[..., np.array(skeleton.mirrored), :] * sign


def mirror_vector(x: Array, skeleton: Skeleton) -> Array:
    """Vectors of ``motion.humanml`` [..., C], full or essential: those of a clip p -> those of mirror_positions(p).

    Not for normalised numbers, unless mean and deviations are those of mirrored clips, too.

    Raises:
        UserError: C is neither 12 J - 1 nor 4 + 3 (J - 1).
    """
    J, C = skeleton.joints, x.shape[-1]
    if C not in (humanml.width(J), humanml.essential_width(J)):
        raise UserError(f"{J} joints have no {C} numbers per frame: {humanml.width(J)} or {humanml.essential_width(J)} "
                        "would do")  # fmt: skip
    source, sign = _exchange(skeleton)
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.take(x, source[:C], axis=-1) * sign[:C].astype(x.dtype)


def mirror_caption(text: str) -> str:
    """The caption of the mirrored clip: left and right exchanged, clockwise and counterclockwise too, case kept.

    Word by word, so 'upright' and 'copyright' stay; 'rightwards' and 'left-handed' change. It does not know what words
    mean: 'right away' becomes 'left away'. Also works on lemmas with tags ('left/ADJ').
    """
    text = _SIDE.sub(lambda m: _like(m[1], _OTHER[m[1].lower()]), text)
    return _CLOCK.sub(_other_way_round, text)


@functools.lru_cache(maxsize=16)
def _exchange(skeleton):
    """(which number of the clip, with which sign) each number of the mirrored clip is, for full vectors."""
    J, kinds, mirrored = skeleton.joints, humanml.groups(skeleton.joints), np.array(skeleton.mirrored)
    source, sign = np.arange(humanml.width(J)), np.ones(humanml.width(J))
    sign[:2] = -1  # the way round, and sideways
    for name, of_joints, signs in (
        ("positions", mirrored[1:] - 1, _POINT),
        ("rotations", mirrored[1:] - 1, _SIX),
        ("velocities", mirrored, _POINT),
    ):
        source[kinds[name]] = source[kinds[name]].reshape(-1, len(signs))[of_joints].ravel()
        sign[kinds[name]] = np.tile(signs, len(of_joints))
    contacts = kinds["contacts"]
    source[contacts] = np.roll(source[contacts], 2)
    return source, sign


def _other_way_round(match):
    counter, between, clockwise = match[1], match[2], match[3]
    if counter:
        return _like(counter, clockwise)
    return between + _like(clockwise, "counterclockwise")


def _like(found, word):
    """``word`` in capitals, with a capital or in lower case, as ``found`` is."""
    if found.isupper():
        return word.upper()
    return word.capitalize() if found[0].isupper() else word.lower()
