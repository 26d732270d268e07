import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion import skeleton as sk
from causal_diffusion.motion.skeleton import HUMANML3D, Skeleton, forward

SHARED = """Hips Spine Chest Neck Head Shoulder_L UpperArm_L LowerArm_L Hand_L Shoulder_R UpperArm_R LowerArm_R Hand_R
UpperLeg_L LowerLeg_L Foot_L Toes_L UpperLeg_R LowerLeg_R Foot_R Toes_R""".split()
SHARED_PARENTS = (-1, 0, 1, 2, 3, 2, 5, 6, 7, 2, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
MIXAMO = """Hips Spine Neck Head LeftShoulder LeftArm LeftForeArm LeftHand RightShoulder RightArm RightForeArm RightHand
LeftUpLeg LeftLeg LeftFoot LeftToeBase RightUpLeg RightLeg RightFoot RightToeBase""".split()


def star(names):
    return sk.of(names, [-1] + [0] * (len(names) - 1))


def test_forward_kinematics_by_hand():
    """An arm of two bones along x: the shoulder turns it up, the elbow then to +z."""
    arm = Skeleton(("shoulder", "elbow", "wrist"), (-1, 0, 1), ((9, 9, 9), (1, 0, 0), (2, 0, 0)))
    q = np.stack([rot.from_euler([0, 0, np.pi / 2], "XYZ"), rot.from_euler([0, -np.pi / 2, 0], "XYZ"), rot.IDENTITY])
    x = forward(arm, q[None], np.array([[5.0, 0, 0]]))
    np.testing.assert_allclose(x, [[[5, 0, 0], [5, 1, 0], [5, 1, 2]]], atol=1e-15)
    longer = forward(arm, q[None], np.array([[5.0, 0, 0]]), offsets=np.array([[0, 0, 0], [3, 0, 0], [4, 0, 0]]))
    np.testing.assert_allclose(longer, [[[5, 0, 0], [5, 3, 0], [5, 3, 4]]], atol=1e-15)
    np.testing.assert_allclose(sk.turned(arm, q[None])[0, 2], rot.multiply(q[0], q[1]), atol=1e-15)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_forward_is_the_product_of_transforms(lead):
    """4 x 4 matrices, joint by joint."""
    body, rng = sk.of(SHARED, SHARED_PARENTS), np.random.default_rng(0)
    offsets, root = rng.standard_normal((21, 3)), rng.standard_normal((*lead, 4, 3))
    q = rng.standard_normal((*lead, 4, 21, 4))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    x = forward(body.with_offsets(offsets), q, root)
    transforms, local = [], np.zeros((*lead, 4, 21, 4, 4))
    local[..., :3, :3], local[..., :3, 3], local[..., 3, 3] = rot.to_matrix(q), offsets, 1.0
    local[..., 0, :3, 3] = root
    for j, parent in enumerate(SHARED_PARENTS):
        transforms.append(local[..., j, :, :] if parent < 0 else transforms[parent] @ local[..., j, :, :])
        np.testing.assert_allclose(x[..., j, :], transforms[j][..., :3, 3], atol=1e-13)
    lengths = np.broadcast_to(np.linalg.norm(offsets[1:], axis=-1), (*lead, 4, 20))
    np.testing.assert_allclose(body.bone_lengths(x), lengths, atol=1e-13)


def test_forward_is_one_function_of_jax_and_numpy():
    rng, body = np.random.default_rng(0), Skeleton(tuple("abcd"), (-1, 0, 1, 0), np.arange(12.0).reshape(4, 3))
    q, root = rng.standard_normal((2, 5, 4, 4)).astype(np.float32), np.ones((2, 5, 3), np.float32)
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    x = jax.jit(lambda q, root: forward(body, q, root))(jnp.asarray(q), jnp.asarray(root))
    assert isinstance(x, jax.Array) and x.dtype == np.float32
    expected = forward(body, q, root)
    assert type(expected) is np.ndarray and expected.dtype == np.float32
    np.testing.assert_allclose(x, expected, atol=1e-4)


def test_humanml3d_is_the_22_joints_of_smpl():
    assert HUMANML3D.joints == 22 and HUMANML3D.offsets is None
    assert HUMANML3D.chains() == (
        (0, 1, 4, 7, 10), (0, 2, 5, 8, 11), (0, 3, 6, 9, 12, 15), (0, 3, 6, 9, 13, 16, 18, 20),
        (0, 3, 6, 9, 14, 17, 19, 21),
    )  # fmt: skip
    assert HUMANML3D.mirrored == (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20)
    assert dict(HUMANML3D.roles) == dict(
        hips=0, neck=12, head=15, left_hip=1, left_knee=4, left_ankle=7, left_toe=10, left_shoulder=16, left_elbow=18,
        left_wrist=20, right_hip=2, right_knee=5, right_ankle=8, right_toe=11, right_shoulder=17, right_elbow=19,
        right_wrist=21,
    )  # fmt: skip


@pytest.mark.parametrize("names, role, joint", [
    (SHARED, "left_shoulder", "UpperArm_L"), (SHARED, "right_hip", "UpperLeg_R"), (SHARED, "left_ankle", "Foot_L"),
    (SHARED, "left_toe", "Toes_L"), (SHARED, "right_wrist", "Hand_R"), (SHARED, "right_knee", "LowerLeg_R"),
    (MIXAMO, "left_shoulder", "LeftArm"), (MIXAMO, "left_hip", "LeftUpLeg"), (MIXAMO, "right_knee", "RightLeg"),
    (MIXAMO, "right_ankle", "RightFoot"), (MIXAMO, "left_toe", "LeftToeBase"), (MIXAMO, "left_wrist", "LeftHand"),
    ([f"mixamorig:{name}" for name in MIXAMO], "left_hip", "mixamorig:LeftUpLeg"),
    (["joint_Root", "Hips", "Spine"], "hips", "Hips"), (["base", "Spine"], "hips", "base"),
    (["Hips", "LHipJoint", "LeftHip", "RHipJoint", "RightHip"], "right_hip", "RightHip"),
])  # fmt: skip
def test_roles_are_found_by_name(names, role, joint):
    assert names[star(names).roles[role]] == joint


@pytest.mark.parametrize("left, right", [
    ("left_hip", "right_hip"), ("UpperLeg_L", "UpperLeg_R"), ("LeftUpLeg", "RightUpLeg"), ("LHipJoint", "RHipJoint"),
    ("lhand", "rhand"), ("l_foot", "r_foot"), ("L_Foot", "R_Foot"), ("leg.l", "leg.r"), ("LFingers", "RFingers"),
    ("left_hand_1", "right_hand_1"), ("Bip01 L Thigh", "Bip01 R Thigh"), ("lefthand", "righthand"),
])  # fmt: skip
def test_mirror_images_are_found_by_name(left, right):
    body = star(["Hips", left, "lowerback", right, "ribs"])
    assert body.mirrored == (0, 3, 2, 1, 4) and body.sides == (None, "left", None, "right", None)


@pytest.mark.parametrize("names", [
    SHARED, MIXAMO, HUMANML3D.names, ["Spine1", "Spine_1", "L_Foot", "LeftFoot", "R_Foot", "RightFoot"],
])  # fmt: skip
def test_mirroring_twice_changes_nothing(names):
    body = star(names)
    assert [body.mirrored[j] for j in body.mirrored] == list(range(body.joints))
    assert sum(side == "left" for side in body.sides) == sum(j < m for j, m in enumerate(body.mirrored)) > 0


def test_what_no_joint_plays_is_named():
    body = star(["Hips", "LeftHip", "RightHip", "LeftHand"])
    assert "left_knee" not in body.roles
    for call, message in (
        (lambda: body.roles["left_knee"], "no joint for 'left_knee': one named 'left_knee' or 'left_lowerleg' or"),
        (lambda: body.roles["head"], "no joint for 'head': one named 'head' would do"),
        (lambda: body.roles["left"], "there is no role 'left': 'left_hip' would do"),
        (lambda: body.mirrored, "joint 'LeftHand' has no mirror image: a right joint named the same way would do"),
        (lambda: body.index("LefHip"), "no joint is named 'LefHip': 'LeftHip' would do, of Hips, LeftHip, RightHip"),
        (lambda: body.index("lefthip"), "no joint is named 'lefthip': 'LeftHip' would do"),
        (lambda: sk.rest(body), "the skeleton has no offsets"),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("names, parents, offsets, message", [
    ("ab", [-1], None, "2 joint names and 1 parents"),
    ("", [], None, "0 joint names and 0 parents"),
    ("ab", [-1, 1], None, r"the parent of joint 1 \(b\) is 1: it must be one of 0 to 0, the joints before it"),
    ("ab", [-1, -1], None, r"the parent of joint 1 \(b\) is -1"),
    ("ab", [0, 0], None, r"the parent of joint 0 \(a\) is 0: it must be -1, it is the root"),
    ("aba", [-1, 0, 0], None, "joints 0 and 2 are both named 'a': rename one"),
    ("ab", [-1, 0], np.zeros((3, 3)), r"offsets \(3, 3\) must be finite, of shape \(2, 3\)"),
    ("ab", [-1, 0], np.full((2, 3), np.nan), r"offsets \(2, 3\) must be finite"),
])  # fmt: skip
def test_what_is_no_tree_is_refused(names, parents, offsets, message):
    with pytest.raises(UserError, match=message):
        Skeleton(tuple(names), parents, offsets)


def test_shapes_that_do_not_fit_are_refused():
    body = Skeleton(("a", "b"), (-1, 0), np.ones((2, 3)))
    for q, root in (((5, 3, 4), (5, 3)), ((5, 2, 3), (5, 3)), ((5, 2, 4), (4, 3)), ((5, 2, 4), (5, 1, 3))):
        with pytest.raises(UserError, match=r"do not fit 2 joints: \[..., frames, 2, 4\] and \[..., frames, 3\]"):
            forward(body, np.zeros(q), np.zeros(root))
    with pytest.raises(UserError, match=r"positions \(5, 3, 3\) do not fit 2 joints"):
        body.bone_lengths(np.zeros((5, 3, 3)))


def test_skeletons_are_values():
    a, b = (sk.of(np.array(["a", "b"]), np.array([-1, 0])) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a.with_offsets(np.ones((2, 3))) != a
    assert a.children(0) == (1,) and a.children(1) == () and type(a.parents[0]) is int
