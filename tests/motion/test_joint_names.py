import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import joint_names
from causal_diffusion.motion import skeleton as sk

PARTS = "hip knee ankle toe shoulder elbow wrist".split()
ROLES = {"hips", "neck", "head", *(f"{side}_{part}" for side in ("left", "right") for part in PARTS)}


def sided(form, sides, parts):
    return [form.format(side=side, part=part) for side in sides for part in parts.split()]


WORDS, LETTERS = ("Left", "Right"), ("L", "R")
MIXAMO = "Hips Spine Neck Head".split() + sided(
    "{side}{part}", WORDS, "Shoulder Arm ForeArm Hand UpLeg Leg Foot ToeBase HandThumb1 HandIndex1"
)
BIPED = "Pelvis Spine Neck Head".split() + sided(
    "{side} {part}", LETTERS, "Clavicle UpperArm Forearm Hand Thigh Calf Foot Toe0 Finger0 Finger1"
)
UNREAL = "pelvis spine_01 neck_01 head".split() + sided(
    "{part}_{side}", "lr", "clavicle upperarm lowerarm hand thigh calf foot ball"
)
ROKOKO = "Hip Ab Chest Neck Head".split() + sided(
    "{side}{part}", WORDS, "Shoulder UpperArm LowerArm Hand Thigh Shin Foot Toe"
)
OPTITRACK = "Hip Ab Chest Neck Head".split() + sided(
    "{side}{part}", LETTERS, "Shoulder UArm FArm Hand Thigh Shin Foot Toe"
)
POSER = "hip abdomen chest neck head".split() + sided(
    "{side}{part}", "lr", "Collar Shldr ForeArm Hand Thigh Shin Foot Toe"
)
SMPL = "Pelvis Spine1 Neck Head".split() + sided(
    "{side}_{part}", LETTERS, "Hip Knee Ankle Foot Collar Shoulder Elbow Wrist"
)
VRM = "C_Hips C_Spine C_Neck C_Head".split() + sided(
    "{side}_{part}", LETTERS, "Shoulder UpperArm LowerArm Hand UpperLeg LowerLeg Foot ToeBase"
)


@pytest.mark.parametrize("prefix, names", [
    ("", MIXAMO), ("mixamorig:", MIXAMO), ("mixamorig_", MIXAMO), ("mixamorig9:", MIXAMO), ("mixamorig9_", MIXAMO),
    ("Character1_", MIXAMO), ("Avatar:mixamorig_", MIXAMO), ("b_", MIXAMO), ("j", MIXAMO), ("my rig ", MIXAMO),
    ("Bip01 ", BIPED), ("Bip001_", BIPED), ("CC_Base_", BIPED), ("ValveBiped.Bip01_", BIPED), ("", UNREAL),
    ("x_", UNREAL), ("", ROKOKO), ("", OPTITRACK), ("", POSER), ("m_avg_", SMPL), ("", SMPL), ("J_Bip_", VRM),
])  # fmt: skip
@pytest.mark.parametrize("root", [None, "Armature"])
def test_every_role_is_found_behind_any_prefix(prefix, names, root):
    shown = ([root] if root else []) + [prefix + name for name in names]
    body = sk.of(shown, [-1] + [0] * (len(shown) - 1))
    assert set(body.roles) == ROLES and len(set(body.roles.values())) == len(ROLES)
    for role, joint in body.roles.items():
        side, at = role.partition("_")[0], joint - bool(root)
        assert names[at] == names[0] if role == "hips" else at > 0
        if side in ("left", "right"):
            assert body.sides[joint] == side and body.sides[body.mirrored[joint]] == joint_names.OTHER[side]


def test_a_biped_whose_root_is_the_prefix():
    body = sk.of(["Bip01", *(f"Bip01 {name}" for name in BIPED)], [-1] + [0] * len(BIPED))
    assert body.roles["hips"] == 1 and body.roles["left_hip"] == 1 + BIPED.index("L Thigh")


def test_parts_of_the_body_are_no_prefix():
    names = ["Spine", "Spine1", "Spine2", "Spine3", "Head"]
    assert joint_names.split(names) == ((None, "spine"), *((None, f"spine{i}") for i in (1, 2, 3)), (None, "head"))
    assert joint_names.split(["LeftLeg", "LeftFoot", "LeftArm"])[0] == ("left", "leg")


def test_what_is_not_found_is_told_with_the_names_that_are_there():
    body = sk.of(["a", "b", "c"], [-1, 0, 0])
    with pytest.raises(
        sk.UnknownRole, match="no joint for 'neck': one named 'neck' or .* would do; its joints are a, b, c$"
    ):
        body.roles["neck"]
    assert issubclass(sk.UnknownRole, UserError)
