import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import humanml, mirror
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.skeleton import HUMANML3D, of

SHARED21 = of(
    "Hips Spine Chest Neck Head Shoulder_L UpperArm_L LowerArm_L Hand_L Shoulder_R UpperArm_R LowerArm_R Hand_R "
    "UpperLeg_L LowerLeg_L Foot_L Toes_L UpperLeg_R LowerLeg_R Foot_R Toes_R".split(),
    (-1, 0, 1, 2, 3, 2, 5, 6, 7, 2, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19),
)
SKELETONS = {22: HUMANML3D, 21: SHARED21}


def walker(skeleton, frames=60, turn=0.02, seed=0):
    """A body that walks a curve and moves its joints about smoothly: float64 [T, J, 3]."""
    rng = np.random.default_rng(seed)
    length = np.where(np.arange(skeleton.joints) % 2, 0.11, 0.19)
    offsets = humanml.rest_directions(skeleton) * length[:, None]
    for side in ("left", "right"):
        offsets[skeleton.roles[f"{side}_shoulder"]] += [0.2 if side == "left" else -0.2, 0, 0]
    pose = np.zeros((frames, skeleton.joints, 3))
    t = np.arange(frames)[:, None, None] / 20
    swing = 0.02 * np.sin(t * rng.uniform(1, 6, (skeleton.joints, 3)) + rng.uniform(0, 6, (skeleton.joints, 3)))
    for j in range(1, skeleton.joints):
        pose[:, j] = pose[:, skeleton.parents[j]] + offsets[j] + swing[:, j]
    phi = turn * np.arange(frames)
    pose = rot.rotate(rot.yaw(phi)[:, None], pose)
    steps = rot.rotate(rot.yaw(phi), np.array([0.01, 0.0, 0.06]))
    path = np.cumsum(steps, axis=0) + [1.0, 0.9, -2.0]
    return pose + path[:, None]


@pytest.mark.parametrize("joints", [22, 21])
@pytest.mark.parametrize("turn", [0.0, 0.02, -0.15])  # the last goes round more than once
def test_decoding_is_the_inverse(joints, turn):
    skeleton = SKELETONS[joints]
    world = walker(skeleton, turn=turn)
    clip = humanml.canonical(world, skeleton)
    x = humanml.encode(clip, skeleton)
    assert x.shape == (59, humanml.width(joints)) and humanml.width(joints) == {22: 263, 21: 251}[joints]
    back, after = humanml.decode(x, joints)
    assert np.abs(back - clip[:-1]).max() < 1e-12
    np.testing.assert_allclose(after[1:], clip[-1, 0, ::2], atol=1e-12)
    some, _ = humanml.decode(humanml.essential(x), joints)
    np.testing.assert_array_equal(some, back)
    placed, _ = humanml.decode(humanml.encode(world, skeleton), joints, humanml.start(world, skeleton))
    assert np.abs(placed - world[:-1]).max() < 1e-12


def test_canonical_clips_stand_on_the_floor_at_the_origin_and_face_z():
    clip = humanml.canonical(walker(HUMANML3D), HUMANML3D)
    assert abs(clip[..., 1].min()) < 1e-12
    np.testing.assert_allclose(humanml.start(clip, HUMANML3D), 0, atol=1e-12)
    across = clip[0, 2] - clip[0, 1] + clip[0, 17] - clip[0, 16]
    assert across[0] < 0 and abs(across[2]) < 1e-12  # right is -x


@pytest.mark.parametrize("cuts", [(1,), (7, 8), (20, 41)])
def test_pieces_equal_the_whole(cuts):
    x = humanml.encode(walker(SHARED21), SHARED21)[None]
    whole, last = humanml.decode(x, 21, np.array([0.3, 1.0, -2.0]))
    pieces, at = [], np.array([0.3, 1.0, -2.0])
    for piece in np.split(x, cuts, axis=1):
        positions, at = humanml.decode(piece, 21, at)
        pieces.append(positions)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    np.testing.assert_array_equal(at, last)


