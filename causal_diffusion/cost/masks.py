"""Who sees whom in a training step, on average over its draws.

Where the draw of levels decides what a frame sees (roles inside one stream, ranges of level, prefixes), a mask holds
the probability of every pair. It is exact for the levels that put a clip's blocks into a definite order, 'prefix' and
'staircase': their draws are few, or fall into few cases. Of others ``SAMPLED`` draws are averaged, always the same.
"""

from typing import NamedTuple

import jax
import numpy as np

from causal_diffusion.layout import CLEAN, Ids
from causal_diffusion.seeds import random_key

SAMPLED = 1024


class Draws(NamedTuple):
    """Cases of a clip of n blocks: how likely each is [K], and of its blocks [K, n] the stage, whether they are
    context, and whether they are scored."""

    weight: np.ndarray
    stage: np.ndarray
    context: np.ndarray
    scored: np.ndarray


def training_masks(recipe) -> tuple[np.ndarray, np.ndarray | None]:
    """(mask, prefix mask or None) over a clip's concatenated streams, float [T, T]: the probability of being seen.

    In the prefix mask a frame without a prefix sees itself.
    """
    layout, prefix, frames = recipe.layout, recipe.model.config.prefix, recipe.frames
    if not (layout.by_role or layout.ranges or prefix):
        return layout.training_mask(frames).astype(np.float64), None
    streams, (frame, own) = layout.training_ids(frames), layout.noisy_frames(frames)
    far = layout.block_of(layout.coarse)
    draws = cases(recipe.levels, layout, layout.block_count(frames) - far)
    stage, context, scored = (np.tile(a[:, layout.block_of(own) - far], layout.copies) for a in draws[1:])
    at = np.tile(frame, layout.copies)
    stage = np.where(context & (at < layout.sinks - layout.pad), layout.last_stage, stage)  # sinks are shown clean
    noisy = streams["noisy"]
    shown = noisy.frame
    if layout.kind == "bidirectional_window":  # what is not yet in flight is absent
        shown = np.where(context | scored, shown, -1 - shown)
    streams["noisy"] = noisy._replace(role=np.where(context, CLEAN, noisy.role), frame=shown, stage=stage)
    parts = [Ids(*(np.broadcast_to(a, (len(stage), ids.lead.shape[-1])) for a in ids)) for ids in streams.values()]
    ids = Ids(*(np.concatenate(a, axis=1) for a in zip(*parts, strict=True)))

    def mean(masks):
        return np.tensordot(draws.weight, masks, axes=1)

    mask = mean(layout.visible(ids, ids))
    return mask, mean(or_itself(layout.prefix_visible(ids, ids, prefix))) if prefix else None


def or_itself(seen: np.ndarray) -> np.ndarray:
    """A mask bool [..., T, S] whose last T columns are the rows' own; a row without an entry sees itself."""
    T, S = seen.shape[-2:]
    return seen | (np.eye(T, S, k=S - T, dtype=bool) & ~seen.any(axis=-1, keepdims=True))


def cases(levels, layout, blocks: int) -> Draws:
    """What ``levels`` may draw for a clip of so many blocks."""
    cuts, order = layout.range_levels, np.arange(blocks)
    fixed = not cuts or levels.context <= cuts[-1]  # whether all context is of the last stage
    if levels.kind == "prefix" and not cuts:
        start = np.arange(levels.known, blocks - levels.chunk + 1, levels.prefix_stride)[:, None]
        place = order - start
        nothing = np.zeros(place.shape, int)
        scored = (place >= 0) & (place < levels.chunk)
        return Draws(np.full(len(start), 1.0 / len(start)), nothing, place < 0, scored)
    if levels.kind == "staircase" and fixed:
        return _staircase(levels, layout, order)
    t, context, scored = jax.vmap(levels.sample, (0, None))(jax.random.split(random_key(0), SAMPLED), blocks)
    return Draws(np.full(SAMPLED, 1.0 / SAMPLED), layout.stages(np.asarray(t)), np.asarray(context), np.asarray(scored))


def _staircase(levels, layout, order):
    """Every place of the window is equally likely, and of the phase u only between which cuts each level falls."""
    W, blocks = levels.in_flight, len(order)
    cuts = np.array([unmoved(levels, cut) for cut in layout.range_levels])
    edges = (W * cuts[:, None] - np.arange(W)).ravel()  # values of u at which a block's stage changes
    edges = np.unique(np.concatenate([[0.0, 1.0], edges[(edges > 0.0) & (edges < 1.0)]]))
    u, length = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    place = order - np.arange(1 - W, blocks)[:, None, None]  # [places, 1, n]
    place, u = np.broadcast_arrays(place, u[:, None])
    scored, context = (place >= 0) & (place < W), place < 0
    t = np.where(scored, (place + u) / W, 1.0)
    stage = np.sum(t[..., None] <= cuts, axis=-1)
    stage = np.where(context, layout.last_stage, stage)
    weight = np.broadcast_to(length, place.shape[:2]) / len(place)
    return Draws(weight.ravel(), *(a.reshape(-1, blocks) for a in (stage, context, scored)))


def unmoved(levels, cut: float) -> float:
    """The drawn level up to which the level that it is moved to (``diffusion.levels``, 1 and 2) is at most ``cut``."""
    if levels.grid:
        cut = np.floor(np.float32(cut) * levels.grid + 1e-6) / levels.grid
    return cut / (cut + levels.shift * (1.0 - cut))
