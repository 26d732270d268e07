"""Clips in which the caption changes: two of the data's own, one fading into the other.

Clips of motion capture have one caption each, and a system that never saw a prompt change answers with a leap. An
augmentation joins two elements a and b of a series [T, C], whose frames say how a body is posed and moves from its own
point of view, so that they may follow each other anywhere::

    a       |------------------\\......|              the last ``blend`` frames fade, weight 3 w^2 - 2 w^3
    b                          |....../-----------|
    text_of 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1 1    per group of ``time`` frames: b from where the fade begins

'text' and 'text_mask' have both captions, one behind the other, and 'text_of' says whose a group is; an element that is
not joined has its own caption twice.
"""

import numpy as np

from causal_diffusion.data.pipeline import Augment


def composed(source, share: float, blend: int, time: int) -> Augment:
    """An augmentation of elements of ``source`` that have 'text' and 'length', which becomes that of the join.

    Args:
        source: where the second element comes from.
        share: of elements that are joined.
        blend: frames that fade, a multiple of ``time``.
        time: frames of a group, which divides those of an element.
    """

    def augment(element: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        groups = len(element["video"]) // time
        out = element | {name: np.stack([element[name]] * 2) for name in ("text", "text_mask")}
        out["text_of"] = np.zeros(groups, np.int32)
        longest = _length(element) // time * time
        if rng.random() >= share or longest < blend + time:
            return out
        other = source[int(rng.integers(len(source)))]
        second = other["video"][: _length(other)]
        if len(second) <= blend:
            return out
        end = time * int(rng.integers((blend + time) // time, longest // time + 1))
        begin = end - blend
        ramp = (np.arange(blend, dtype=np.float32) + 0.5) / blend
        weight = (3 * ramp**2 - 2 * ramp**3)[:, None]
        fade = (1 - weight) * element["video"][begin:end] + weight * second[:blend]
        joined = np.concatenate([element["video"][:begin], fade, second[blend:]])[: len(element["video"])]
        count = len(joined) // time * time
        out["video"] = np.zeros_like(element["video"])
        out["video"][:count] = joined[:count]
        out |= {name: np.stack([element[name], other[name]]) for name in ("text", "text_mask")}
        out["text_of"][begin // time :] = 1
        return out | {"length": np.asarray(count, np.int32)}

    return augment


def _length(element) -> int:
    return int(element.get("length", len(element["video"])))