def test_jax_and_jit_give_what_numpy_gives():
    clip = walker(SHARED21).astype(np.float32)
    x = humanml.encode(clip, SHARED21)
    also = jax.jit(humanml.encode, static_argnums=1)(jnp.asarray(clip), SHARED21)
    assert isinstance(also, jax.Array) and x.dtype == also.dtype == np.float32
    np.testing.assert_allclose(also, x, atol=2e-5)
    decode = jax.jit(humanml.decode, static_argnums=1)
    here, there = humanml.decode(x, 21, np.zeros(3, np.float32)), decode(jnp.asarray(x), 21, jnp.zeros(3))
    for a, b in zip(here, there, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=2e-5)
    begun, _ = decode(jnp.stack([x, x]), 21)
    np.testing.assert_allclose(begun[1], here[0], atol=2e-5)


@pytest.mark.parametrize("joints", [22, 21])
@pytest.mark.parametrize("smooth", [0, humanml.SMOOTH])
def test_a_mirrored_clip_mirrors(joints, smooth):
    skeleton = SKELETONS[joints]
    clip = walker(skeleton)
    x = humanml.encode(clip, skeleton, smooth)
    mirrored = humanml.encode(mirror.mirror_positions(clip, skeleton), skeleton, smooth)
    assert np.abs(mirrored - x).max() > 0.01
    np.testing.assert_allclose(mirror.mirror_vector(x, skeleton), mirrored, atol=1e-12)
    np.testing.assert_array_equal(mirror.mirror_vector(mirror.mirror_vector(x, skeleton), skeleton), x)
    some = mirror.mirror_vector(humanml.essential(x), skeleton)
    np.testing.assert_array_equal(some, humanml.essential(mirror.mirror_vector(x, skeleton)))
    assert isinstance(mirror.mirror_vector(jnp.asarray(x), skeleton), jax.Array)


@pytest.mark.parametrize("angle", [0.4, 2.0, -3.0])
def test_numbers_do_not_depend_on_where_a_clip_is_and_faces(angle):
    clip = walker(HUMANML3D)
    moved = rot.rotate(rot.yaw(np.array(angle)), clip) + [4.0, 0.0, -7.0]
    np.testing.assert_allclose(humanml.encode(moved, HUMANML3D), humanml.encode(clip, HUMANML3D), atol=1e-9)


def test_yaw_velocity_is_half_the_angle_clockwise():
    """A stiff body that turns left by w a frame has -w/2, also where its heading passes -z."""
    w = 0.05
    stiff = walker(HUMANML3D, 1).repeat(250, axis=0)
    turned = rot.rotate(rot.yaw(w * np.arange(250))[:, None], stiff)
    x = humanml.encode(turned, HUMANML3D, smooth=0)
    np.testing.assert_allclose(x[:, 0], -w / 2, atol=1e-12)
    smoothed = humanml.encode(turned, HUMANML3D)[:, 0]
    np.testing.assert_allclose(smoothed[85:-85], -w / 2, atol=1e-9)  # smoothing keeps a steady turn
    assert np.abs(smoothed[:5] + w / 2).min() > 0.005  # but for the ends


def test_the_quaternion_formula_of_the_release():
    """arcsin of the y of r_(i+1) r_i^-1, and velocities turned by r_(i+1) of the root and r_i of joints."""
    clip = walker(HUMANML3D)
    x, kinds = humanml.encode(clip, HUMANML3D, smooth=0), humanml.groups(22)
    across = clip[:, 2] - clip[:, 1] + clip[:, 17] - clip[:, 16]
    r = rot.between(np.cross([0, 1, 0], across), np.array([0, 0, 1.0]))
    np.testing.assert_allclose(x[:, 0], np.arcsin(rot.multiply(r[1:], rot.inverse(r[:-1]))[:, 2]), atol=1e-9)
    change = np.diff(clip, axis=0)
    np.testing.assert_allclose(x[:, kinds["root linear velocity"]], rot.rotate(r[1:], change[:, 0])[:, ::2], atol=1e-9)
    velocities = rot.rotate(r[:-1, None], change).reshape(59, -1)
    np.testing.assert_allclose(x[:, kinds["velocities"]], velocities, atol=1e-9)
    around = clip - clip[:, :1] * [1, 0, 1]
    local = rot.rotate(r[:, None], around)[:-1]
    np.testing.assert_allclose(x[:, kinds["positions"]], local[:, 1:].reshape(59, -1), atol=1e-9)
    np.testing.assert_array_equal(x[:, kinds["root height"]], clip[:-1, 0, 1:2])


