"""Who sees whom in a pass, and how much of it is known before anything runs.

The predicate is the layout's; what a pass adds are the sinks that a commit may not see and the past that a guidance
branch goes without. The same lines work on traced ids, as a stream begins, and in NumPy.

Once the ring of slots is full, its frames are the R before the blocks in flight, in an order that only the cursor
knows. Where a query sees all of them, that order does not matter, and nothing is left to trace::

    slots       sink | 7  4  5  6 | own 8        cursor at 4
                sink | 7  8  5  6 | own 9        one block later, cursor at 5: again all are seen
    window 2    .    | #  .  .  # |              here it does matter: what is hidden goes round with the cursor
"""

from typing import NamedTuple

import numpy as np

from causal_diffusion.layout import CLEAN, REFERENCE, Ids, StaticMask, concatenate

FAR = 1 << 16  # blocks after the first ones: as far as any stream


class Known(NamedTuple):
    """What is known of T frames of a pass beforehand.

    offset: int [T], frames after the first one that the ring does not hold; None: that is not known.
    lead: as of ``Ids``, int or [T].
    """

    role: int
    offset: np.ndarray | None
    lead: np.ndarray | int = 0


def seen(recipe, own: Ids, keys: Ids, branches, sinks: bool = True) -> list:
    """Which of the frames ``keys`` [..., S] each own frame [..., T] sees: bool [..., T, S] of every branch.

    ``sinks``: whether sinks are seen that lie before the window.
    """
    layout = recipe.layout
    mask = layout.visible(own, keys)
    start = (layout.block_start(own.frame) - layout.block * own.lead)[..., None]
    key, reference = keys.frame[..., None, :], (keys.role == REFERENCE)[..., None, :]  # a condition, not a past
    if not sinks:
        mask = mask & ((key >= start - layout.window) | reference)

    def of_branch(branch):
        if branch.past < 0 or recipe.cache.kind == "none":
            return mask
        near = key >= start - branch.past
        return mask & (near | reference if layout.reference else near)

    return [of_branch(branch) for branch in branches]


def full_from(recipe) -> int:
    """The first frame of the first block before which the ring holds as many frames, behind the sinks, as ever."""
    layout = recipe.layout
    frames = recipe.slots + max(0, layout.sinks - layout.pad)
    return -(-(frames + layout.pad) // layout.block) * layout.block - layout.pad


def steady(recipe, parts: list[Known], branches, sinks: bool = True) -> StaticMask | None:
    """What ``seen`` is for every branch once the ring is full, over [slots | own frames].

    Every place of the cursor is tried, at the first frames for which the ring is full and at far ones.

    Returns:
        None where that is not the same everywhere, or depends on more than frames.
    """
    layout, cache = recipe.layout, recipe.cache
    if cache.kind != "kv" or cache.budget or layout.ranges or any(part.offset is None for part in parts):
        return None
    b, ring, first = layout.block, recipe.slots, full_from(recipe)
    role = np.where(np.arange(recipe.kept + layout.sinks + ring) < recipe.kept, REFERENCE, CLEAN)
    fixed, found = [np.zeros(recipe.kept, int), np.arange(layout.sinks) - layout.pad], None
    for cursor in range(0, ring, b):
        for end in (first, first + b, first + FAR * b):
            held = np.roll(np.arange(end - ring, end), cursor)
            own = concatenate(*(Ids.of(part.role, end + part.offset, 0, 0, part.lead) for part in parts))
            slots = Ids.of(role, np.concatenate([*fixed, held]))
            for mask in seen(recipe, own, concatenate(slots, own), branches, sinks):
                if found is not None and not np.array_equal(mask, found):
                    return None
                found = mask
    return StaticMask(found)


def alike(recipe, parts: list[Known], branches, sinks: bool = True) -> bool:
    """Whether the own frames of a pass all see the same, however far the ring has filled.

    Then one row of the mask stands for all, and attention may count keys instead of hiding them. Visibility is between
    two frames, so it is enough to ask every own frame about every frame that there can be.
    """
    layout, cache = recipe.layout, recipe.cache
    if cache.kind != "kv" or cache.budget or layout.ranges or len(parts) > 1 or parts[0].offset is None:
        return False
    for end in range(-layout.pad, full_from(recipe) + layout.block + 1, layout.block):
        own = Ids.of(parts[0].role, end + parts[0].offset, 0, 0, parts[0].lead)
        past = np.arange(-layout.pad, end)
        slots = concatenate(Ids.of(CLEAN, past), Ids.of(REFERENCE, np.zeros(1, int)))
        for mask in seen(recipe, own, concatenate(slots, own), branches, sinks):
            if np.any(mask != mask[:1]):
                return False
    return True
