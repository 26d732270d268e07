import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion.as_humanml3d import as_humanml3d
from causal_diffusion.motion.skeleton import HUMANML3D, Motion, of

SIDED = {"Shoulder": "Chest", "UpperArm": "Shoulder", "LowerArm": "UpperArm", "Hand": "LowerArm",
         "UpperLeg": "Hips", "LowerLeg": "UpperLeg", "Foot": "LowerLeg", "Toes": "Foot"}  # fmt: skip


def body(spine=("Spine", "Chest"), without=()):
    """A motion of two frames, at random places, with these joints between hips and neck."""
    tree = dict(zip(("Hips", *spine, "Neck", "Head"), (None, "Hips", *spine, "Neck"), strict=True))
    above = {"Chest": ("Hips", *spine)[-1]}
    for side in "LR":
        for name, parent in SIDED.items():
            if name not in without:
                while parent in without:
                    parent = SIDED[parent]
                parent = above.get(parent, parent)
                tree[f"{name}_{side}"] = parent if parent in tree else f"{parent}_{side}"
    names = list(tree)
    skeleton = of(names, [-1 if tree[name] is None else names.index(tree[name]) for name in names])
    return Motion(skeleton, None, None, np.random.default_rng(0).standard_normal((2, len(names), 3)), 30.0)


def joint(positions, name):
    return positions[:, HUMANML3D.index(name)]


def test_joints_are_found_by_the_roles_that_they_play():
    m = body(("Spine", "Spine1", "Chest"))
    made = as_humanml3d(m)
    assert made.shape == (2, 22, 3)
    names = dict(pelvis="Hips", left_hip="UpperLeg_L", right_knee="LowerLeg_R", left_ankle="Foot_L",
                 right_foot="Toes_R", spine1="Spine", spine2="Spine1", spine3="Chest", neck="Neck", head="Head",
                 left_collar="Shoulder_L", left_shoulder="UpperArm_L", right_elbow="LowerArm_R",
                 right_wrist="Hand_R")  # fmt: skip
    for name, theirs in names.items():
        np.testing.assert_array_equal(joint(made, name), m.positions[:, m.skeleton.index(theirs)])


def test_humanml3d_itself_stays_what_it_is():
    positions = np.random.default_rng(1).standard_normal((3, 22, 3))
    np.testing.assert_array_equal(as_humanml3d(Motion(HUMANML3D, None, None, positions, 20.0)), positions)


@pytest.mark.parametrize("spine, share", [
    (("Chest",), (1 / 3, 2 / 3, 1)), ((), (1 / 4, 1 / 2, 3 / 4)), (("Spine", "Chest"), (1 / 3, 2 / 3, 1)),
])  # fmt: skip
def test_another_spine_is_divided_evenly(spine, share):
    m = body(spine)
    straight = np.linspace(0, 1, len(spine) + 2)[:, None] * [0.1, 0.5, 0.0]  # hips to neck
    m.positions[:, [m.skeleton.index(name) for name in ("Hips", *spine, "Neck")]] = straight
    made, end = as_humanml3d(m), straight[-2 if spine else -1]
    for name, part in zip(("spine1", "spine2", "spine3"), share, strict=True):
        np.testing.assert_allclose(joint(made, name), np.broadcast_to(part * end, (2, 3)), atol=1e-12)


def test_a_collar_bone_that_is_missing_lies_half_way():
    m = body(without=("Shoulder",))
    made = as_humanml3d(m)
    middle = (joint(made, "spine3") + joint(made, "left_shoulder")) / 2
    np.testing.assert_allclose(joint(made, "left_collar"), middle, atol=1e-15)


def test_a_joint_that_cannot_be_found_is_named():
    with pytest.raises(UserError, match="no joint for 'left_toe': one named 'left_toes' .* would do"):
        as_humanml3d(body(without=("Toes",)))