def test_the_released_heading_jumps_at_frame_0_and_takes_hips_the_other_way():
    stiff = walker(HUMANML3D, 1).repeat(40, axis=0)
    stiff[:, 1] += [0, 0, 0.05]  # the left hip comes forward: hips and shoulders differ
    shoulders, hips = ((stiff[0, r] - stiff[0, left]) for r, left in ((17, 16), (2, 1)))
    angles = [np.arctan2(across[2], -across[0]) for across in (shoulders + hips, shoulders - hips)]
    x = humanml.encode(stiff, HUMANML3D)
    np.testing.assert_allclose(x[0, 0], (angles[0] - angles[1]) / 2, atol=1e-9)
    np.testing.assert_allclose(x[1:, 0], 0, atol=1e-12)
    np.testing.assert_allclose(humanml.encode(stiff, HUMANML3D, smooth=0)[:, 0], 0, atol=1e-12)


def test_rotations_turn_rest_directions_into_bones():
    """Forward kinematics with the stored matrices, limb by limb from the heading, gives the bones back."""
    clip = humanml.canonical(walker(HUMANML3D), HUMANML3D)
    x, kinds = humanml.encode(clip, HUMANML3D, smooth=0), humanml.groups(22)
    local = rot.from_six(x[:, kinds["rotations"]].reshape(59, 21, 6))
    phi = -2 * np.cumsum(np.concatenate([[0], x[:-1, 0]]))
    rest = humanml.rest_directions(HUMANML3D)
    for chain in ((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21), (9, 13, 16, 18, 20)):
        turned = rot.yaw(-phi)
        for parent, j in zip(chain, chain[1:], strict=False):
            turned = rot.multiply(turned, local[:, j - 1])
            bone = clip[:-1, j] - clip[:-1, parent]
            np.testing.assert_allclose(
                rot.rotate(turned, rest[j]), bone / np.linalg.norm(bone, axis=-1, keepdims=True), atol=1e-9
            )


def test_rest_directions():
    """The authors' table of the 22 joints, and the same body without the third joint of the spine's four."""
    x, y, z = np.eye(3)
    table = [0 * x, x, -x, y, -y, -y, y, -y, -y, y, z, z, y, x, -x, z, -y, -y, -y, -y, -y, -y]
    np.testing.assert_array_equal(humanml.rest_directions(HUMANML3D), table)
    table = [0 * x, y, y, y, z, x, -y, -y, -y, -x, -y, -y, -y, x, -y, -y, z, -x, -y, -y, z]
    np.testing.assert_array_equal(humanml.rest_directions(SHARED21), table)


def test_a_bone_without_length_is_finite():
    clip = walker(HUMANML3D)
    clip[:, 15] = clip[:, 12]
    assert np.isfinite(humanml.encode(clip, HUMANML3D)).all()


def test_contacts():
    clip = walker(HUMANML3D, 1).repeat(6, axis=0)
    clip[3:, 8] += [0.0, 0.03, 0.04]  # the right ankle, by 5 cm: its square is .0025
    clip[4:, 10] += [0.0, 0.0, 0.04]  # the left toe, by 4 cm
    contacts = humanml.encode(clip, HUMANML3D)[:, -4:]
    np.testing.assert_array_equal(contacts[:, [0, 1, 3]], 1)
    np.testing.assert_array_equal(contacts[:, 2], [1, 1, 0, 1, 1])


def test_what_a_frame_depends_on():
    clip = walker(HUMANML3D, 200)
    changed = clip.copy()
    changed[100, 20] += 0.01  # the left wrist has no say in the heading
    difference = np.abs(humanml.encode(changed, HUMANML3D) - humanml.encode(clip, HUMANML3D)).max(axis=1)
    assert np.flatnonzero(difference > 1e-12).tolist() == [99, 100]
    changed = clip.copy()
    changed[100, 16] += [0, 0, 0.05]  # the left shoulder has
    for smooth, first, last in ((humanml.SMOOTH, 19, 180), (0, 99, 100)):
        both = (humanml.encode(c, HUMANML3D, smooth) for c in (changed, clip))
        told = np.flatnonzero(np.abs(np.subtract(*both)).max(axis=1) > 1e-12)
        assert (told.min(), told.max()) == (first, last)


