"""A body of whatever joints as the 22 of HumanML3D (the first 22 of SMPL), found by their names."""

import numpy as np

from causal_diffusion.motion.skeleton import HUMANML3D, Motion

_CALLED = {"pelvis": "hips", "left_foot": "left_toe", "right_foot": "right_toe"}  # joint -> role; others are called so
_MADE = ("spine1", "spine2", "spine3", "left_collar", "right_collar")
NEEDED = tuple(_CALLED.get(name, name) for name in HUMANML3D.names if name not in _MADE)  # roles


def as_humanml3d(motion: Motion) -> np.ndarray:
    """Positions [T, 22, 3] in metres, in the order of ``skeleton.HUMANML3D``.

    The three joints of the spine are those between the hips and where neck and shoulders part, if there are three; else
    they lie at thirds of the way. Where there is no collar bone, it begins half-way from the spine to the shoulder.

    Raises:
        UserError: a joint that plays a role is not there (``Skeleton.roles`` says how it may be named).
    """
    skeleton, roles, x = motion.skeleton, motion.skeleton.roles, motion.positions

    def chain(role):  # from the hips, or the root, down to it
        found = [roles[role]]
        while found[0] != roles["hips"] and skeleton.parents[found[0]] >= 0:
            found.insert(0, skeleton.parents[found[0]])
        return found

    lines = {role: chain(role) for role in ("neck", "left_shoulder", "right_shoulder")}
    shared = [joint for joint in lines["neck"][1:-1] if joint in lines["left_shoulder"]]
    spine = x[:, [roles["hips"], *shared] if shared else lines["neck"]]  # up to the neck if nothing is between
    made = dict(zip(("spine1", "spine2", "spine3"), _along(spine, np.arange(1, 4) / (3 if shared else 4)), strict=True))
    for side in ("left", "right"):
        above, shoulder = skeleton.parents[roles[f"{side}_shoulder"]], roles[f"{side}_shoulder"]
        there = above not in lines["neck"] and above in lines[f"{side}_shoulder"]
        made[f"{side}_collar"] = x[:, above] if there else (made["spine3"] + x[:, shoulder]) / 2
    for name in HUMANML3D.names:
        if name not in made:
            made[name] = x[:, roles[_CALLED.get(name, name)]]
    return np.stack([made[name] for name in HUMANML3D.names], axis=1)


def _along(points, share):
    """Points [T, P, 3] of a chain -> those at shares of its length, [S, T, 3]; the chain's own if it has S below."""
    if points.shape[1] == len(share) + 1 and share[-1] == 1:
        return np.moveaxis(points[:, 1:], 1, 0)
    length = np.median(np.linalg.norm(np.diff(points, axis=1), axis=-1), axis=0)
    at = np.append(0.0, np.cumsum(length)) / max(length.sum(), 1e-9)
    weight = np.array([np.interp(share, at, corner) for corner in np.eye(len(at))])
    return np.einsum("tpc,ps->stc", points, weight)