def test_groups_and_statistics():
    ends = [(g.start, g.stop) for g in humanml.groups(22).values()]
    assert ends == [(0, 1), (1, 3), (3, 4), (4, 67), (67, 193), (193, 259), (259, 263)]
    std = np.random.default_rng(0).uniform(1, 2, 263)
    grouped = humanml.group_std(std, 22)
    for start, stop in ends:
        np.testing.assert_allclose(grouped[start:stop], std[start:stop].mean())
    mean = std + 1
    mean_, std_ = humanml.evaluator_stats(mean, grouped, 22)
    np.testing.assert_array_equal(mean_, mean)
    np.testing.assert_allclose(grouped / std_, [25] * 4 + [1] * 255 + [25] * 4)
    with pytest.raises(UserError, match=r"deviations \(263,\) are not of 21 joints: \(251,\) would do"):
        humanml.group_std(std, 21)


@pytest.mark.parametrize("joints", [22, 21])
def test_every_number_is_of_one_part_of_the_body(joints):
    skeleton = SKELETONS[joints]
    for channels in (humanml.width(joints), humanml.essential_width(joints)):
        parts = humanml.parts(skeleton, channels)
        assert tuple(parts) == humanml.PARTS
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(channels))
        assert set(range(4)) <= set(parts["torso"].tolist())
    clip = walker(skeleton)
    changed = clip.copy()
    changed[30, skeleton.roles["left_wrist"]] += 0.01
    difference = np.abs(humanml.encode(changed, skeleton) - humanml.encode(clip, skeleton)).max(axis=0)
    arm = humanml.parts(skeleton, humanml.width(joints))["left arm"]
    assert set(np.flatnonzero(difference > 1e-12)) <= set(arm.tolist())
    right_leg = humanml.parts(skeleton, humanml.width(joints))["right leg"]
    assert right_leg[-2:].tolist() == [12 * joints - 3, 12 * joints - 2]


def test_what_does_not_fit_is_refused():
    clip = walker(HUMANML3D, 5)
    for wrong in (clip[:1], clip[:, :21], clip[None]):
        with pytest.raises(UserError, match=r"are no clip of 22 joints: \[frames, 22, 3\] of at least two frames"):
            humanml.encode(wrong, HUMANML3D)
    with pytest.raises(UserError, match="22 joints take 67 or 263 numbers"):
        humanml.decode(np.zeros((3, 66)), 22)
    with pytest.raises(UserError, match="a frame has 262 numbers"):
        humanml.essential(np.zeros((3, 262)))
    with pytest.raises(UserError, match="22 joints have no 66 numbers per frame: 263 or 67 would do"):
        humanml.parts(HUMANML3D, 66)


def shared_clips(count):
    folder = Path(os.environ.get("CD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "motion"
    if not folder.is_dir():
        pytest.skip("the shared motion is not here (CD_SHARED_DATA)")
    data = np.load(folder / "bandai_test.npz")
    positions, root, start = data["positions"].astype(np.float64), data["root_xz"], data["clip_start"]
    positions[..., ::2] += root[:, None]
    for i in np.linspace(0, len(start) - 2, count).astype(int):
        yield positions[start[i] : start[i + 1]]


def test_real_motion():
    """The issue's bound is 1e-5 m; measured over all 334 held-out clips: 3e-15 m, and 8e-7 m in float32."""
    for positions in shared_clips(12):
        clip = humanml.canonical(positions, SHARED21)
        x = humanml.encode(clip, SHARED21)
        assert np.abs(humanml.decode(x, 21)[0] - clip[:-1]).max() < 1e-12
        single = humanml.encode(clip.astype(np.float32), SHARED21)
        assert np.abs(humanml.decode(single, 21)[0] - clip[:-1]).max() < 1e-5
        mirrored = humanml.encode(mirror.mirror_positions(clip, SHARED21), SHARED21)
        np.testing.assert_allclose(mirror.mirror_vector(x, SHARED21), mirrored, atol=1e-9)
        shoulders, hips = (np.linalg.norm(clip[0, a] - clip[0, b]) for a, b in ((6, 10), (13, 17)))
        assert shoulders > 1.3 * hips  # what the released heading asks for
